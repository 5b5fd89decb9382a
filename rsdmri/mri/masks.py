r"""Which columns of k-space are measured.

M has exactly floor(W / R) columns, the ACS lines included; the others are uniform without replacement. M̃ keeps floor(W / (R + 1))
of M's columns, the ACS lines always, and has at least one less. At W = 320 with 20 ACS lines this gives the published 160, 80, 53, 40
columns and 106, 64, 45, 35 of them for R = 2, 4, 6, 8. M belongs to the volume: all its slices share it, a function of the volume's
name.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..tensors import make_generator

MASK_STREAM = 3  # the purpose of the generators that draw a volume's mask


def default_acs(width: int) -> int:
    """The number of ACS lines where none is given, round(W / 16): 20 of 320."""
    return round(width / 16)


def acs_lines(width: int, acs: int) -> slice:
    """The central ``acs`` columns, DC at width // 2 among them: 150 to 169 of 320 for 20 lines."""
    start = width // 2 - acs // 2
    return slice(start, start + acs)


def columns(width: int, acceleration: float) -> int:
    """floor(W / R), safe against the rounding of the quotient."""
    return math.floor(width / acceleration + 1e-9)


def check_acceleration(width: int, acceleration: float, acs: int, thinned: bool = True) -> None:
    """Raises a :class:`UserError` with the possible R if W columns cannot give this one (and, if ``thinned``, its M̃)."""
    if not 0 <= acs <= width:
        raise UserError(f"{acs} ACS lines asked for, and k-space has {width} columns: expected 0 to {width}.")
    if acceleration >= 1 and _possible(width, acceleration, acs, thinned):
        return
    needs = f"floor(W/R) = {columns(width, acceleration)} columns are measured, the ACS among them" if acceleration >= 1 else "R >= 1"
    if thinned:
        needs += "; the further corrupted mask keeps floor(W/(R+1)), fewer, the ACS among them too"
    whole = [r for r in range(1, width + 1) if _possible(width, r, acs, thinned)]
    reach = f"R can be {_ranges(whole)}" if whole else "no R is possible; take fewer ACS lines"
    raise UserError(f"acceleration {acceleration:g} is impossible with {width} columns and {acs} ACS lines ({needs}): {reach}.")


def _possible(width: int, acceleration: float, acs: int, thinned: bool) -> bool:
    kept, fewer, least = columns(width, acceleration), columns(width, acceleration + 1), max(acs, 1)
    return kept >= least and (not thinned or least <= fewer < kept)


def _ranges(numbers: Sequence[int]) -> str:
    """``[1, 2, 3, 5]`` -> ``1-3, 5``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)


def draw_columns(n: int, width: int, acceleration: float, acs: int, generator: torch.Generator) -> Tensor:
    """n masks (n, 1, 1, W), bool, on the device of ``generator``."""
    check_acceleration(width, acceleration, acs, thinned=False)
    scores = torch.rand(n, width, device=generator.device, generator=generator)
    scores[:, acs_lines(width, acs)] = 2.0  # always among the highest
    return _highest(scores, columns(width, acceleration))[:, None, None, :]


def thin_columns(mask: Tensor, acceleration: float, acs: int, generator: torch.Generator | None) -> Tensor:
    """M̃ within M (B, 1, 1, W): floor(W / (R + 1)) of M's columns, the ACS lines always.

    Raises :class:`UserError` if an M has no column too many, as a scan with fewer columns than R says.
    """
    width = mask.shape[-1]
    check_acceleration(width, acceleration, acs)
    kept = columns(width, acceleration + 1)
    fewest = int(mask.sum(-1).min())
    if fewest <= kept:
        raise UserError(
            f"a mask has {fewest} columns, of which floor(W/(R+1)) = {kept} are to be kept (W = {width}, R = {acceleration:g}):"
            " none would be removed. Set the acceleration to what the scans have."
        )
    scores = torch.rand(len(mask), width, device=mask.device, generator=generator)
    scores[:, acs_lines(width, acs)] = 2.0
    scores = torch.where(mask[:, 0, 0], scores, -1.0)
    return _highest(scores, kept)[:, None, None, :]


def volume_columns(name: str, width: int, acceleration: float, acs: int, seed: int = 0) -> Tensor:
    """The mask (W,) of a volume: a function of its name, so that the corrupted data set is fixed."""
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return draw_columns(1, width, acceleration, acs, make_generator(seed, MASK_STREAM, digest))[0, 0, 0]


def _highest(scores: Tensor, count: int) -> Tensor:
    """True at the ``count`` highest scores of each row."""
    chosen = scores.argsort(dim=-1, descending=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)
