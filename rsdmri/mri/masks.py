r"""Which columns of k-space are measured.

M has exactly floor(W / R) columns, the ACS lines included; the others are uniform without replacement. M̃ keeps floor(W / (R + 1))
of M's columns, the ACS lines always. At W = 320 with 20 ACS lines this gives the published 160, 80, 53, 40 columns and 106, 64,
45, 35 of them for R = 2, 4, 6, 8. M belongs to the volume: all its slices share it, a function of the volume's name.
"""

import hashlib
import math

import torch
from torch import Tensor

from ..errors import UserError
from ..tensors import make_generator

MASK_STREAM = 3  # the purpose of the generators that draw a volume's mask


def default_acs(width: int) -> int:
    """The number of ACS lines where none is given: 20 of 320."""
    return round(width / 16)


def acs_lines(width: int, acs: int) -> slice:
    """The central ``acs`` columns; DC, at width // 2, is the middle one or the first of the upper half."""
    start = width // 2 - acs // 2
    return slice(start, start + acs)


def columns(width: int, acceleration: float) -> int:
    """floor(W / R), safe against the rounding of the quotient."""
    return math.floor(width / acceleration + 1e-9)


def check_acceleration(width: int, acceleration: float, acs: int, thinned: bool = True) -> None:
    """Raises a :class:`UserError` with the possible range if W columns cannot give this R (and, thinned, its M̃)."""
    if 0 <= acs <= width and acceleration >= 1:
        kept = columns(width, acceleration)
        fewer = columns(width, acceleration + 1)
        if kept >= max(acs, 1) and (not thinned or (fewer >= max(acs, 1) and fewer < kept)):
            return
    possible = [r for r in range(1, width + 1) if _possible(width, r, acs, thinned)]
    reach = f"R from {possible[0]} to {possible[-1]} is possible" if possible else "no R is possible; take fewer ACS lines"
    raise UserError(
        f"acceleration {acceleration:g} cannot be had with {width} columns and {acs} ACS lines"
        f" (floor(W/R) = {columns(width, max(acceleration, 1))} columns are measured"
        + (f", and the further corrupted mask must keep floor(W/(R+1)) of them, fewer but with all ACS lines): {reach}." if thinned else f"): {reach}.")
    )


def _possible(width: int, acceleration: int, acs: int, thinned: bool) -> bool:
    kept, fewer = columns(width, acceleration), columns(width, acceleration + 1)
    return kept >= max(acs, 1) and (not thinned or max(acs, 1) <= fewer < kept)


def draw_columns(n: int, width: int, acceleration: float, acs: int, generator: torch.Generator) -> Tensor:
    """n masks (n, 1, 1, W), bool."""
    check_acceleration(width, acceleration, acs, thinned=False)
    scores = torch.rand(n, width, device=generator.device, generator=generator)
    scores[:, acs_lines(width, acs)] = 2.0  # always among the highest
    return _highest(scores, columns(width, acceleration))[:, None, None, :]


def thin_columns(mask: Tensor, acceleration: float, acs: int, generator: torch.Generator | None) -> Tensor:
    """M̃ within M (B, 1, 1, W): floor(W / (R + 1)) of M's columns, the ACS lines always."""
    width = mask.shape[-1]
    check_acceleration(width, acceleration, acs)
    scores = torch.rand(len(mask), width, device=mask.device, generator=generator)
    scores[:, acs_lines(width, acs)] = 2.0
    scores = torch.where(mask[:, 0, 0], scores, -1.0)
    kept = _highest(scores, columns(width, acceleration + 1))[:, None, None, :]
    return kept & mask


def volume_columns(name: str, width: int, acceleration: float, acs: int, seed: int = 0) -> Tensor:
    """The mask (W,) of a volume: a function of its name, so that the corrupted data set is fixed."""
    digest = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big")
    return draw_columns(1, width, acceleration, acs, make_generator(seed, MASK_STREAM, digest))[0, 0, 0]


def _highest(scores: Tensor, count: int) -> Tensor:
    """True at the ``count`` highest scores of each row."""
    chosen = scores.argsort(dim=-1, descending=True)[..., :count]
    return torch.zeros_like(scores, dtype=torch.bool).scatter_(-1, chosen, True)
