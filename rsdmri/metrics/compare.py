"""Several distances at once, each beside what chance alone would give, and within the interval where it may lie."""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple, TypedDict, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from ..config import Metric
from ..errors import UserError
from ..progress import track
from ..tensors import make_generator
from .coverage import MOST, coverage
from .features import Extractor
from .frechet import frechet
from .kernel import kid
from .phase import Histograms, phase
from .sliced import Array, Clouds, ImageSet, Indices, clouds, image_sets
from .spectrum import psd_of_power, radial_power

MIN_IMAGES = 16  # a side: with fewer, two halves of one set differ as much as anything else

#: Every distance, in the order of tables; those of features, those that are the better the higher, those of complex images.
METRICS: tuple[str, ...] = get_args(Metric)
OF_FEATURES = ("frechet", "kid", "precision", "recall", "density", "coverage")
HIGHER = ("precision", "recall", "density", "coverage")
BASIC = ("swd", "psd")

WIDE, FEW = 512, 20  # features from which on so few resamples must do for the Fréchet distance: each takes seconds
MANY = 40  # draws from which on the ends of an interval are taken from them
GROUPS = 10  # left out one at a time for the errors of coverage
NORMAL = 1.96  # standard errors from the middle of an interval of 95 % to its ends
RESAMPLE_STREAM = 11  # the purpose of the generator that resamples images


class Comparison(TypedDict):
    """One distance; the same between two halves of the reference; the images a side; the ends of its interval of 95 %, if asked for."""

    value: float
    floor: float
    n: int
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Options:
    """What is computed: ``extractor`` for the distances of features, ``bootstrap`` resamples for intervals (0: none)."""

    metrics: Sequence[str] = BASIC
    bootstrap: int = 0
    extractor: Extractor | None = None
    seed: int = 0

    @property
    def needs_features(self) -> bool:
        """Whether any of the distances is one of features."""
        return bool(set(self.metrics) & set(OF_FEATURES))


@dataclass(frozen=True)
class Side:
    """One set of display images (N, H, W[, 3]); of complex ones also the histograms of their phases."""

    shown: ImageSet
    phases: Histograms | None = None
    groups: Indices | None = None
    """Whose each image is: slices of one scan are drawn again together. None: each is its own."""


def joined(sides: Sequence[Side]) -> Side:
    """Several parts of one set."""
    phases = [side.phases for side in sides if side.phases is not None]
    shown = np.concatenate([np.asarray(side.shown) for side in sides])
    return Side(shown, np.concatenate(phases) if len(phases) == len(sides) else None)


class Measured(NamedTuple):
    """A distance, and what resampling the images gave for it: differences from their own mean."""

    value: float
    low: float | None = None
    high: float | None = None


def floors_of(reference: Side, other_reference: Side, options: Options) -> dict[str, float]:
    """The distances from ``other_reference`` to ``reference``, two disjoint parts of one distribution (see :func:`halves`): a perfect
    generator scores about this."""
    pair = _Pair(other_reference, reference, options, 0)
    return {name: pair.measure(name).value for name in options.metrics if name != "phase" or pair.has_phases}


def compare(
    samples: Side,
    reference: Side,
    other_reference: Side,
    options: Options | None = None,
    floors: Mapping[str, float] | None = None,
) -> dict[str, Comparison]:
    """The distances from ``samples`` to ``reference``, each with its floor.

    ``floors`` are those of :func:`floors_of`, where several sets are compared with one reference: they take as long as the distances.

    The interval of a distance is that of the bootstrap over images (scans, where slices belong together) of both sides, moved so that its
    mean is the distance itself: a resampled set has less variety than its original, and would lie too far away. KID has a standard error in
    closed form, the four parts of coverage one by leaving out groups; both take every image for its own.

    Raises:
        UserError: the sets differ in number or shape, are constant, or hold anything but finite real images.
    """
    options = options or Options()
    for array in image_sets(samples.shown, reference.shown):
        require_something_to_see(array)
    pair = _Pair(samples, reference, options, options.bootstrap)
    floors = floors_of(reference, other_reference, options) if floors is None else floors
    found: dict[str, Comparison] = {}
    for name in options.metrics:
        if name == "phase" and not pair.has_phases:
            continue
        value = pair.measure(name)
        found[name] = {
            "value": value.value,
            "floor": floors[name],
            "n": min(len(reference.shown), MOST) if name in HIGHER else len(reference.shown),
            "low": value.low,
            "high": value.high,
        }
    if not found:
        raise UserError("phase is a distance of complex images, and these are real. Ask for others: --evaluate.metrics swd psd")
    return found


def require_something_to_see(images: Array) -> None:
    """Raises a :class:`UserError` for one image alone and for images that are all constant."""
    if len(images) < 2:
        raise UserError("one image was given; a distance between sets needs at least two a side")
    if not np.ptp(images.reshape(len(images), -1), axis=1).any():
        raise UserError(
            "every image of a set is constant; expected pictures with values in [0, 1]. Look at them: a wrong scale, or a generator that has"
            " collapsed"
        )


