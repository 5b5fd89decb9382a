"""The verb ``evaluate``: of the rows of an experiment, of sets of images of any program, and of reconstructions beside their targets.

Every number stands in metrics.json with what it depends on: images a side, seeds, features, how values became display values, versions.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .config import EvaluateConfig, Experiment
from .domain import Domain, Law, Size
from .errors import UsageError, UserError
from .evaluation import Evaluator, comparison_options, evaluator
from .files import sha256, write_json
from .image_sets import Array, Preprocessing, preprocessing_of, read_set, volumes_in
from .metrics.compare import MIN_IMAGES, Options, Side, compare, floors_of, halves, require_something_to_see
from .metrics.phase import phase_histograms
from .metrics.pixel import VOLUME, complex_nrmse, inside, nmse, psnr
from .metrics.sliced import Indices
from .progress import Progress
from .runs import versions
from .samples import read_samples
from .tensors import Image

ORDER = {"observation": 0, "teacher": 1, "teacher+": 2, "rsd": 3}  # of rows; any others behind


def evaluate(experiment: Experiment, domain: Domain, out: Path | None = None, samples: Mapping[str, Path] | None = None) -> Path:
    """Distances of observations, teacher, generator and any other ``samples`` (row name -> samples.h5) into metrics.json."""
    out = out or experiment.folder / "evaluate"
    paths = {"teacher": experiment.folder / "pretrain" / "samples.h5", "rsd": experiment.folder / "distill" / "samples.h5"}
    if "observation" in (samples or {}):
        raise UsageError("the row 'observation' is that of the data themselves: name the samples otherwise")
    paths = {name: path for name, path in paths.items() if path.exists()} | dict(samples or {})
    if not paths:
        raise UserError(f"{experiment.folder}: no samples to evaluate. Make them: {domain.program}sample")
    judge, found = judge_of(experiment, domain, paths)
    with Progress("evaluate", 1 + len(found), "rows") as progress:
        true, proximal = judge.observation_scores()
        rows: list[dict[str, Any]] = [
            {"name": "observation", "seconds_per_image": None, "network_calls": None, "metrics": true, "proximal": proximal}
        ]
        for name, (images, attributes) in found.items():
            progress.update(len(rows), name)
            law = law_of_samples(domain, paths[name], attributes)
            with _naming(paths[name]):
                true, proximal = judge.true(images), judge.proximal(images, attributes["seeds"], law)
            rows.append(
                {
                    "name": name,
                    "seconds_per_image": attributes.get("seconds_per_image"),
                    "network_calls": attributes.get("network_calls"),
                    "seeds": [attributes["seeds"][0], attributes["seeds"][judge.n - 1]],
                    "metrics": true,
                    "proximal": proximal,
                }
            )
        progress.update(len(rows))
    rows.sort(key=lambda row: ORDER.get(row["name"], len(ORDER)))
    places = {name: str(path) for name, path in paths.items()}
    hashes = {name: sha256(path) for name, path in paths.items()}
    values = {**domain.values(judge.law), "clip": [0, 1], "quantisation": "8 bits", "size": judge.size}
    compared = {"references": _hash(judge.clean), "observations": _hash(judge.observed)}
    record = {"rows": rows, "samples": places, "samples_sha256": hashes, "compared_with": compared}
    write_json(out / "metrics.json", {**_circumstances(judge.n, judge.options, values), **record})
    return out


def _hash(side: Side | None) -> str | None:
    """What tells a set of display images from another."""
    return None if side is None else hashlib.sha256(np.ascontiguousarray(side.shown).tobytes()).hexdigest()[:16]


def judge_of(
    experiment: Experiment, domain: Domain, paths: Mapping[str, Path]
) -> tuple[Evaluator, dict[str, tuple[Image, dict[str, Any]]]]:
    """Samples, and what they are compared with: as many images a side as the smallest set allows."""
    found = {name: read_samples(path) for name, path in paths.items()}
    for name, (images, _) in found.items():
        if images.is_complex() != domain.complex_images or images.shape[1] != domain.channels:
            kind = (
                f"{'complex' if domain.complex_images else 'real'}, {domain.channels} channel{'s' if domain.channels > 1 else ''}"
            )
            raise UserError(
                f"{paths[name]}: {images.dtype} {tuple(images.shape)} found; expected images as the verb sample makes them here: {kind}."
                " Images of other programs are compared with --reference."
            )
    return evaluator(experiment, domain, min(len(images) for images, _ in found.values()), _one_size(found, paths)), found


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file before what is wrong with its images."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None


def _circumstances(n: int, options: Options, values: Mapping[str, Any]) -> dict[str, Any]:
    """What every number of an evaluation depends on."""
    return {
        "n": n,
        "features": options.extractor.name if options.extractor else None,
        "preprocessing": dict(values),
        "bootstrap": options.bootstrap,
        "seed": options.seed,
        "versions": versions(),
    }


def _one_size(found: Mapping[str, tuple[Image, Any]], paths: Mapping[str, Path]) -> Size:
    """The size of all samples."""
    sizes = {name: (images.shape[-2], images.shape[-1]) for name, (images, _) in found.items()}
    if len(set(sizes.values())) > 1:
        listed = ", ".join(f"{paths[name]} ({h} x {w})" for name, (h, w) in sizes.items())
        raise UserError(f"samples of several sizes cannot be compared: {listed}")
    return next(iter(sizes.values()))


def law_of_samples(domain: Domain, samples: Path, attributes: Mapping[str, Any]) -> Law | None:
    """The law from which the operators of samples were drawn: that of their run, which lies beside them if it was not moved."""
    folders = [samples.parent, Path(str(attributes.get("run", samples.parent)))]
    found = next((folder / "operators.h5" for folder in folders if (folder / "operators.h5").exists()), None)
    return None if found is None else domain.law(found)


def evaluate_sets(config: EvaluateConfig, reference: Path, samples: Mapping[str, Path], out: Path, device: str = "cpu") -> Path:
    """Distances of sets of images to a reference, whatever program made them (:mod:`rsdmri.image_sets`), into metrics.json.

    n a side is the same for all rows: that of the smallest set, and at most half of the reference.
    """
    truth, owners = read_set(reference)
    values = preprocessing_of(truth, reference)
    sets = {name: read_set(path) for name, path in samples.items()}
    for name, (array, _) in sets.items():
        if array.shape[1:] != truth.shape[1:]:
            raise UserError(
                f"{samples[name]}: images of {_shape(array)}, and the reference {reference} has {_shape(truth)}. Bring both to one size and"
                " kind before: resizing here would be another preprocessing."
            )
    smallest = min(sets, key=lambda name: len(sets[name][0]))
    fewest = len(sets[smallest][0])
    with _naming(samples[smallest] if fewest < MIN_IMAGES else reference):
        n, first, second = halves(len(truth), fewest, config.n, groups=owners)
    options = comparison_options(config, device, out / "features")
    clean, other = (_side(truth[part], values, reference, owners, part) for part in (first, second))
    with _naming(reference):
        for side in (clean, other):
            require_something_to_see(np.asarray(side.shown))
    rows: list[dict[str, Any]] = []
    with Progress("evaluate", len(sets), "rows") as progress:
        progress.update(0, "floors")
        floors = floors_of(clean, other, options)
        for name, (array, files) in sets.items():
            progress.update(len(rows), name)
            # Not the first ones: files are sorted by class or scan.
            chosen = np.sort(np.random.default_rng(options.seed).permutation(len(array))[:n])
            with _naming(samples[name]):
                found = compare(_side(array[chosen], values, samples[name], files, chosen), clean, other, options, floors)
            rows.append({"name": name, "seconds_per_image": None, "network_calls": None, "metrics": found, "proximal": {}})
        progress.update(len(rows))
    places = {name: str(path) for name, path in samples.items()}
    circumstances = _circumstances(n, options, {**values.record(), "size": truth.shape[1:3]})
    kept_together = None if owners is None else len(set(owners))
    record = {"reference": str(reference), "reference_files": kept_together, "rows": rows, "samples": places}
    write_json(out / "metrics.json", {**circumstances, **record})
    return out


def _shape(array: Array) -> str:
    return " x ".join(map(str, array.shape[1:]))


def _side(images: Array, values: Preprocessing, place: Path, owners: Sequence[str] | None, part: Indices) -> Side:
    """Of images of several files, those of one are one scan's: in one part, and drawn again together."""
    phases = phase_histograms(images) if np.iscomplexobj(images) else None
    groups = None if owners is None else np.unique([owners[index] for index in part], return_inverse=True)[1]
    return Side(values(images, place), phases, groups)


