"""Linear systems, a sample of a batch at a time."""

from collections.abc import Callable

import torch
from torch import Tensor

from .tensors import Image, PerSample, per_sample, squared, sum_samples


def conjugate_gradients(apply: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float = 0.0) -> Tensor:
    """x with apply(x) = b from x = 0, for every sample of ``b`` by itself (Hestenes and Stiefel 1952).

    ``apply`` is linear, Hermitian and positive semidefinite, and b in its range. Ends after ``iterations``, or when all residuals are at
    most ``tolerance`` |b|. Jacobians of networks are symmetric and positive only nearly: a sample whose next direction ``apply`` does not
    stretch forwards is finished, and of all its iterates each sample gets the one with the smallest residual.
    """
    x, residual, direction = torch.zeros_like(b), b, b
    energy = least = start = sum_samples(squared(b))
    best, going = x, start > 0
    for _ in range(iterations):
        going = going & (least > tolerance**2 * start)
        if not bool(going.any()):
            break
        applied = apply(direction)
        curvature = inner(direction, applied)
        going = going & (curvature > 0)
        step = torch.where(going, energy / curvature, 0)
        x = x + per_sample(step, x) * direction
        residual = residual - per_sample(step, x) * applied
        before, energy = energy, sum_samples(squared(residual))
        direction = residual + per_sample(torch.where(going, energy / before, 0), x) * direction
        best = torch.where(per_sample(energy < least, x), x, best)
        least = torch.minimum(energy, least)
    return best


def inner(x: Image, y: Image) -> PerSample:
    """Re <x, y>, summed over everything but the batch axis."""
    product = x.real * y.real + x.imag * y.imag if x.is_complex() else x * y
    return sum_samples(product)
