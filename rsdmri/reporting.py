"""Self-contained pages, and the same numbers as JSON, from the results of one experiment or of several.

A page loads nothing: styles, script, images and charts are inside it, so that it can be mailed, archived and opened from a cluster.
Everything that it shows is passed in; of files, only the log format of a training run is known here.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from .files import write_json, write_text
from .report_charts import Curve, charts, load_curves
from .report_images import Grid, Neighbours, Yardstick, grid_of, pairs_of, phase_key
from .report_tables import Row, Score, comparison, label_of, tables
from .selection_table import Selection

__all__ = [
    "Comparison",
    "Curve",
    "Grid",
    "Neighbours",
    "Report",
    "Row",
    "Score",
    "Yardstick",
    "load_curves",
    "write_comparison",
    "write_report",
]

TEMPLATES = Path(__file__).with_name("report_page")
Facts = Sequence[tuple[str, Sequence[str]]]
"""What was run, in a few lines each: a heading and what stands under it."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the page of one experiment shows; what is empty is left out."""

    title: str
    summary: str = ""
    """A paragraph in plain language; empty: one that the rows allow."""
    facts: Facts = ()
    rows: Sequence[Row] = ()
    """Columns of the table, in their order; ``None`` and NaN show as missing. Empty: nothing was evaluated yet."""
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    """What the numbers depend on, as metrics.json has it: features, preprocessing, n, bootstrap, versions."""
    curves: Sequence[Curve] = ()
    selection: Sequence[Selection] = ()
    selection_curves: Sequence[Curve] = ()
    images: Sequence[Grid] = ()
    """Side by side in their order."""
    neighbours: Sequence[Neighbours] = ()
    yardstick: Yardstick | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    refresh: float | None = None
    """Seconds after which a browser reads the page again."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What the page of several experiments shows. Mappings are by the names of the experiments, in the order of the columns."""

    title: str
    rows: Mapping[str, Sequence[Row]]
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    """What the numbers of all of them depend on."""
    facts: Mapping[str, Facts] = field(default_factory=dict)
    differences: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """Settings that are not the same everywhere: the value of each experiment."""
    curves: Sequence[Curve] = ()
    selection: Mapping[str, Sequence[Selection]] = field(default_factory=dict)
    images: Mapping[str, Sequence[Grid]] = field(default_factory=dict)
    """By what made them: a grid for each experiment that has one."""
    compared: str = ""
    """Whether what they are measured against is the same."""
    refresh: float | None = None


def write_report(folder: Path | str, report: Report) -> None:
    """Writes ``report.html`` and ``report.json`` into ``folder``.

    Raises:
        UserError: a grid does not hold images.
    """
    found = tables(report.rows, _features(report))
    page = _rendered(
        "run.html",
        report,
        rows={row.name: row for row in report.rows},
        tables=found,
        charts=charts(report.curves),
        selection_charts=charts(report.selection_curves),
        grids=[grid_of(grid) for grid in report.images],
        neighbours=[pairs_of(pairs) for pairs in report.neighbours],
    )
    distances = {pairs.title: list(pairs.distances) for pairs in report.neighbours}
    result = {
        "title": report.title,
        "evaluation": dict(report.circumstances),
        "rows": [asdict(row) for row in report.rows],
        "selection": [asdict(line) for line in report.selection],
        "neighbours": {"distances": distances, "observations": asdict(report.yardstick)} if report.yardstick else None,
        "facts": {name: list(lines) for name, lines in report.facts},
        "provenance": dict(report.provenance),
        "config": report.config_text,
    }
    _write(Path(folder), page, result)


def write_comparison(folder: Path | str, report: Comparison) -> None:
    """Writes ``report.html`` and ``report.json`` of several experiments into ``folder``."""
    page = _rendered(
        "comparison.html",
        report,
        tables=comparison(report.rows, _features(report)),
        names=list(dict.fromkeys(row.name for rows in report.rows.values() for row in rows)),
        by_name={run: {row.name: row for row in rows} for run, rows in report.rows.items()},
        fact_names=dict.fromkeys(name for facts in report.facts.values() for name, _ in facts),
        selection_metrics=dict.fromkeys(line.metric for lines in report.selection.values() for line in lines),
        charts=charts(report.curves),
        groups={name: [grid_of(grid) for grid in grids] for name, grids in report.images.items()},
    )
    result = {
        "title": report.title,
        "evaluation": dict(report.circumstances),
        "runs": {run: [asdict(row) for row in rows] for run, rows in report.rows.items()},
        "selection": {run: [asdict(line) for line in lines] for run, lines in report.selection.items()},
        "differences": {key: list(values) for key, values in report.differences.items()},
        "facts": {run: {name: list(lines) for name, lines in facts} for run, facts in report.facts.items()},
    }
    _write(Path(folder), page, result)


def _write(folder: Path, page: str, result: Mapping[str, Any]) -> None:
    write_json(folder / "report.json", _finite(result))
    write_text(folder / "report.html", page)


def _rendered(template: str, report: Report | Comparison, **found: Any) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(number=number, duration=duration, json_text=_json_text)
    features = _features(report)
    # Our own files, which go into the page as they are: nothing of a run is in them.
    assets = {name: (TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", "script.js")}
    return environment.get_template(template).render(
        report=report,
        style=assets["style.css"],
        script=assets["script.js"],
        phase_key=phase_key(),
        label_of=lambda metric: label_of(metric, features),
        **found,
    )


def _features(report: Report | Comparison) -> str | None:
    features = report.circumstances.get("features")
    return str(features) if features else None


def _finite(value: Any) -> Any:
    """The same tree with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _json_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    line = json.dumps(value, default=str, ensure_ascii=False)
    return line if len(line) < 80 else json.dumps(value, indent=2, default=str, ensure_ascii=False)


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
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size * (2 if unit in ("h", "min") else 1):
            return f"{number(seconds / size)} {unit}"
    return f"{number(seconds / 1e-6)} µs"
