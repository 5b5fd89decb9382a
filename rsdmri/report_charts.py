"""Curves of a training run, read from its log and laid out as charts for the report.

Only geometry is computed here: positions, paths and ticks in the units of the chart. The markup is
in ``report_page/parts.html``.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

POINTS = 1000  # of a curve on the page: what zooming in can show
FEW = 24  # up to so many points of a curve are marked
SMOOTHING = 40  # a running mean spans one part in so many of a curve
LOG_RATIO = 20  # positive values that span more than this are drawn on a logarithmic axis
WIDTH, HEIGHT = 400, 250  # of a chart
LEFT, RIGHT, TOP, BOTTOM = 46, 18, 12, 42  # its margins
CLOCKS = ("images", "seconds")  # keys of a log line that say when, not how well


@dataclass(frozen=True)
class Curve:
    """One line of a chart; curves of one ``x_label`` and ``y_label`` share a chart."""

    label: str
    x: Sequence[float]
    y: Sequence[float]
    x_label: str = "images seen"
    y_label: str = "loss"
    raw: Sequence[float] = ()
    """The values before smoothing, drawn faintly behind; empty for none."""
    dashed: bool = False
    """A second kind of curve in one chart."""
    level: float | None = None
    """A horizontal line across the chart instead of a curve: ``x`` and ``y`` are empty."""


# Reading


def load_curves(metrics_jsonl: Path | str, label: str = "") -> list[Curve]:
    """The curves in a run's ``metrics.jsonl``: one for each numeric key but the clocks.

    A run that went back to a checkpoint repeats some numbers of images: the later line holds. A
    line torn by a crash is skipped, wherever it is, because a resumed run writes on behind it.

    Args:
        label: the name of the run in the charts; by default each curve has the name of its key.

    Raises:
        UserError: the file cannot be read.
    """
    try:
        text = Path(metrics_jsonl).read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise UserError(f"{metrics_jsonl}: cannot be read ({error.strerror})") from None
    found: dict[str, dict[float, float]] = {}
    for record in map(_numbers, text.splitlines()):
        for key in record.keys() - CLOCKS if "images" in record else ():
            found.setdefault(key, {})[record["images"]] = record[key]
    return [_smoothed(key.replace("_", " "), label, found[key]) for key in sorted(found)]


def _numbers(line: str) -> dict[str, float]:
    """The numeric entries of one line; none if it is torn."""
    try:
        record = json.loads(line)
    except ValueError:
        return {}
    items = record.items() if isinstance(record, dict) else ()
    return {k: float(v) for k, v in items if isinstance(v, int | float) and not isinstance(v, bool)}


def _smoothed(name: str, label: str, points: dict[float, float]) -> Curve:
    x = sorted(points)
    raw = [points[at] for at in x]
    width = 2 * (len(raw) // SMOOTHING // 2) + 1
    smooth = running_mean(raw, width) if width > 1 else raw
    return Curve(label or name, x, smooth, y_label=name, raw=raw if width > 1 else ())


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean over ``width`` values about each one, of those that exist and are finite."""
    array = np.asarray(values, float)
    finite = np.isfinite(array)
    box = np.ones(width)
    total = np.convolve(np.where(finite, array, 0.0), box, "same")
    count = np.convolve(finite.astype(float), box, "same")
    count[count < 0.5] = np.nan
    mean: list[float] = (total / count).tolist()
    return mean


# Drawing


class Axis:
    """Maps values to positions along one side of a chart, and chooses its ticks."""

    def __init__(self, values: NDArray[np.float64], start: float, end: float, log: bool) -> None:
        self.start, self.end, self.log = start, end, log
        shown = np.log10(values) if log else values
        self.low, self.high = float(shown.min()), float(shown.max())
        if self.low == self.high:
            margin = 0.1 * abs(self.low) or 1.0
            self.low, self.high = self.low - margin, self.high + margin

    def pad(self, part: float) -> None:
        """Leaves a part of the range free at both ends."""
        margin = part * (self.high - self.low)
        self.low, self.high = self.low - margin, self.high + margin

    def __call__(self, values: Sequence[float]) -> NDArray[np.float64]:
        """Positions; NaN for what the axis cannot show."""
        array = np.asarray(values, float)
        if self.log:
            array = np.log10(np.where(array > 0, array, np.nan))
        part = (array - self.low) / (self.high - self.low)
        return self.start + part * (self.end - self.start)

    def ticks(self) -> list[dict[str, Any]]:
        """Position and text of each tick."""
        values = self._decades() if self.log else self._steps(5)
        return [{"at": round(float(self([v])[0]), 1), "text": short(v)} for v in values]

    def _steps(self, count: int) -> list[float]:
        rough = (self.high - self.low) / count
        unit = 10 ** math.floor(math.log10(rough))
        step = unit * min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * unit / rough)))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [index * step for index in range(first, last + 1)]

    def _decades(self) -> list[float]:
        factors = (1, 2, 5) if self.high - self.low < 3 else (1,)
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        values = [factor * 10.0**decade for decade in decades for factor in factors]
        return [v for v in values if self.low <= math.log10(v) <= self.high]


