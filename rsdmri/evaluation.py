"""How far images are from the truth, and, without it, how far their corruptions are from the data.

The *true* distance compares with clean references. The *proximal* distance (RSD 5.3) corrupts the images by the data's own law
and compares with the observations, both shown in the same way: it needs no clean image. A generated image is measured by the
coils that it was drawn for, with a mask drawn anew, both functions of its seed. Beside every value stands its floor, the distance
between two disjoint halves of what it was compared with, at the same number of images.
"""

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .config import EvaluateConfig, Experiment
from .domain import Domain, Law, Observations, Size
from .errors import UserError
from .metrics.compare import MIN_IMAGES, Options, Side, compare, floors_of, halves, joined
from .metrics.features import Extractor
from .metrics.phase import phase_histograms
from .observations import observe
from .runs import device_of, observations_path
from .sampling import sample_generator
from .tensors import Image, make_generator

AT_ONCE = 64  # observations shown at once
PROXIMAL_STREAM = 6  # the purpose of the generators that corrupt images for the proximal metric

Scores = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Evaluator:
    """What images are compared with: n a side, chosen once for all rows of a table."""

    n: int
    size: Size
    observed: Side
    other_observed: Side
    clean: Side | None
    other_clean: Side | None
    observations_row: Side
    row_samples: Sequence[int]
    """The samples of the data set that ``observations_row`` shows: what is restored of them can be compared in its place."""
    domain: Domain
    law: Law
    options: Options

    def true(self, images: Image) -> Scores:
        """Distances to the clean references; empty where there are none."""
        return self.shown(side_of(self.domain, images[: self.n], self.law))

    def shown(self, images: Side) -> Scores:
        """As :meth:`true`, for images that are already as they are displayed."""
        if self.clean is None or self.other_clean is None:
            return {}
        return _plain(compare(images, self.clean, self.other_clean, self.options, self._floors_of_clean))

    def proximal(self, images: Image, seeds: Sequence[int], law: Law | None = None) -> Scores:
        """Distances of the corrupted images to the observations; ``seeds`` and ``law`` are those that the images were drawn with."""
        corrupted = self.corrupt(images[: self.n], seeds[: self.n], law or self.law)
        return self._to_observed(corrupted)

    def observation_scores(self) -> tuple[Scores, Scores]:
        """The row of the observations themselves: true and proximal."""
        return self.shown(self.observations_row), self._to_observed(self.other_observed)

    def _to_observed(self, images: Side) -> Scores:
        return _plain(compare(images, self.observed, self.other_observed, self.options, self._floors_of_observed))

    # Once for all rows, and all looks at a training.

    @cached_property
    def _floors_of_clean(self) -> dict[str, float]:
        assert self.clean is not None and self.other_clean is not None
        return floors_of(self.clean, self.other_clean, self.options)

    @cached_property
    def _floors_of_observed(self) -> dict[str, float]:
        return floors_of(self.observed, self.other_observed, self.options)

    def corrupt(self, images: Image, seeds: Sequence[int], law: Law) -> Side:
        """Images through the coils that their seeds drew, with masks and noise that are functions of the seeds; shown as observations."""
        return joined([self._corrupted(images[i : i + 1], seed, law) for i, seed in enumerate(seeds)])

    def _corrupted(self, image: Image, seed: int, law: Law) -> Side:
        drawn_for, noise_std = law.draw(1, self.size, sample_generator(seed))
        generator = make_generator(seed, PROXIMAL_STREAM)
        operator = law.rescan(drawn_for, generator)
        obs = observe(image, operator, noise_std, generator)
        return side_of(self.domain, operator.to_image(obs.y), self.law)


def evaluator(experiment: Experiment, domain: Domain, samples: int, size: Size | None = None) -> Evaluator:
    """What sets of ``samples`` images of a size, by default the data's most frequent one, are compared with; also with clean ones where
    there are enough. ``experiment.evaluate`` says by what distances.

    Raises:
        UserError: no observations, or too few, of that size.
    """
    path = observations_path(experiment)
    data = domain.observations(path, experiment)
    size = size or next(iter(data.buckets))
    if size not in data.buckets:
        known = ", ".join(f"{h} x {w}" for h, w in data.buckets)
        raise UserError(f"{path}: images of {known}, and the samples are {size[0]} x {size[1]}. Sample a run of these data.")
    clean = _references(domain, path.with_name("references.h5"), size)
    return _built(domain, data, clean, samples, options_of(experiment), experiment.evaluate.n, size)


def options_of(experiment: Experiment) -> Options:
    """By what images are compared; features are kept beside the results."""
    cache = experiment.folder / "evaluate" / "features"
    return comparison_options(experiment.evaluate, str(device_of(experiment)), cache)


