r"""Kernel distance between two clouds of features: the unbiased squared maximum mean discrepancy of Binkowski et al. 2018.

.. math::
    k(u, v) = (u^T v / D + 1)^3, \qquad
    \widehat{MMD}^2 = \frac{1}{m (m - 1)} \sum_{i \ne j} (k(a_i, a_j) + k(b_i, b_j)) - \frac{2}{m^2} \sum_{i, j} k(a_i, b_j)

With the features of the Inception network this is KID. Unlike the Fréchet distance it has no bias that depends on the number of images, and
it may be negative where both sets have one distribution.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .frechet import Features, check_features

BLOCK = 1000  # images whose kernel matrix is held at once; more are taken as the mean over blocks, which is unbiased, too


class Estimate(NamedTuple):
    """A value and its standard error."""

    value: float
    error: float


def kid(a: Features, b: Features) -> Estimate:
    """The discrepancy of as many features (N, D) on both sides, with its standard error.

    From 2,000 images on they are compared block by block (Zaremba et al. 2013), in an order that is drawn, the same for every set: files and
    folders are sorted by scan or class, and blocks of one class each would not be two draws of one distribution.

    Raises:
        UserError: fewer than two images, other numbers or widths on both sides, or values that are not finite.
    """
    check_features(a, b)
    if len(a) != len(b):
        raise UserError(f"as many images on both sides are needed, not {len(a)} and {len(b)}")
    count = max(1, len(a) // BLOCK)
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(a)), (2, 1)), axis=1)
    blocks = [np.array_split(side[order], count) for side, order in zip((a, b), orders, strict=True)] if count > 1 else [[a], [b]]
    parts = [_block(x, y) for x, y in zip(*blocks, strict=True)]
    errors = np.array([part.error for part in parts])
    return Estimate(float(np.mean([part.value for part in parts])), float(np.sqrt(np.square(errors).sum()) / count))


def _block(a: Features, b: Features) -> Estimate:
    """One block; the standard error is that of a U-statistic, twice the spread of its mean over one argument."""
    m = len(a)
    x, y = a.astype(np.float64), b.astype(np.float64)
    own_x, own_y, cross = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    np.fill_diagonal(own_x, 0)
    np.fill_diagonal(own_y, 0)
    value = (own_x.sum() + own_y.sum()) / (m * (m - 1)) - 2 * cross.mean()
    first = (own_x.sum(1) + own_y.sum(1)) / (m - 1) - cross.mean(1) - cross.mean(0)
    return Estimate(float(value), float(2 * first.std() / np.sqrt(m)))


def _kernel(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    product: NDArray[np.float64] = x @ y.T
    product /= x.shape[1]
    product += 1
    # Not product ** 3, which numpy leaves to pow().
    return product * product * product
