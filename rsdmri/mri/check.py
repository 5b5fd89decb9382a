"""Whether files of k-space can be used, before anything is computed from them: one row a file.

Every file is opened by the reader that the other commands use, but of its samples only the first slice and the middle one are read. What
is found in them, such as NaN, is found; what is wrong in others, is not.
"""

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from textwrap import wrap

import torch

from ..errors import UserError
from ..jobs import FilesFailed, run_files
from .coils import FEWEST_WALSH, SMALLEST_CALIB
from .fourier import ifft2c, rss
from .masks import acs_lines, default_acs, find_acs
from .readers import KSpace, find_files, glance


@dataclass(frozen=True)
class Row:
    """What is known of one file. ``problem``: why it cannot be used; ``remarks``: what its user should know."""

    file: str
    format: str = ""
    slices: int = 0
    coils: int = 0
    matrix: tuple[int, int] = (0, 0)
    contrast: str = ""
    sampled: float = 0.0
    """Measured part of the columns (samples, if the pattern is 2-D) that the protocol covers."""
    acceleration: float = 0.0
    acs: int = 0
    """Fully sampled lines about the centre of k-space, wherever its energy says that this is."""
    scale: float = 0.0
    """99th percentile of the RSS image of the ACS: what ``prepare`` divides by."""
    problem: str = ""
    remarks: tuple[str, ...] = ()


def check(paths: Sequence[Path], *, as_json: bool, singlecoil: bool, workers: int) -> None:
    """Prints a row for every file; a :class:`UserError` at the end if any cannot be used."""
    files = find_files(paths)
    try:
        rows = run_files(partial(examine, singlecoil=singlecoil), files, workers=workers, stage="check", note=_name)
    except FilesFailed as error:
        rows = {**error.results, **{file: Row(file=str(file), problem=text) for file, text in error.errors.items()}}
    ordered = [rows[file] for file in files]
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in ordered], indent=1))
    else:
        print("\n".join(table(ordered)))
    bad = sum(bool(row.problem) for row in ordered)
    if bad:
        sys.stdout.flush()
        raise UserError(f"{bad} of {len(ordered)} files cannot be used")


def _name(row: Row) -> str:
    return Path(row.file).name


def examine(path: Path, singlecoil: bool) -> Row:
    """The row of one file."""
    try:
        scan = glance(path, singlecoil=singlecoil)
    except UserError as error:
        return Row(file=str(path), problem=str(error).removeprefix(f"{path}: "))
    row = _of(scan)
    if singlecoil:
        return row
    try:
        _, lines = find_acs(scan.kspace, scan.mask)
    except UserError as error:
        return dataclasses.replace(row, problem=str(error))
    if lines.stop - lines.start < FEWEST_WALSH:
        return dataclasses.replace(row, problem=f"{lines.stop - lines.start} ACS lines: no coil maps can be made")
    return dataclasses.replace(row, acs=lines.stop - lines.start, scale=_scale(scan), remarks=_remarks(scan, lines))


def _of(scan: KSpace) -> Row:
    covered = scan.mask[..., scan.encoded].double().mean()
    return Row(
        file=str(scan.path),
        format=scan.format,
        slices=scan.slices,
        coils=scan.kspace.shape[1],
        matrix=(scan.kspace.shape[2], scan.kspace.shape[3]),
        contrast=scan.contrast,
        sampled=round(float(covered), 4),
        acceleration=round(1 / float(covered), 3),
    )


def _scale(scan: KSpace) -> float:
    """The scale of the middle slice: its ACS lines alone, on a grid that is just fine enough for them."""
    width = scan.kspace.shape[-1]
    acs = max(default_acs(width), 1)
    low = torch.nn.functional.pad(scan.kspace[-1][..., acs_lines(width, acs)], (acs - acs // 2, acs // 2))
    brighter = (width / low.shape[-1]) ** 0.5  # the orthonormal FFT of the coarser grid
    return float(torch.quantile(rss(ifft2c(low), 0).flatten(), 0.99)) / brighter


def _remarks(scan: KSpace, lines: slice) -> tuple[str, ...]:
    found = list(scan.notes)
    found_lines = lines.stop - lines.start
    if found_lines < SMALLEST_CALIB:
        found.append(f"{found_lines} ACS lines: too few for good coil maps ({SMALLEST_CALIB} or more)")
    if scan.mask.ndim == 2:
        found.append("sampled in two directions: coil maps can be made, masks of whole columns are what training takes")
    dead = scan.dead_coils
    if dead:
        found.append(f"coil {', '.join(map(str, dead))} without signal")
    padded = int((~scan.encoded).sum())
    if padded:
        found.append(f"{padded} columns were filled with zeros by the scanner")
    return tuple(found)


def table(rows: Sequence[Row]) -> list[str]:
    """The rows as lines of text of 80 columns; problems and remarks stand below their file."""
    lines = [f"{'file':<22} {'format':<8}{'slices':>6}{'coils':>6} {'matrix':<9}{'sampled':>8}{'R':>6}{'ACS':>5}{'scale':>8}"]
    for row in rows:
        name = Path(row.file).name
        name = name if len(name) <= 22 else f"{name[:10]}…{name[-11:]}"
        if row.format:
            matrix = f"{row.matrix[0]}x{row.matrix[1]}"
            lines.append(
                f"{name:<22} {row.format:<8}{row.slices:>6}{row.coils:>6} {matrix:<9}{100 * row.sampled:>7.1f}%"
                f"{row.acceleration:>6.2f}{row.acs:>5}{row.scale:>8.2g}"
            )
        else:
            lines.append(name)
        if row.contrast:
            lines.append(f"  {row.contrast}")
        for mark, text in [*(("-", remark) for remark in row.remarks), *([("!", row.problem)] if row.problem else [])]:
            lines += wrap(text, 80, initial_indent=f"  {mark} ", subsequent_indent="    ")
    return lines