def short(value: float) -> str:
    """A tick's text: 200k, 1.2M, 0.05."""
    for size, unit in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.6g}{unit}".replace("-", "−")
    return f"{value:.6g}".replace("-", "−")


def charts(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """What the template draws: a chart for each pair of labels, in the order of the curves."""
    groups: dict[tuple[str, str], list[Curve]] = {}
    for curve in curves:
        groups.setdefault((curve.x_label, curve.y_label), []).append(curve)
    return [_chart(*labels, group) for labels, group in groups.items() if any(map(_has_points, group))]


def _has_points(curve: Curve) -> bool:
    return any(map(math.isfinite, curve.y))


def _chart(x_label: str, y_label: str, curves: Sequence[Curve]) -> dict[str, Any]:
    curves = [curve for curve in curves if _has_points(curve) or (curve.level is not None and math.isfinite(curve.level))]
    x = np.concatenate([np.asarray(curve.x, float) for curve in curves])
    if 0 < x.min() < 0.2 * x.max():
        x = np.append(x, 0.0)  # training began there
    y = np.concatenate([_extent(curve) for curve in curves])
    log = bool(y.min() > 0 and y.max() > LOG_RATIO * y.min())
    x_axis = Axis(x, LEFT, WIDTH - RIGHT, log=False)
    y_axis = Axis(y, HEIGHT - BOTTOM, TOP, log=log)
    y_axis.pad(0.06)
    frame = (LEFT, TOP, WIDTH - RIGHT, HEIGHT - BOTTOM)
    lines = [_line(curve, x_axis, y_axis) for curve in curves]
    return {
        "size": (WIDTH, HEIGHT),
        "frame": frame,
        "x_label": x_label,
        "y_label": y_label,
        "log": log,
        "x_ticks": x_axis.ticks(),
        "y_ticks": y_axis.ticks(),
        "lines": lines,
        # For moving about in it: the ends of the axes (of a logarithmic one in powers of ten), and what is at each point.
        "data": {
            "frame": frame,
            "x": (x_axis.low, x_axis.high),
            "y": (y_axis.low, y_axis.high),
            "log": log,
            "lines": [{"points": line.pop("points"), "level": line["level"]} for line in lines],
        },
    }


def _extent(curve: Curve) -> NDArray[np.float64]:
    """What has to be in the picture: the curve, and its raw values but for a few outliers."""
    y, raw = (np.asarray(values, float) for values in (curve.y if curve.level is None else [curve.level], curve.raw))
    raw = raw[np.isfinite(raw)]
    return np.concatenate([y[np.isfinite(y)], np.percentile(raw, (2, 98)) if len(raw) else raw])


def _line(curve: Curve, x_axis: Axis, y_axis: Axis) -> dict[str, Any]:
    about = {"label": curve.label, "dashed": curve.dashed, "level": curve.level, "raw": "", "marks": "", "points": []}
    if curve.level is not None:
        at = y_axis([curve.level])
        return {**about, "path": _path(np.array([LEFT, WIDTH - RIGHT]), at.repeat(2))}
    chosen = np.unique(np.linspace(0, len(curve.x) - 1, POINTS).round().astype(int))
    x, y = (np.asarray(values, float)[chosen] for values in (curve.x, curve.y))
    raw = np.asarray(curve.raw, float)[chosen] if len(curve.raw) else y[:0]
    across, up = x_axis(x), y_axis(y)
    return {
        **about,
        "path": _path(across, up),
        "raw": _path(across, y_axis(raw)) if len(raw) else "",
        # A stroke without length is a dot that stays round when the chart is stretched.
        "marks": "".join(f"M{a:.1f} {b:.1f}h0" for a, b in zip(across, up, strict=True) if len(x) <= FEW and np.isfinite(b)),
        "points": [[float(f"{a:.6g}"), float(f"{b:.4g}")] for a, b, place in zip(x, y, up, strict=True) if np.isfinite(place)],
    }


def _path(across: NDArray[np.float64], up: NDArray[np.float64]) -> str:
    """SVG path data; it pauses where a value is missing."""
    parts, pen = [], "M"
    for x, y in zip(across, up, strict=True):
        if np.isfinite(y):
            parts.append(f"{pen}{x:.1f} {y:.1f}")
        pen = "L" if np.isfinite(y) else "M"
    return "".join(parts)
