"""Linear systems, a sample of a batch at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from .tensors import Image, PerSample, per_sample, squared, sum_samples


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 0.0) -> Tensor:
    """x with apply(x) = b from x = 0, for every sample of ``b`` by itself (Hestenes and Stiefel 1952).

    ``apply`` is linear, Hermitian and positive semidefinite, and b in its range. Ends after ``iterations``, or when all residuals are at most
    ``tolerance`` |b|; a sample that is solved stays as it is.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    energy = start = sum_samples(squared(b))
    for _ in range(iterations):
        if bool((energy <= tolerance**2 * start).all()):
            break
        applied = apply(direction)
        curvature = inner(direction, applied)
        step = torch.where(curvature > 0, energy / curvature, 0)
        x = x + per_sample(step, x) * direction
        residual = residual - per_sample(step, x) * applied
        before, energy = energy, sum_samples(squared(residual))
        direction = residual + per_sample(torch.where(before > 0, energy / before, 0), x) * direction
    return x


def inner(x: Image, y: Image) -> PerSample:
    """Re <x, y>, summed over everything but the batch axis."""
    product = x.real * y.real + x.imag * y.imag if x.is_complex() else x * y
    return sum_samples(product)