def evaluate_pairs(reference: Path, samples: Mapping[str, Path], out: Path) -> Path:
    """Reconstructions beside their targets, file by file of one name, as fastMRI measures volumes, into metrics.json.

    A reconstruction that is larger than its target is cut about its centre, as fastMRI's are.
    """
    targets = volumes_in(reference)
    rows = []
    for name, path in samples.items():
        volumes = volumes_in(path)
        missing = sorted(targets.keys() - volumes.keys())
        if missing:
            raise UserError(
                f"{path}: no reconstruction of {', '.join(missing[:3])}{' and others' if len(missing) > 3 else ''}, which {reference} holds."
                " Files are paired by their names."
            )
        with Progress(f"evaluate {name}", len(targets), "volumes") as progress:
            found = {}
            for number, (volume, target) in enumerate(targets.items(), 1):  # one at a time: all of them may be many gigabytes
                found[volume] = _pair(target(), volumes[volume](), path / volume)
                progress.update(number, volume)
        keys = [key for key in next(iter(found.values())) if all(key in scores for scores in found.values())]
        columns = {key: [scores[key] for scores in found.values()] for key in keys}
        means = {key: _mean(column) for key, column in columns.items()}
        errors = {key: _error(column) for key, column in columns.items()}
        rows.append({"name": name, "mean": means, "standard_error": errors, "volumes": found})
    places = {name: str(path) for name, path in samples.items()}
    result = {"n": len(targets), "reference": str(reference), "rows": rows, "samples": places, "versions": versions()}
    write_json(out / "metrics.json", result)
    return out


