"""Images of an experiment as a page shows them: of every row, of the references, and the training images nearest to what was made."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .config import Experiment
from .domain import Domain, Law, Observations
from .evaluating import ORDER, judge_of, law_of_samples
from .evaluation import AT_ONCE, Evaluator, clean_images
from .metrics.coverage import nearest
from .progress import track
from .report_images import MOST_COMPARED, Grid, Neighbours, Yardstick, features_of, shows, yardstick_of
from .runs import observations_path
from .samples import read_samples
from .tensors import Image

SHOWN, SHOWN_OF_MANY = 16, 9  # images of each grid, of one experiment and of each of several


@dataclass(frozen=True)
class Pictures:
    """Images of every row, and the training images nearest to them."""

    grids: Sequence[Grid] = ()
    neighbours: Sequence[Neighbours] = ()
    yardstick: Yardstick | None = None


def pictures_of(experiment: Experiment, domain: Domain, samples: Mapping[str, Path]) -> Pictures:
    """The same number of images of every row and of the references, and the nearest neighbours of those that were made."""
    # Features of a network are not needed for pictures, nor its file of weights.
    plain = dataclasses.replace(experiment, evaluate=dataclasses.replace(experiment.evaluate, features="bands", metrics=("swd",)))
    judge, found = judge_of(plain, domain, samples)
    data = domain.observations(observations_path(experiment), experiment)
    count = shows(judge.size, SHOWN, len(samples) + 2)  # with observations and references
    grids = [_grid("observation", _observed(data, judge.row_samples[:count]), domain, judge.law, "What was learned from.")]
    for name in _ordered(found):
        images, attributes = found[name]
        grids.append(_grid(name, images[:count], domain, judge.law, _calls(attributes)))
    clean = clean_images(experiment, domain, judge)
    if clean is not None:
        grids.append(_grid("reference", clean[:count], domain, judge.law, "For evaluation only."))
    neighbours, yardstick = _neighbours(judge, data, samples, found, count)
    return Pictures(grids, neighbours, yardstick)


def pictures_of_samples(experiment: Experiment, domain: Domain, samples: Mapping[str, Path]) -> Pictures:
    """Images of what was made alone, where the data are not at hand."""
    grids = []
    for name in _ordered(samples):
        images, attributes = read_samples(samples[name], SHOWN)
        law = law_of_samples(domain, samples[name], attributes)
        if law is not None:
            count = shows((images.shape[-2], images.shape[-1]), SHOWN, len(samples))
            grids.append(_grid(name, images[:count], domain, law, _calls(attributes)))
    return Pictures(grids)


def _observed(data: Observations, indices: Sequence[int]) -> Image:
    obs = data.batch(indices)
    return obs.operator.to_image(obs.y)


def _grid(name: str, images: Image, domain: Domain, law: Law, caption: str = "") -> Grid:
    return Grid(name, domain.display(images, law).numpy(), caption, images[:, 0].numpy() if images.is_complex() else None)


def _calls(attributes: Mapping[str, Any]) -> str:
    calls = attributes.get("network_calls")
    return "" if calls is None else f"{calls} network call{'s' if calls != 1 else ''} an image."


def _neighbours(
    judge: Evaluator, data: Observations, samples: Mapping[str, Path], found: Mapping[str, tuple[Image, Any]], count: int
) -> tuple[list[Neighbours], Yardstick | None]:
    """Among at most 2,000 observations, spread over the data. Samples are corrupted as these were before they are compared."""
    domain, pool = judge.domain, data.buckets[judge.size]
    if min(judge.size) < 8:
        return [], None  # features need as many pixels
    indices = [pool[i] for i in np.unique(np.linspace(0, len(pool) - 1, MOST_COMPARED).round().astype(int))]
    starts = range(0, len(indices), AT_ONCE)
    parts = [
        domain.display(_observed(data, indices[start : start + AT_ONCE]), judge.law).numpy()
        for start in track(starts, "neighbours", len(starts), f"x {AT_ONCE} observations")
    ]
    observed = np.concatenate(parts)
    features = features_of(observed)
    result = []
    for name in _ordered(found):
        images, attributes = found[name]
        law = law_of_samples(domain, samples[name], attributes) or judge.law
        corrupted = judge.corrupt(images[:count], attributes["seeds"][:count], law)
        index, distance = nearest(features_of(corrupted.shown), features)
        result.append(Neighbours(name, domain.display(images[:count], judge.law).numpy(), observed[index], distance.tolist()))
    return result, yardstick_of(features)


def small_grids_of(experiment: Experiment, domain: Domain, samples: Mapping[str, Path], grids: int) -> dict[str, Grid]:
    """A few images of every row, for a page of so many grids."""
    found = {}
    data = domain.observations(observations_path(experiment), experiment)
    law = data.law()
    for name, path in samples.items():
        images, attributes = read_samples(path, SHOWN_OF_MANY)
        size = images.shape[-2], images.shape[-1]
        count = shows(size, SHOWN_OF_MANY, grids)
        if "observation" not in found and size in data.buckets:
            found["observation"] = _grid("observation", _observed(data, list(data.buckets[size][:count])), domain, law)
        found[name] = _grid(name, images[:count], domain, law, _calls(attributes))
    return {name: found[name] for name in _ordered(found)}


def _ordered(names: Iterable[str]) -> list[str]:
    """Rows as tables have them."""
    return sorted(names, key=lambda name: ORDER.get(name, len(ORDER)))
