"""How far images are from the truth, and, without it, how far their corruptions are from the data.

The *true* distance compares with clean references. The *proximal* distance (RSD 5.3) corrupts the images by the data's own law
and compares with the observations, both shown in the same way: it needs no clean image. A generated image is measured by the
coils that it was drawn for, with a mask drawn anew, both functions of its seed. Beside every value stands its floor, the distance
between two disjoint halves of what it was compared with, at the same number of images.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .domain import Domain, Law, Observations, Size
from .errors import UserError
from .metrics.compare import MIN_IMAGES, compare, halves
from .observations import observe
from .sampling import sample_generator
from .tensors import Image, make_generator

PROXIMAL_STREAM = 6  # the purpose of the generators that corrupt images for the proximal metric

Scores = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Evaluator:
    """What images are compared with: n a side, chosen once for all rows of a table. Display images, (n, H, W[, 3])."""

    n: int
    size: Size
    observed: Tensor
    other_observed: Tensor
    clean: Tensor | None
    other_clean: Tensor | None
    observations_row: Tensor
    row_samples: Sequence[int]
    """The samples of the data set that ``observations_row`` shows: what is restored of them can be compared in its place."""
    domain: Domain
    law: Law

    def true(self, images: Image) -> Scores:
        """Distances to the clean references; empty where there are none."""
        return self.shown(self.domain.display(images[: self.n], self.law))

    def shown(self, images: Tensor) -> Scores:
        """As :meth:`true`, for images that are already as they are displayed."""
        if self.clean is None or self.other_clean is None:
            return {}
        return _plain(compare(images, self.clean, self.other_clean))

    def proximal(self, images: Image, seeds: Sequence[int], law: Law | None = None) -> Scores:
        """Distances of the corrupted images to the observations; ``seeds`` and ``law`` are those that the images were drawn with."""
        corrupted = self.corrupt(images[: self.n], seeds[: self.n], law or self.law)
        return _plain(compare(corrupted, self.observed, self.other_observed))

    def observation_scores(self) -> tuple[Scores, Scores]:
        """The row of the observations themselves: true and proximal."""
        return self.shown(self.observations_row), _plain(compare(self.other_observed, self.observed, self.other_observed))

    def corrupt(self, images: Image, seeds: Sequence[int], law: Law) -> Tensor:
        """Images through the coils that their seeds drew, with masks and noise that are functions of the seeds; shown as observations."""
        shown = []
        for index, seed in enumerate(seeds):
            drawn_for, noise_std = law.draw(1, self.size, sample_generator(seed))
            generator = make_generator(seed, PROXIMAL_STREAM)
            operator = law.rescan(drawn_for, generator)
            obs = observe(images[index : index + 1], operator, noise_std, generator)
            shown.append(self.domain.display(operator.to_image(obs.y), self.law))
        return torch.cat(shown)


def build_evaluator(
    domain: Domain,
    data: Observations,
    law: Law,
    references: tuple[Image, list[str]] | None,
    samples: int,
    limit: int,
    size: Size,
) -> Evaluator:
    """An evaluator for sets of ``samples`` images; ``references`` are images and names; ``limit`` > 0: at most so many a side.

    All are of one size.
    """
    pool = data.buckets[size]
    if len(pool) < 2 * MIN_IMAGES:
        raise UserError(
            f"{len(pool)} of {len(data)} observations are {size[0]} x {size[1]}; distances need {2 * MIN_IMAGES} of one size. Prepare more"
            " scans, or bring all to one size."
        )
    n, first, second = halves(len(pool), samples, limit)
    clean, row = None, None
    if references is not None:
        images, names = references
        n, clean_first, clean_second = halves(len(images), n, limit)
        clean = [domain.display(images[part], law) for part in (clean_first, clean_second)]
        # Where the references are of the same slices, the row of the observations takes those that the clean side leaves out.
        place = {name: index for index, name in enumerate(data.names)}
        left_out = [names[index] for index in clean_second]
        if all(name in place for name in left_out):
            row = [place[name] for name in left_out]
    parts = [[pool[int(i)] for i in part[:n]] for part in (first, second)]
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
    )


def _observed(domain: Domain, data: Observations, law: Law, indices: Sequence[int]) -> Tensor:
    shown = []
    for start in range(0, len(indices), 64):  # in parts: k-space is many times an image
        obs = data.batch(indices[start : start + 64])
        shown.append(domain.display(obs.operator.to_image(obs.y), law))
    return torch.cat(shown)


def _plain(scores: Any) -> Scores:
    return {name: dict(score) for name, score in scores.items()}