def _mean(values: Sequence[float | None]) -> float | None:
    """Over the volumes that have a value: one that is exact has no PSNR."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _error(values: Sequence[float | None]) -> float | None:
    """The standard error of the mean; None for one volume."""
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None


def _pair(target: Array, image: Array, place: Path) -> dict[str, float | None]:
    image = _cut(image, target.shape, place)
    scores: dict[str, float | None] = {}
    try:
        if np.iscomplexobj(target) and np.iscomplexobj(image):
            scores["complex_nrmse"] = complex_nrmse(target, image)
        # What is real stays as it is, as for fastMRI: networks leave negative values, too.
        shown, truth = (np.abs(array) if np.iscomplexobj(array) else array for array in (image, target))
        values = {name: metric(truth, shown) for name, metric in VOLUME.items()}
        # Combined by coil maps, a target is zero outside their support; of others that is everything.
        values |= {f"inside_{metric.__name__}": inside(metric, truth, shown, truth > 0) for metric in (nmse, psnr)}
    except UserError as error:
        raise UserError(f"{place}: {error}") from None
    return {**{name: value if np.isfinite(value) else None for name, value in values.items()}, **scores}


def _cut(image: Array, shape: tuple[int, ...], place: Path) -> Array:
    """An image (slices, H, W) at the target's matrix."""
    if image.ndim != 3 or len(shape) != 3 or len(image) != shape[0] or image.shape[1] < shape[1] or image.shape[2] < shape[2]:
        raise UserError(
            f"{place}: {' x '.join(map(str, image.shape))}, and its target {' x '.join(map(str, shape))}. Expected as many slices, and"
            " at least as many rows and columns, of which the middle ones are compared."
        )
    top, left = ((image.shape[axis] - shape[axis]) // 2 for axis in (1, 2))
    return image[:, top : top + shape[1], left : left + shape[2]]


def table_of(result: Mapping[str, Any]) -> str:
    """A metrics.json as a table for a terminal: a line a row, a column a distance, with its interval and its floor."""
    if "mean" in result["rows"][0]:
        names = list(result["rows"][0]["mean"])
        lines = [["", *names]] + [
            [row["name"], *(_with_error(row["mean"][name], row["standard_error"][name]) for name in names)]
            for row in result["rows"]
        ]
        return f"{result['n']} volumes, mean ± standard error\n{_aligned(lines)}"
    parts = []
    for group, title in (("metrics", "to the references"), ("proximal", "corrupted again, to the observations")):
        names = list(dict.fromkeys(name for row in result["rows"] for name in row[group]))
        if names:
            lines = [["", *(row["name"] for row in result["rows"]), "floor"]]
            for name in names:
                scores = [row[group].get(name) for row in result["rows"]]
                floor = next(score["floor"] for score in scores if score is not None)
                lines.append([name, *(_score(score) for score in scores), f"{floor:.3g}"])
            parts.append(f"{title}, {result['n']} images a side, features: {result['features'] or 'none'}\n{_aligned(lines)}")
    return "\n\n".join(parts)


def _with_error(mean: float | None, error: float | None) -> str:
    if mean is None:
        return "exact"
    return f"{mean:.4g}" if error is None else f"{mean:.4g} ± {error:.2g}"


def _score(score: Mapping[str, Any] | None) -> str:
    if score is None:
        return "-"
    if score["low"] is None:
        return f"{score['value']:.3g}"
    return f"{score['value']:.3g} [{score['low']:.3g}, {score['high']:.3g}]"


def _aligned(lines: list[list[str]]) -> str:
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines)
