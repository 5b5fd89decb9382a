"""Scores laid out as tables: what is best, what is worse than the observations, and how long each bar is.

Two layouts of the same cells. Of one experiment a line is a distance and a column is what makes images; of several experiments a table is a
distance, a line is what makes images and a column is an experiment, as in the tables of the papers.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .metrics.compare import HIGHER

OBSERVATION = "observation"  # the row that every other one has to beat
KINDS = {"metrics": "From the clean images", "proximal": "From the observed data (proximal)"}
LABELS = {
    "swd": "SWD",
    "psd": "PSD gap",
    "frechet": "Fréchet",
    "kid": "KID",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "phase": "Phase",
}
OF_FEATURES = ("frechet", "kid")  # which have names of their own with the features of Inception


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


def label_of(metric: str, features: str | None = None) -> str:
    """What a distance is called: with the features of Inception FID and KID, with any others not so."""
    if metric in OF_FEATURES and features:
        if features.startswith("inception"):
            return {"frechet": "FID", "kid": "KID"}[metric]
        return f"{LABELS[metric]} ({features.split()[0]})"
    return LABELS.get(metric, metric)


def known(value: float | None) -> float | None:
    """A number, or None for what is missing or not finite."""
    return None if value is None or not math.isfinite(value) else float(value)


def tables(rows: Sequence[Row], features: str | None = None) -> list[dict[str, Any]]:
    """Of one experiment: for each kind of distance that there is, a line for each distance with a cell for each row."""
    return [table for kind in KINDS if (table := _table(rows, kind, features))["lines"]]


def _table(rows: Sequence[Row], kind: str, features: str | None) -> dict[str, Any]:
    scores = [_scores(row, kind) for row in rows]
    counts = {score.n for by_name in scores for score in by_name.values()}
    lines = []
    for name in dict.fromkeys(name for by_name in scores for name in by_name):
        found = [by_name.get(name) for by_name in scores]
        floors = {known(score.floor) for score in found if score}
        floor = floors.pop() if len(floors) == 1 else None
        cells = _cells(rows, found, kind, name)
        _measure(cells)
        lines.append({**_named(name, features), "cells": cells, "floor": floor, "one_floor": not floors})
    return {"kind": kind, "title": KINDS[kind], "n": counts.pop() if len(counts) == 1 else None, "lines": lines}


def comparison(runs: Mapping[str, Sequence[Row]], features: str | None = None) -> list[dict[str, Any]]:
    """Of several experiments, by their names: for each distance a table with a line for each row and a column for each experiment."""
    names = list(dict.fromkeys(row.name for rows in runs.values() for row in rows))
    result = []
    for kind in KINDS:
        scores = {run: [_scores(row, kind) for row in rows] for run, rows in runs.items()}
        metrics = dict.fromkeys(name for of_run in scores.values() for by_name in of_run for name in by_name)
        for metric in metrics:
            columns = [
                _by_row(rows, [by_name.get(metric) for by_name in scores[run]], kind, metric) for run, rows in runs.items()
            ]
            _measure([cell for column in columns for cell in column.values()])
            lines = [{"name": name, "cells": [column.get(name) or _cell(None) for column in columns]} for name in names]
            floors = [next((c["floor"] for c in column.values() if c["floor"] is not None), None) for column in columns]
            result.append({"kind": kind, "title": KINDS[kind], **_named(metric, features), "lines": lines, "floors": floors})
    return result


def _by_row(rows: Sequence[Row], scores: Sequence[Score | None], kind: str, metric: str) -> dict[str, dict[str, Any]]:
    return {row.name: cell for row, cell in zip(rows, _cells(rows, scores, kind, metric), strict=True)}


def _scores(row: Row, kind: str) -> Mapping[str, Score]:
    scores: Mapping[str, Score] = getattr(row, kind)
    return scores


def _named(metric: str, features: str | None) -> dict[str, Any]:
    return {"metric": metric, "label": label_of(metric, features), "higher": metric in HIGHER}


def _cells(rows: Sequence[Row], scores: Sequence[Score | None], kind: str, metric: str) -> list[dict[str, Any]]:
    """What a page says about each row under one distance.

    Under a proximal distance the observations are compared with themselves: they are no rival there.
    """
    sign = -1 if metric in HIGHER else 1
    cells = [_cell(score) for score in scores]
    rivals = [
        cell["value"]
        for row, cell in zip(rows, cells, strict=True)
        if cell["value"] is not None and not (kind == "proximal" and row.name == OBSERVATION)
    ]
    observed = None
    if kind != "proximal":
        observed = next((cell["value"] for row, cell in zip(rows, cells, strict=True) if row.name == OBSERVATION), None)
    best = min((sign * value for value in rivals), default=None) if len(set(rivals)) > 1 else None
    for row, cell in zip(rows, cells, strict=True):
        value, floor = cell["value"], cell["floor"]
        if value is None:
            continue
        rival = not (kind == "proximal" and row.name == OBSERVATION)
        cell["best"] = rival and sign * value == best
        cell["worse"] = observed is not None and sign * value > sign * observed
        cell["at_floor"] = rival and floor is not None and sign * value <= sign * floor
    return cells


def _cell(score: Score | None) -> dict[str, Any]:
    found = {name: known(getattr(score, name)) if score else None for name in ("value", "low", "high", "floor")}
    return {**found, "n": score.n if score else None, "best": False, "worse": False, "at_floor": False, "bar": None}


def _measure(cells: Sequence[dict[str, Any]]) -> None:
    """Bars, intervals and marks of cells that can be compared, in percent of the largest; what is below zero is at its beginning."""
    ends = [cell[name] for cell in cells for name in ("value", "high", "floor") if cell[name] is not None]
    largest = max(ends, default=0.0)
    if largest <= 0:
        largest = 1.0
    for cell in cells:
        if cell["value"] is None:
            continue
        part = {
            name: None if cell[name] is None else 100 * max(0.0, cell[name]) / largest
            for name in ("value", "low", "high", "floor")
        }
        cell["bar"] = part
