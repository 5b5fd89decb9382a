"""What a page says of an experiment: its results, what was run on what data, and its curves, all read from its folder."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from .checkpoints import load_description
from .config import Experiment
from .domain import Domain, Size
from .errors import UserError
from .files import read_json, sha256
from .report_tables import Row, Score, label_of
from .reporting import Curve, Facts, duration, load_curves
from .runs import observations_path
from .selection_table import GENERATOR, Measurement, read_selection

PHASES = {"pretrain": "teacher", "distill": "rsd"}  # the folders of trainings, and the row that each makes
CIRCUMSTANCES = ("n", "features", "preprocessing", "bootstrap", "versions")


@dataclass(frozen=True)
class Results:
    """What a metrics.json holds: the rows, where the samples of each lie, and what the numbers depend on."""

    rows: Sequence[Row] = ()
    samples: Mapping[str, Path] = field(default_factory=dict)
    circumstances: Mapping[str, Any] = field(default_factory=dict)
    compared_with: Mapping[str, str | None] = field(default_factory=dict)
    """Hashes of the references and of the observations that they were measured against; empty of earlier versions."""


def results_of(experiment: Experiment) -> Results:
    """The results of an evaluation; empty if there was none."""
    path = experiment.folder / "evaluate" / "metrics.json"
    if not path.exists():
        return Results()
    try:
        results = read_json(path)
        rows = [
            Row(
                name=row["name"],
                seconds_per_image=row["seconds_per_image"],
                network_calls=row["network_calls"],
                metrics={name: Score(**score) for name, score in row["metrics"].items()},
                proximal={name: Score(**score) for name, score in row["proximal"].items()},
            )
            for row in results["rows"]
        ]
        hashes = results.get("samples_sha256", {})  # not there in older ones
        places = {name: _places(Path(place), experiment.folder) for name, place in results["samples"].items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not the results of an evaluation ({error!r}). Evaluate again.") from None
    samples = {name: _found(there, hashes.get(name), f"the row '{name}' of {path}") for name, there in places.items()}
    circumstances = {name: results[name] for name in CIRCUMSTANCES if name in results}
    return Results(rows, samples, circumstances, results.get("compared_with", {}))


def _places(samples: Path, folder: Path) -> list[Path]:
    """Where samples may lie now: an experiment's folder may have been moved, or be read from another place."""
    return [folder / samples.parent.name / samples.name, samples]


def _found(places: Sequence[Path], expected: str | None, row: str) -> Path:
    """The first file that a row was measured of; a :class:`UserError` if none of them is, or is any more."""
    there = [place for place in places if place.exists()]
    if not there:
        raise UserError(f"{places[-1]}: no such file, and {row} was measured of it. Sample and evaluate again.")
    if expected is None:
        return there[-1]
    found = next((place for place in there if sha256(place) == expected), None)
    if found is None:
        raise UserError(f"{there[0]}: not the images any more that {row} was measured of. Evaluate again.")
    return found


def phases_of(folder: Path) -> list[str]:
    """The trainings that were begun."""
    return [phase for phase in PHASES if (folder / phase / "config.yaml").exists()]


def curves_of(run: Path, row: str) -> list[Curve]:
    """Losses first, then gradients and what else there is."""
    log = run / "metrics.jsonl"
    curves = load_curves(log, row) if log.exists() else []
    return sorted(curves, key=lambda curve: not curve.y_label.startswith("loss"))


def provenance_of(run: Path) -> dict[str, Any]:
    """All but the settings, which config.yaml says."""
    path = run / "provenance.json"
    if not path.exists():
        return {}  # an imported network
    found = read_json(path)
    if not isinstance(found, dict):
        raise UserError(f"{path}: not the record of a run")
    return {name: value for name, value in found.items() if name != "settings"}


# What was run


def sizes_of_data(experiment: Experiment, domain: Domain) -> dict[Size, int]:
    """How many observations there are of each size; none if the data are not there any more."""
    path = observations_path(experiment)
    if not path.exists():
        return {}
    return {size: len(bucket) for size, bucket in domain.observations(path, experiment).buckets.items()}


