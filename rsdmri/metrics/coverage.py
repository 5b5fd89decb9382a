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


def coverage(samples: Features, reference: Features, k: int = NEAREST) -> Coverage:
    """The four values of features (N, D), each with its standard error at fixed balls; of more than 10,000 images the first ones.

    Raises:
        UserError: not more than k images a side, widths that differ, or values that are not finite.
    """
    check_features(samples, reference)
    if min(len(samples), len(reference)) <= k:
        raise UserError(
            f"balls that reach to the {k}th neighbour need more than {k} images, not {len(samples)} and {len(reference)}"
        )
    a, b = (features[:MOST].astype(np.float64) for features in (samples, reference))
    radius_a, radius_b = _radii(a, k), _radii(b, k)
    in_balls = np.zeros(len(a))  # balls of references that hold a sample
    in_sample_balls = np.zeros(len(b), bool)
    filled = np.zeros(len(b), bool)
    for rows, distances in _distances(a, b):
        inside = distances <= radius_b
        in_balls[rows] = inside.sum(1)
        filled |= inside.any(0)
        in_sample_balls |= (distances <= radius_a[rows, None]).any(0)
    return {
        "precision": _mean(in_balls > 0),
        "recall": _mean(in_sample_balls),
        "density": _mean(in_balls / k),
        "coverage": _mean(filled),
    }


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


def _mean(values: NDArray[np.generic]) -> Estimate:
    numbers = values.astype(np.float64)
    return Estimate(float(numbers.mean()), float(numbers.std() / np.sqrt(len(numbers))))
