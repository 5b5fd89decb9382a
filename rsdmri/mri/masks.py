r"""Which columns of k-space are measured.

M has exactly floor(W / R) columns, the ACS lines included; the others are uniform without replacement. M̃ keeps floor(W / (R + 1))
of M's columns, the ACS lines always, and has at least one less. At W = 320 with 20 ACS lines this gives the published 160, 80, 53, 40
columns and 106, 64, 45, 35 of them for R = 2, 4, 6, 8. M belongs to the volume: all its slices share it, a function of the volume's
name.

Where the scanner filled columns with zeros, W counts those that it acquired, and M lies among them. An M of another number of columns
than floor(W / R), as scans that came undersampled have, was drawn from about R |M|: its M̃ keeps floor(R |M| / (R + 1)).

Of k-space that was measured: which samples it holds, where its centre is, and the fully sampled block around it.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..errors import UserError
from ..tensors import make_generator, number_of, rand, squared

MASK_STREAM = 3  # the purpose of the generators that draw a volume's mask
CENTRAL = 8  # the centre of k-space is looked for within 1/8 of the matrix from its middle


def default_acs(width: int) -> int:
    """The number of ACS lines where none is given, round(W / 16): 20 of 320."""
    return round(width / 16)


def kept_acs(width: int, asked: int | None) -> int:
    """The number of ACS lines of masks: as asked for, or the default."""
    return default_acs(width) if asked is None else asked


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
    needs = (
        f"floor(W/R) = {columns(width, acceleration)} columns are measured, the ACS among them" if acceleration >= 1 else "R >= 1"
    )
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


def draw_columns(
    n: int, width: int, acceleration: float, acs: int, generator: torch.Generator, encoded: Tensor | None = None
) -> Tensor:
    """n masks (n, 1, 1, W), bool, on the device of ``generator``; within the columns ``encoded`` (W,), by default all."""
    acquired = width if encoded is None else int(encoded.sum())
    check_acceleration(acquired, acceleration, acs, thinned=False)
    scores = rand((n, width), generator)
    scores[:, acs_lines(width, acs)] = 2.0  # always among the highest
    if encoded is not None:
        scores = torch.where(encoded.to(scores.device), scores, -1.0)
    return _highest(scores, columns(acquired, acceleration))[:, None, None, :]


def thin_columns(mask: Tensor, acceleration: float, acs: int, generator: torch.Generator | None) -> Tensor:
    """M̃ within M (B, 1, 1, W): fewer of M's columns (see :func:`thinned_columns`), the ACS lines always."""
    width, rows = mask.shape[-1], mask[:, 0, 0]
    scores = rand((len(mask), width), generator, mask)
    scores[:, acs_lines(width, acs)] = 2.0
    scores = torch.where(rows, scores, -1.0)
    return _highest(scores, thinned_columns(rows.sum(-1), width, acceleration))[:, None, None, :]


def thinned_columns(measured: Tensor, width: int, acceleration: float) -> Tensor:
    """How many of M's columns M̃ keeps, for numbers ``measured`` (B,) of columns: floor(W / (R + 1)) of floor(W / R), and always fewer."""
    by_rule = columns(width, acceleration + 1)
    of_others = (measured.double() * (acceleration / (acceleration + 1)) + 1e-9).floor().long()
    return torch.where(measured == columns(width, acceleration), by_rule, of_others)


def check_thinning(mask: Tensor, acceleration: float, acs: int) -> None:
    """Raises a :class:`UserError` if no M̃ can be drawn from M (W,) that keeps the ACS lines and leaves out a column."""
    measured = int(mask.sum())
    kept = int(thinned_columns(mask.sum()[None], len(mask), acceleration))
    if not max(acs, 1) <= kept < measured:
        raise UserError(
            f"{measured} columns were measured, {acs} of them ACS lines; the further corrupted mask of R = {acceleration:g} keeps"
            f" {kept}, which must be fewer than were measured and hold the ACS. Set data.accel to what the scan has, or data.acs lower."
        )


def volume_columns(name: str, width: int, acceleration: float, acs: int, seed: int = 0, encoded: Tensor | None = None) -> Tensor:
    """The mask (W,) of a volume: a function of its name, so that the corrupted data set is fixed."""
    return draw_columns(1, width, acceleration, acs, make_generator(seed, MASK_STREAM, number_of(name)), encoded)[0, 0, 0]


def _highest(scores: Tensor, count: int | Tensor) -> Tensor:
    """True at the ``count`` (a number, or one a row) highest scores of each row."""
    rank = scores.argsort(dim=-1, descending=True).argsort(dim=-1)
    return rank < (count.reshape(-1, 1) if isinstance(count, Tensor) else count)


def sampled(kspace: Tensor) -> Tensor:
    """What is not zero in k-space (slices, coils, H, W): (W,) if whole columns are missing, else (H, W).

    Rows that are zero in every column are zero filling of the readout, and no pattern.
    """
    measured = torch.view_as_real(kspace).abs().sum((0, 1, 4)) > 0  # faster than comparing complex numbers
    rows, columns = measured.any(1), measured.any(0)
    by_column = not columns.any() or measured[rows][:, columns].float().mean() > 0.99
    return columns if by_column else measured


def find_dc(kspace: Tensor, mask: Tensor) -> tuple[int, int]:
    """Row and column of the centre of k-space (slices, coils, H, W): the measured sample of most energy near the middle.

    Not every scan has it at N // 2. Raises :class:`UserError` if nothing was measured near the middle.
    """
    height, width = kspace.shape[-2:]
    energy = torch.where(mask, squared(kspace).sum((0, 1)), -1.0)
    top, left = height // 2 - height // CENTRAL, width // 2 - width // CENTRAL
    near = energy[top : height // 2 + height // CENTRAL + 1, left : width // 2 + width // CENTRAL + 1]
    if not (near >= 0).any():
        raise UserError(
            "no sampled line in the ACS: the centre of k-space was not measured, and without it there are no coil maps"
        )
    row, column = divmod(int(near.argmax()), near.shape[1])
    return top + row, left + column


def find_acs(kspace: Tensor, mask: Tensor) -> tuple[slice, slice]:
    """Rows and columns of the fully sampled block around the centre of k-space (slices, coils, H, W).

    For a column mask (W,) all rows and the run of measured columns; else a block that grows on all sides while it is full.
    """
    pattern = mask if mask.ndim == 2 else mask.expand(kspace.shape[-2], -1)
    top, left = find_dc(kspace, mask)
    bottom, right = top + 1, left + 1
    grown = True
    while grown:
        before = (top, bottom, left, right)
        top -= int(top > 0 and bool(pattern[top - 1, left:right].all()))
        bottom += int(bottom < pattern.shape[0] and bool(pattern[bottom, left:right].all()))
        left -= int(left > 0 and bool(pattern[top:bottom, left - 1].all()))
        right += int(right < pattern.shape[1] and bool(pattern[top:bottom, right].all()))
        grown = before != (top, bottom, left, right)
    return slice(top, bottom), slice(left, right)