def facts_of(experiment: Experiment, domain: Domain, sizes: Mapping[Size, int], circumstances: Mapping[str, Any]) -> Facts:
    """A few lines on each thing that was done."""
    folder = experiment.folder
    facts = [
        ("Data", [*_data_lines(folder, sizes)]),
        ("Corruption", [", ".join(_corruption(experiment, domain))]),
        ("Teacher", _training_lines(folder / "pretrain", experiment.pretrain.images, f"objective {experiment.objective.kind}")),
        (
            "Generator",
            _training_lines(folder / "distill", experiment.distill.images, f"divergence {experiment.distill.divergence}"),
        ),
        ("Evaluation", _evaluation_lines(circumstances)),
        ("Made with", _software_lines(folder)),
    ]
    return [(name, lines) for name, lines in facts if lines]


def _data_lines(folder: Path, sizes: Mapping[Size, int]) -> Iterator[str]:
    for (height, width), count in sizes.items():
        yield f"{count:,} observations, {height} × {width}"
    if not sizes:
        yield "observations.h5 is not there"
    digest = provenance_of(folder / "pretrain").get("inputs", {}).get("observations")
    yield f"SHA-256 {digest}" if digest else "SHA-256 not recorded"


def _corruption(experiment: Experiment, domain: Domain) -> list[str]:
    """What the configuration asks for; it is checked against the data whenever these are opened."""
    found = {key: value for key, value in domain.corruption(experiment).items() if value is not None and value is not False}
    return [f"{key} {short(value)}" if value is not True else key for key, value in found.items()]


def short(value: Any) -> str:
    """A setting in a few characters."""
    if isinstance(value, float):
        return f"{value:g}"
    return " × ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _training_lines(run: Path, images: int, how: str) -> list[str]:
    if not (run / "config.yaml").exists() and not (run / "model.json").exists():
        return []
    done, seconds = _progress(run)
    if (run / "model.json").exists():
        seen = load_description(run).images or done
        first = f"{seen:,} images" + (f" in {duration(seconds)}" if seconds else "")
    else:
        first = f"goes on: {done:,} of {images:,} images" + (f" after {duration(seconds)}" if seconds else "")
    return [first, how]


def _progress(run: Path) -> tuple[int, float]:
    """Images and seconds of the last whole line of a log."""
    log = run / "metrics.jsonl"
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.exists() else []
    for line in reversed(lines):
        try:
            found = json.loads(line)
            return int(found["images"]), float(found["seconds"])
        except (ValueError, KeyError, TypeError):
            continue  # torn by a crash, or being written
    return 0, 0.0


def _evaluation_lines(circumstances: Mapping[str, Any]) -> list[str]:
    if not circumstances:
        return ["nothing was evaluated yet"]
    lines = [f"n = {circumstances.get('n')} images a side", f"features {circumstances.get('features') or 'not recorded or none'}"]
    return [*lines, f"intervals from {circumstances['bootstrap']} resamples"] if circumstances.get("bootstrap") else lines


def _software_lines(folder: Path) -> list[str]:
    """Of the latest training."""
    found = next((p for phase in reversed(PHASES) if (p := provenance_of(folder / phase))), None)
    if found is None:
        return []
    versions = [f"{name} {version}" for name, version in (found.get("versions") or {}).items() if version]
    commit = [f"commit {found['commit']}"] if found.get("commit") else []
    place = [str(found[key]) for key in ("gpu", "device", "host") if found.get(key)]
    return [
        ", ".join([*versions[:2], *commit]),
        " on ".join(place),
        f"begun {str(found.get('started', 'at an unknown time'))[:16]}",
    ]


# Selection


def measurements_of(folder: Path) -> list[Measurement]:
    """Those of the distillation; empty if nothing was selected."""
    path = folder / "distill" / "selection.jsonl"
    return read_selection(path) if path.exists() else []


def curves_of_selection(measurements: Sequence[Measurement], features: str | None) -> list[Curve]:
    """For each distance the generator's true and proximal values, and the teachers' across the chart."""
    ours = [m for m in measurements if m.row == GENERATOR]
    names = dict.fromkeys(name for m in ours for name in (*m.true, *m.proximal))
    curves = []
    for name in names:
        draw = partial(Curve, x_label="images of the generator", y_label=label_of(name, features))
        for kind in ("true", "proximal"):
            dashed = kind == "proximal"
            found = [(m.images, getattr(m, kind)[name]) for m in ours if name in getattr(m, kind)]
            curves.append(draw(GENERATOR, [x for x, _ in found], [y for _, y in found], dashed=dashed))
            levels = [(m.row, getattr(m, kind)[name]) for m in measurements if m.row != GENERATOR and name in getattr(m, kind)]
            curves += [draw(row, (), (), dashed=dashed, level=level) for row, level in levels]
    return curves
