"""What a training's selection.jsonl says: when the generator passed its teachers (RSD 5.4, DSD Table 3), and how well choosing by the
proximal distance chose (RSD Table 6).

Each line of the file is one measurement: of the generator after a number of images, or of a teacher (then ``images`` is 0).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .metrics.compare import HIGHER

GENERATOR = "rsd"  # its row


@dataclass(frozen=True)
class Measurement:
    """One line: the distances of ``n`` images of ``row`` to the observed data and, where there are any, to clean ones."""

    row: str
    images: int
    seconds: float
    n: int
    proximal: Mapping[str, float]
    true: Mapping[str, float]


@dataclass(frozen=True)
class Crossing:
    """When the generator was first better than a teacher by one distance; ``images`` and ``seconds`` are None if it never was."""

    teacher: str
    level: float
    """The teacher's value."""
    true: bool
    """Whether it is the distance to clean images, or the proximal one."""
    images: int | None
    seconds: float | None


@dataclass(frozen=True)
class Selection:
    """One line of the table: one distance. None: there is no such number."""

    metric: str
    crossings: tuple[Crossing, ...]
    images: int | None
    """Of the checkpoint with the best proximal value, which needs no clean image to be found."""
    proximal: float | None
    true: float | None
    """Its true value."""
    best_true: float | None
    best_images: int | None
    gap: float | None
    """By how much the selected checkpoint is worse than the best one."""


def read_selection(path: Path | str) -> list[Measurement]:
    """The measurements in their order. What was measured twice counts once, as it was measured last; a line torn by a crash is left out.

    Raises:
        UserError: the file cannot be read, or a line is something else.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    found: dict[tuple[str, int], Measurement] = {}
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        try:
            measurement = _measurement(record)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number}: not a measurement of a selection ({error!r}); expected images, seconds, row, n, proximal and true."
                " Delete the line, or the file to do without it."
            ) from None
        found[measurement.row, measurement.images] = measurement
    return sorted(found.values(), key=lambda m: (m.row == GENERATOR, m.images))


def _measurement(record: Any) -> Measurement:
    values = [
        {str(name): float(value) for name, value in record[kind].items() if value is not None} for kind in ("proximal", "true")
    ]
    return Measurement(str(record["row"]), int(record["images"]), float(record["seconds"]), int(record["n"]), *values)


def selection_table(measurements: Sequence[Measurement]) -> list[Selection]:
    """A line for each distance of the generator, in the order in which they appear."""
    ours = sorted((m for m in measurements if m.row == GENERATOR), key=lambda m: m.images)
    teachers = [m for m in measurements if m.row != GENERATOR]
    names = dict.fromkeys(name for m in ours for name in (*m.true, *m.proximal))
    return [_selection(name, ours, teachers) for name in names]


def _selection(metric: str, ours: Sequence[Measurement], teachers: Sequence[Measurement]) -> Selection:
    selected = _best(metric, [(m, m.proximal.get(metric)) for m in ours])
    best = _best(metric, [(m, m.true.get(metric)) for m in ours])
    true = _known(selected.true.get(metric)) if selected else None
    best_true = best.true[metric] if best else None
    gap = None if true is None or best_true is None else abs(true - best_true)
    return Selection(
        metric=metric,
        crossings=tuple(crossing for teacher in teachers if (crossing := _crossing(metric, ours, teacher))),
        images=selected.images if selected else None,
        proximal=selected.proximal[metric] if selected else None,
        true=true,
        best_true=best_true,
        best_images=best.images if best else None,
        gap=gap,
    )


def _crossing(metric: str, ours: Sequence[Measurement], teacher: Measurement) -> Crossing | None:
    """By the true distance if both have it, else by the proximal one; nothing if there is neither."""
    level = _known(teacher.true.get(metric))
    true = level is not None and any(metric in m.true for m in ours)
    level = level if true else _known(teacher.proximal.get(metric))
    if level is None:
        return None
    values = [(m, _known((m.true if true else m.proximal).get(metric))) for m in ours]
    sign = _sign(metric)
    first = next((m for m, value in values if value is not None and sign * value < sign * level), None)
    return Crossing(teacher.row, level, true, first.images if first else None, first.seconds if first else None)


def _best(metric: str, values: Sequence[tuple[Measurement, float | None]]) -> Measurement | None:
    """The first of the best values."""
    known = [(m, value) for m, value in values if value is not None and math.isfinite(value)]
    return min(known, key=lambda pair: _sign(metric) * pair[1])[0] if known else None


def _sign(metric: str) -> int:
    return -1 if metric in HIGHER else 1


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