def comparison_options(config: EvaluateConfig, device: str, cache: Path | None) -> Options:
    """The same from a section ``evaluate`` alone; a network is loaded only if a distance needs its features."""
    options = Options(metrics=config.metrics, bootstrap=config.bootstrap)
    if not options.needs_features:
        return options
    kept = cache if config.features != "bands" else None  # those are made faster than files are kept
    extractor = Extractor(config.features, config.weights, device=device, cache=kept, workers=config.workers)
    return replace(options, extractor=extractor)


def clean_images(experiment: Experiment, domain: Domain, judge: Evaluator) -> Image | None:
    """The references that everything is compared with, as they are and not as they are shown; None where there are none."""
    if judge.clean is None:
        return None
    images, names = domain.references(observations_path(experiment).with_name("references.h5"), judge.size)
    _, clean, _ = halves(len(images), judge.n, groups=[domain.volume_of(name) for name in names])
    return images[clean]


def _references(domain: Domain, path: Path, size: Size) -> tuple[Image, list[str]] | None:
    """Clean images and their names, if there are enough of one size."""
    if not path.exists():
        return None
    images, names = domain.references(path, size)
    if len(names) < 2 * MIN_IMAGES:
        print(
            f"evaluate: {len(names)} clean references of {size[0]} x {size[1]}, too few to compare with: proximal distances only",
            file=sys.stderr,
        )
        return None
    return images, names


def _built(
    domain: Domain,
    data: Observations,
    references: tuple[Image, list[str]] | None,
    samples: int,
    options: Options,
    limit: int,
    size: Size,
) -> Evaluator:
    """``limit`` > 0: at most so many images a side."""
    law = data.law()
    pool = data.buckets[size]
    if len(pool) < 2 * MIN_IMAGES:
        raise UserError(
            f"{len(pool)} of {len(data)} observations are {size[0]} x {size[1]}; distances need {2 * MIN_IMAGES} of one size. Prepare more"
            " scans, or bring all to one size."
        )
    all_names = data.names
    volumes = [domain.volume_of(all_names[i]) for i in pool]
    n, first, second = halves(len(pool), samples, limit, groups=volumes)
    clean, row = None, None
    if references is not None:
        images, names = references
        of_volumes = [domain.volume_of(name) for name in names]
        n, clean_first, clean_second = halves(len(images), n, groups=of_volumes)
        clean = [
            replace(side_of(domain, images[part], law), groups=_numbered(of_volumes, part))
            for part in (clean_first, clean_second)
        ]
        n, first, second = halves(len(pool), n, groups=volumes)  # all sides have n, which the references may have made less
        # Where the references are of the same slices, the row of the observations takes those that the clean side leaves out.
        place = {name: index for index, name in enumerate(all_names)}
        left_out = [names[index] for index in clean_second]
        if all(name in place for name in left_out):
            row = [place[name] for name in left_out]
    parts = [[pool[int(i)] for i in part] for part in (first, second)]
    observed = [_observed(domain, data, law, part) for part in parts]
    return Evaluator(
        n=n,
        size=size,
        observed=observed[0],
        other_observed=observed[1],
        clean=clean[0] if clean else None,
        other_clean=clean[1] if clean else None,
        observations_row=observed[1] if row is None else _observed(domain, data, law, row),
        row_samples=parts[1] if row is None else row,
        domain=domain,
        law=law,
        options=options,
    )


def side_of(domain: Domain, images: Image, law: Law) -> Side:
    """Images as they are displayed; of complex ones with one channel also their phases."""
    phases = phase_histograms(images[:, 0].numpy()) if images.is_complex() else None
    return Side(domain.display(images, law), phases)


def _observed(domain: Domain, data: Observations, law: Law, indices: Sequence[int]) -> Side:
    parts = []
    for start in range(0, len(indices), AT_ONCE):  # k-space is many times an image
        obs = data.batch(indices[start : start + AT_ONCE])
        parts.append(side_of(domain, obs.operator.to_image(obs.y), law))
    names = data.names
    volumes = [domain.volume_of(names[i]) for i in indices]
    return replace(joined(parts), groups=_numbered(volumes, range(len(volumes))))


def _numbered(volumes: Sequence[str], part: Iterable[int]) -> NDArray[np.int64] | None:
    """Whose image each of a part is, as numbers; None if each is its own."""
    _, numbers = np.unique([volumes[i] for i in part], return_inverse=True)
    return numbers.astype(np.int64) if len(np.unique(numbers)) < len(numbers) else None


def _plain(scores: Any) -> Scores:
    return {name: dict(score) for name, score in scores.items()}
