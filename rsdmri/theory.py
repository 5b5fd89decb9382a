r"""Where distillation ends in a linear world, in closed form (DSD Theorem 1, RSD Theorem 1; docs/theory.md has the derivations).

x = E z with E (d, r) orthonormal and z ~ N(0, I). Observations y = A x + sigma eps have the covariance C = A E E^T A^T + sigma^2 I. A
generator G(z) = W z is compared through A: S = A W W^T A^T. All scores are exact.

    mismatched   teacher Standard on noisy y, phase II without measurement noise
                 DSD, A = I:   W W^T = (1 + sigma^2) E E^T
                 RSD, r = 1:   W = u = ± sqrt(1 + sigma^2 / |A e|^2) e + ker A
    matched      the same noise on both sides, or none where the objective removes it:   A W W^T A^T = A E E^T A^T

In float64; sigma is a number.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def observed_covariance(e: Tensor, a: Tensor, sigma: float) -> Tensor:
    """C of the observations, (m, m), for E (d, r) and A (m, d)."""
    return a @ e @ e.T @ a.T + sigma**2 * torch.eye(len(a), dtype=e.dtype)


def fisher(found: Tensor, wanted: Tensor, s: float) -> Tensor:
    """E |score difference|^2 under the first of N(0, found) and N(0, wanted), both with noise of level s added:

    tr[S_s (S_s^-1 - C_s^-1)^2],  S_s = found + s^2 I,  C_s = wanted + s^2 I.
    """
    noise = s**2 * torch.eye(len(found), dtype=found.dtype)
    difference = torch.linalg.inv(found + noise) - torch.linalg.inv(wanted + noise)
    return torch.trace((found + noise) @ difference @ difference)


def loss(w: Tensor, e: Tensor, a: Tensor, sigma: float, levels: Sequence[float]) -> Tensor:
    """The mismatched loss of G(z) = W z: the sum over levels of s^4 :func:`fisher`, E |f_psi - f_phi|^2 of the exact denoisers."""
    found, wanted = a @ w @ w.T @ a.T, observed_covariance(e, a, sigma)
    return torch.stack([s**4 * fisher(found, wanted, s) for s in levels]).sum()


def dsd_covariance(e: Tensor, sigma: float) -> Tensor:
    """W W^T of every minimiser for A = I (DSD Theorem 1): (1 + sigma^2) E E^T."""
    return (1 + sigma**2) * e @ e.T


def rsd_direction(e: Tensor, a: Tensor, sigma: float) -> Tensor:
    """u of the minimiser of least norm for e (d,) of unit norm in Im A^T (RSD Theorem 1); -u is the other one."""
    return (1 + sigma**2 / (a @ e).square().sum()).sqrt() * e


def eta(gain: float, sigma: float, s: float) -> float:
    """The gain of the loss in the direction A e, with g = |A e|^2 = ``gain`` and c = sigma^2 + s^2: g (2 c + g) / (c^2 (c + g)^2).

    C_s^-2 = I / c^2 - eta A e e^T A^T / g. The printed lemma has (c + g) without its square.
    """
    c = sigma**2 + s**2
    return gain * (2 * c + gain) / (c**2 * (c + gain) ** 2)


def wasserstein2(first: Tensor, second: Tensor) -> Tensor:
    """W2^2 between N(0, first) and N(0, second): tr first + tr second - 2 tr (first^1/2 second first^1/2)^1/2."""
    roots = []
    for covariance in (first, second):
        values, vectors = torch.linalg.eigh(covariance)
        roots.append(vectors * values.clamp(min=0).sqrt() @ vectors.T)
    # The singular values of a product of roots: roots of eigenvalues would make 1e-8 of a zero that is rounded to 1e-16.
    return torch.trace(first) + torch.trace(second) - 2 * torch.linalg.svdvals(roots[0] @ roots[1]).sum()


def dsd_distance(d: int, r: int, sigma: float) -> float:
    """W2^2(p_G, p_X) of the minimisers for A = I: W2^2(p_Y, p_X) - (d - r) sigma^2, what the observations lose by being cut to rank r."""
    return observed_distance(d, r, sigma) - (d - r) * sigma**2


def observed_distance(d: int, r: int, sigma: float) -> float:
    """W2^2(p_Y, p_X) for A = I: r (sqrt(1 + sigma^2) - 1)^2 + (d - r) sigma^2."""
    return float(r * ((1 + sigma**2) ** 0.5 - 1) ** 2 + (d - r) * sigma**2)


def rsd_distance(gain: float, sigma: float) -> float:
    """W2^2(p_G, p_X) of the minimiser of least norm, |A e|^2 = ``gain``: (sqrt(1 + sigma^2 / |A e|^2) - 1)^2."""
    return float(((1 + sigma**2 / gain) ** 0.5 - 1) ** 2)
