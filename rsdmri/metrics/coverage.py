"""What part of one cloud of features lies on the other: precision, recall, density and coverage.

    Kynkäänniemi et al. 2019: precision is the part of the samples that lie in the union of balls about the references, each reaching to its
    k-th nearest neighbour; recall exchanges the sets.
    Naeem et al. 2020: density counts in how many balls a sample lies, over k; coverage is the part of the balls that hold a sample.

Precision and density say whether images look right, recall and coverage whether their variety is there. Unlike distances they are the
better the higher.
"""

from collections.abc import Iterator
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .frechet import Features, check_features
from .kernel import Estimate

NEAREST = 5  # k
BLOCK = 1024  # rows of the matrix of distances held at once
MOST = 10_000  # images a side: distances are N x N


class Coverage(TypedDict):
    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def coverage(samples: Features, reference: Features, k: int = NEAREST, groups: int = 0) -> Coverage:
    """The four values of features (N, D), each with its standard error; of more than 10,000 images so many, drawn the same way for every set.

    ``groups`` > 1: standard errors by leaving out one part in so many of both sides at a time (the delete-a-group jackknife); resampling
    with replacement would put images at distance zero from each other. 0: none, NaN.

    Raises:
        UserError: not more than k images a side, widths that differ, or values that are not finite.
    """
    check_features(samples, reference)
    if min(len(samples), len(reference)) <= k:
        raise UserError(
            f"balls that reach to the {k}th neighbour need more than {k} images, not {len(samples)} and {len(reference)}"
        )
    a, b = (_limited(features).astype(np.float64) for features in (samples, reference))
    values = _values(a, b, k)
    errors = _errors(a, b, k, groups) if groups > 1 else np.full(len(values), np.nan)
    precision, recall, density, covered = map(Estimate, map(float, values), map(float, errors))
    return {"precision": precision, "recall": recall, "density": density, "coverage": covered}


def _limited(features: Features) -> Features:
    """At most MOST of them, not the first: files and folders are sorted by scan or class."""
    if len(features) <= MOST:
        return features
    return features[np.sort(np.random.default_rng(0).permutation(len(features))[:MOST])]


def _values(a: NDArray[np.float64], b: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """precision, recall, density, coverage."""
    radius_a, radius_b = _radii(a, k), _radii(b, k)
    in_balls = np.zeros(len(a))  # balls of references that hold a sample
    in_sample_balls = np.zeros(len(b), bool)
    filled = np.zeros(len(b), bool)
    for rows, distances in _distances(a, b):
        inside = distances <= radius_b
        in_balls[rows] = inside.sum(1)
        filled |= inside.any(0)
        in_sample_balls |= (distances <= radius_a[rows, None]).any(0)
    return np.array([(in_balls > 0).mean(), in_sample_balls.mean(), in_balls.mean() / k, filled.mean()])


def _errors(a: NDArray[np.float64], b: NDArray[np.float64], k: int, groups: int) -> NDArray[np.float64]:
    rng = np.random.default_rng(0)
    of_a, of_b = (rng.permutation(len(side)) % groups for side in (a, b))
    without = np.stack([_values(a[of_a != g], b[of_b != g], k) for g in range(groups)])
    errors: NDArray[np.float64] = np.sqrt((groups - 1) * without.var(0))
    return errors


def nearest(a: Features, b: Features) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each of ``a`` the index of the nearest of ``b`` and its distance."""
    check_features(a, b)
    index, distance = np.zeros(len(a), np.int64), np.zeros(len(a))
    for rows, distances in _distances(a.astype(np.float64), b.astype(np.float64)):
        index[rows] = distances.argmin(1)
        distance[rows] = np.sqrt(distances.min(1))
    return index, distance


def _radii(x: NDArray[np.float64], k: int) -> NDArray[np.float64]:
    """The squared distance of each point to its k-th neighbour, itself not counted."""
    found = np.zeros(len(x))
    for rows, distances in _distances(x, x):
        # By index and not by value: points that coincide are neighbours of each other.
        distances[np.arange(len(distances)), np.arange(len(x))[rows]] = np.inf
        found[rows] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return found


def _distances(a: NDArray[np.float64], b: NDArray[np.float64]) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Squared distances from some rows of ``a`` to all of ``b``. About the common mean, where squares lose the fewest digits."""
    centre = b.mean(0)
    a, b = a - centre, b - centre
    square_a, square_b = np.square(a).sum(1), np.square(b).sum(1)
    for start in range(0, len(a), BLOCK):
        rows = slice(start, start + BLOCK)
        yield rows, np.maximum(square_a[rows, None] + square_b - 2 * a[rows] @ b.T, 0)