class _Pair:
    """Two sets that are compared; what several distances share is computed once."""

    def __init__(self, a: Side, b: Side, options: Options, resamples: int) -> None:
        self.a, self.b, self.options, self.resamples = a, b, options, resamples

    @property
    def has_phases(self) -> bool:
        """Real images have none."""
        return self.a.phases is not None and self.b.phases is not None

    def measure(self, name: str) -> Measured:
        if name == "swd":
            return self._sliced()
        if name == "psd":
            return self._resampled(psd_of_power, self._power)
        if name == "frechet":
            a, b = self._features
            wide = a.shape[1] > WIDE
            draws = self._indices()[: FEW if wide else self.resamples]
            # Rows and not copies: of 50,000 images the features alone fill a gigabyte.
            again = (frechet(a, b, i, j) for i, j in draws)
            return _interval(frechet(a, b), list(track(again, "resamples", len(draws)) if wide and draws else again))
        if name == "phase":
            return self._resampled(phase, (self.a.phases, self.b.phases))
        if name not in OF_FEATURES:
            raise UserError(f"no distance is called '{name}'; expected {', '.join(METRICS)}")
        estimate = kid(*self._features) if name == "kid" else self._coverage[name]
        if self.resamples == 0:
            return Measured(estimate.value)
        low, high = estimate.value - NORMAL * estimate.error, estimate.value + NORMAL * estimate.error
        if name == "kid":
            return Measured(estimate.value, low, high)
        return Measured(estimate.value, max(0.0, low), high if name == "density" else min(1.0, high))

    @cached_property
    def _power(self) -> tuple[NDArray[Any], NDArray[Any]]:
        return radial_power(self.a.shown), radial_power(self.b.shown)

    @cached_property
    def _features(self) -> tuple[NDArray[Any], NDArray[Any]]:
        if self.options.extractor is None:
            raise UserError("distances of features need an extractor of features")
        return self.options.extractor(self.a.shown), self.options.extractor(self.b.shown)

    @cached_property
    def _coverage(self) -> Any:
        return coverage(*self._features, groups=GROUPS if self.resamples else 0)

    def _sliced(self) -> Measured:
        found: Clouds = clouds(self.a.shown, self.b.shown, seed=self.options.seed)
        draws = [found.resampled(i, j) for i, j in self._indices()]
        return _interval(found.distance(), draws)

    def _resampled(self, distance: Callable[[Any, Any], float], sides: tuple[Any, Any]) -> Measured:
        """A distance of arrays with one row an image."""
        a, b = sides
        return _interval(distance(a, b), [distance(a[i], b[j]) for i, j in self._indices()])

    def _indices(self) -> list[tuple[Indices, Indices]]:
        """Images, or whole groups of them, drawn with replacement from both sides."""
        rng = np.random.default_rng([self.options.seed, RESAMPLE_STREAM])
        sides = [(len(side.shown), _members(side)) for side in (self.a, self.b)]
        return [(_again(*sides[0], rng), _again(*sides[1], rng)) for _ in range(self.resamples)]


def _members(side: Side) -> list[Indices] | None:
    """The images of each group; None where each image is its own."""
    return None if side.groups is None else [np.flatnonzero(side.groups == group) for group in np.unique(side.groups)]


def _again(n: int, members: Sequence[Indices] | None, rng: np.random.Generator) -> Indices:
    """As many images as there are, with replacement; the last group is cut where they are enough."""
    if members is None:
        return rng.integers(n, size=n)
    found: list[int] = []
    while len(found) < n:
        found.extend(members[int(rng.integers(len(members)))].tolist())
    return np.array(found[:n])


def _interval(value: float, draws: Sequence[float]) -> Measured:
    if not draws:
        return Measured(value)
    spread = np.array(draws) - np.mean(draws)
    # Of a few draws the ends are not known, their spread is.
    low, high = (
        np.percentile(spread, (2.5, 97.5)) if len(draws) >= MANY else (-NORMAL * spread.std(ddof=1), NORMAL * spread.std(ddof=1))
    )
    return Measured(value, max(0.0, value + float(low)), value + float(high))


def halves(
    n_reference: int, n_samples: int, limit: int = 0, *, seed: int = 0, groups: Sequence[Hashable] | None = None
) -> tuple[int, Indices, Indices]:
    """How many images a side can be compared, and two disjoint random parts of the reference.

    Args:
        n_reference: images of the reference, which has to yield both parts.
        n_samples: images to be compared with it.
        limit: at most so many a side; 0 for no limit.
        groups: whose each image of the reference is. Nobody is in both parts: slices of one scan are alike, and with some of them in either
            part the floor would be lower than any generator can come.

    Returns:
        n, and the indices of the two parts of n images, each in rising order (as HDF5 needs them).

    Raises:
        UserError: fewer than 16 images a side.
    """
    n = asked = min(n_samples, n_reference // 2, limit if limit > 0 else n_samples)
    order, ends = _by_groups(torch.randperm(n_reference, generator=make_generator(seed)).numpy(), groups)
    while True:
        # Where the first group begins of which nothing is in the first part.
        start = int(ends[np.searchsorted(ends, n)]) if n else 0
        if n_reference - start >= n:
            break
        n -= 1
    if n < MIN_IMAGES:
        limited = f" (limited to {limit})" if limit > 0 else ""
        of = f" of {len(ends)} scans" if groups is not None and n < asked else ""
        raise UserError(
            f"{n_samples} samples and {n_reference} reference images{of}{limited} leave {n} a side;"
            f" at least {MIN_IMAGES} samples and {2 * MIN_IMAGES} reference images are needed"
        )
    return n, np.sort(order[:n]), np.sort(order[start : start + n])


def _by_groups(order: Indices, groups: Sequence[Hashable] | None) -> tuple[Indices, Indices]:
    """The images group by group, the groups as they come in ``order``; and where each group ends."""
    if groups is None:
        return order, np.arange(1, len(order) + 1)
    members: dict[Hashable, list[int]] = {}
    for index in order.tolist():
        members.setdefault(groups[index], []).append(index)
    sizes = [len(part) for part in members.values()]
    return np.array([index for part in members.values() for index in part]), np.cumsum(sizes)
