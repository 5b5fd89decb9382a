"""One self-contained page, and the same numbers as JSON, from the results of an experiment.

The page loads nothing: styles, script, images and charts are inside it, so that it can be mailed,
archived and opened from a cluster. Everything that it shows is passed in; of files, only the log
format of a training run is known here.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jinja2 import Environment, StrictUndefined
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .files import write_json, write_text
from .grids import pixels_of
from .report_charts import Curve, charts, load_curves

__all__ = ["Curve", "Grid", "Row", "Score", "load_curves", "write_report"]

TEMPLATE = Path(__file__).with_name("report_template.html")
OBSERVATION = "observation"  # the row that every other one has to beat
SHARP = 192  # small images are enlarged to this by repetition: a browser would blur them
Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Score:
    """A distance to a reference, beside the distance between two halves of the reference."""

    value: float | None
    floor: float | None
    n: int
    """Images a side."""
    low: float | None = None
    high: float | None = None
    """The ends of its interval of 95 %."""


@dataclass(frozen=True)
class Row:
    """What makes images (``observation``, ``teacher``, ``rsd``, ...) and how well it does."""

    name: str
    seconds_per_image: float | None = None
    network_calls: int | None = None
    metrics: Mapping[str, Score] = field(default_factory=dict)
    """Distances to clean reference images."""
    proximal: Mapping[str, Score] = field(default_factory=dict)
    """Distances to the observed data, of images that were corrupted in the same way."""


@dataclass(frozen=True)
class Grid:
    """Some images of one kind: ``(n, H, W)`` or ``(n, H, W, 3)``, display values in [0, 1]."""

    title: str
    images: ArrayLike
    caption: str = ""


def write_report(
    folder: Path | str,
    title: str,
    rows: Sequence[Row],
    curves: Sequence[Curve],
    images: Sequence[Grid],
    provenance: Mapping[str, Any],
    config_text: str,
    summary: str = "",
) -> None:
    """Writes ``report.html`` and ``report.json`` into ``folder``.

    Args:
        rows: the lines of the table, in their order; ``None`` and NaN show as missing.
        images: the grids, side by side in their order.
        summary: a paragraph in plain language; empty: one that the rows allow.

    Raises:
        UserError: a grid does not hold images.
    """
    groups = [_group(rows, "metrics"), _group(rows, "proximal")]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=number, duration=duration, json_text=_json_text)
    page = environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        title=title,
        summary=summary,
        rows={row.name: row for row in rows},
        groups=groups,
        worse={row.name: _worse(row.name, groups) for row in rows},
        charts=charts(curves),
        grids=[_grid(grid) for grid in images],
        provenance=provenance,
        config_text=config_text,
    )
    write_json(Path(folder) / "report.json", {"rows": [_finite(asdict(row)) for row in rows]})
    write_text(Path(folder) / "report.html", page)


def _finite(value: Any) -> Any:
    """The same tree with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    line = json.dumps(value, default=str, ensure_ascii=False)
    return line if len(line) < 80 else json.dumps(value, indent=2, default=str, ensure_ascii=False)


# Numbers


def number(value: float | None) -> str:
    """Three significant digits, without an exponent where it can be helped; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    if value and not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}".replace("-", "−")
    digits = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}".replace("-", "−")


def duration(seconds: float | None) -> str:
    """A time in the unit that fits it."""
    if seconds is None or not math.isfinite(seconds):
        return "–"
    for unit, size in (("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * (2 if unit == "min" else 1):
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-6)} µs"


def _known(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


# The table


def _group(rows: Sequence[Row], kind: str) -> dict[str, Any]:
    """The columns of one kind of distance; ``n`` if it is the same everywhere."""
    scores: list[Mapping[str, Score]] = [getattr(row, kind) for row in rows]
    names = list(dict.fromkeys(name for by_name in scores for name in by_name))
    counts = {score.n for by_name in scores for score in by_name.values()}
    return {
        "kind": kind,
        "n": counts.pop() if len(counts) == 1 else None,
        "columns": [
            {"name": name, "cells": _column(rows, [by_name.get(name) for by_name in scores], kind == "proximal")}
            for name in names
        ],
    }


def _column(rows: Sequence[Row], scores: Sequence[Score | None], proximal: bool) -> dict[str, dict[str, Any]]:
    """What the page says about each row under one distance, by the name of the row.

    Under a proximal distance the observations are compared with themselves: they are no rival there.
    """
    values = [_known(score.value) if score else None for score in scores]
    floors = [_known(score.floor) if score else None for score in scores]
    found = [v for row, v in zip(rows, values, strict=True) if v is not None and not (proximal and row.name == OBSERVATION)]
    observed = [v for row, v in zip(rows, values, strict=True) if row.name == OBSERVATION]
    limit = math.inf if proximal else next((v for v in observed if v is not None), math.inf)
    largest = max([*found, *(floor for floor in floors if floor is not None)], default=0.0) or 1.0
    cells = {}
    for row, score, value, floor in zip(rows, scores, values, floors, strict=True):
        cells[row.name] = {
            "value": value,
            "floor": floor,
            "n": score.n if score else None,
            "best": len(found) > 1 and value == min(found) and not (proximal and row.name == OBSERVATION),
            "worse": value is not None and value > limit,
            "at_floor": value is not None and floor is not None and value <= floor,
            "length": 100 * (value or 0.0) / largest,
            "tick": None if floor is None else 100 * floor / largest,
        }
    return cells


def _worse(name: str, groups: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """The kinds and names of the distances in which a row is worse than the observations."""
    columns = [(group["kind"], column) for group in groups for column in group["columns"]]
    return [(kind, column["name"]) for kind, column in columns if column["cells"][name]["worse"]]


# Images


def _grid(grid: Grid) -> dict[str, Any]:
    pixels = pixels_of(grid.images)
    columns = min(6, math.ceil(math.sqrt(len(pixels))))
    uris = [_data_uri(image) for image in pixels]
    return {"title": grid.title, "caption": grid.caption, "columns": columns, "images": uris}


def _data_uri(image: Pixels) -> str:
    factor = max(1, SHARP // max(image.shape[:2]))
    stream = io.BytesIO()
    Image.fromarray(image.repeat(factor, 0).repeat(factor, 1)).save(stream, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
