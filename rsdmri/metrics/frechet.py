r"""Fréchet distance between two clouds of features, each taken for a Gaussian.

.. math::
    d^2 = |\mu_a - \mu_b|^2 + \operatorname{tr} \Sigma_a + \operatorname{tr} \Sigma_b
          - 2 \operatorname{tr} (\Sigma_a^{1/2} \Sigma_b \Sigma_a^{1/2})^{1/2}

With the features of the Inception network this is FID (Heusel et al. 2017). All in float64, and without the square root of a matrix
that is not symmetric: that of ``scipy.linalg.sqrtm`` changed its digits between releases. The value depends on the number of images:
only those of one number can be compared.
"""

from collections.abc import Iterable
from typing import Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

Features: TypeAlias = NDArray[np.floating]  # (N, D)
Rows: TypeAlias = NDArray[np.integer]
Matrix: TypeAlias = NDArray[np.float64]

BLOCK = 4096  # features converted to float64 at once


class Moments:
    """Number, mean (D,) and scatter (D, D), the sum of outer products about the mean, of features that come in parts.

    Memory is D^2 numbers whatever the number of images; parts are joined as Chan, Golub and LeVeque (1983) do, which loses no digits.
    """

    def __init__(self, width: int) -> None:
        self.n = 0
        self.mean = np.zeros(width)
        self.scatter = np.zeros((width, width))

    def add(self, features: Features, rows: Rows | None = None) -> Self:
        """More features (n, D); of ``rows`` alone, which may name one several times and is not copied as a whole."""
        for start in range(0, len(features) if rows is None else len(rows), BLOCK):
            block = slice(start, start + BLOCK)
            part = (features[block] if rows is None else features[rows[block]]).astype(np.float64)
            mean = part.mean(0)
            part -= mean
            self._join(len(part), mean, part.T @ part)
        return self

    def join(self, other: "Moments") -> Self:
        """All that ``other`` has seen, such as another process's part."""
        self._join(other.n, other.mean, other.scatter)
        return self

    def _join(self, n: int, mean: Matrix, scatter: Matrix) -> None:
        if n == 0:
            return
        total = self.n + n
        gap = mean - self.mean
        self.scatter += scatter + np.outer(gap, gap) * (self.n * n / total)
        self.mean += gap * (n / total)
        self.n = total

    @property
    def covariance(self) -> Matrix:
        """The unbiased covariance (D, D)."""
        if self.n < 2:
            raise UserError(f"a covariance needs at least two images, not {self.n}")
        return self.scatter / (self.n - 1)


def moments(parts: Iterable[Features]) -> Moments:
    """The moments of features that come in parts, at least one."""
    found: Moments | None = None
    for part in parts:
        found = (found or Moments(part.shape[1])).add(part)
    if found is None:
        raise UserError("no features to take moments of")
    return found


def frechet(a: Features, b: Features, rows_a: Rows | None = None, rows_b: Rows | None = None) -> float:
    """The distance between features (N_a, D) and (N_b, D), or of rows of them; by the samples themselves where they are fewer than
    features.

    Raises:
        UserError: fewer than two images, widths that differ, or values that are not finite.
    """
    check_features(a, b)
    if max(len(a), len(b)) < a.shape[1]:
        return _by_samples(*(x if rows is None else x[rows] for x, rows in ((a, rows_a), (b, rows_b))))
    return frechet_of_moments(*(Moments(x.shape[1]).add(x, rows) for x, rows in ((a, rows_a), (b, rows_b))))


def frechet_of_moments(a: Moments, b: Moments) -> float:
    """The distance from moments: two symmetric eigenvalue problems of width D."""
    gap = a.mean - b.mean
    cov_a, cov_b = a.covariance, b.covariance
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.clip(values, 0, None))  # root root^T = cov_a; any such root gives the same eigenvalues
    cross = np.linalg.eigvalsh(root.T @ cov_b @ root)
    return _total(gap, float(np.trace(cov_a) + np.trace(cov_b)), float(np.sqrt(np.clip(cross, 0, None)).sum()))


def _by_samples(a: Features, b: Features) -> float:
    """The same where N < D: the last trace is the nuclear norm of Xc Yc^T, an N x N matrix."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    gap = x.mean(0) - y.mean(0)
    x = (x - x.mean(0)) / np.sqrt(len(x) - 1)
    y = (y - y.mean(0)) / np.sqrt(len(y) - 1)
    nuclear = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return _total(gap, float(np.square(x).sum() + np.square(y).sum()), float(nuclear))


def _total(gap: Matrix, traces: float, cross: float) -> float:
    """Rounding may leave a hair below zero for equal sets."""
    return max(0.0, float(gap @ gap) + traces - 2 * cross)


def check_features(a: Features, b: Features) -> None:
    """A :class:`UserError` unless both are at least two finite features of one width."""
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise UserError(f"features must be (N, D) of one width D on both sides, not {a.shape} and {b.shape}")
    if min(len(a), len(b)) < 2:
        raise UserError(f"at least two images a side are needed, not {len(a)} and {len(b)}")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise UserError("some features are NaN or infinite: they were made by another network, or of images that are not finite")
