"""Observations: y = A x + sigma_y eps, with everything that is known about them."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .operators import LinearOperator
from .tensors import Batch, Image, PerSample, per_sample, randn_like


@dataclass(frozen=True, eq=False)
class Observation(Batch):
    """``y`` as the operator's ``forward`` gives it; ``noise_std`` (B,) is sigma_y per real component.

    ``labels`` (B, n) say how augmented ones were changed.
    """

    y: Tensor
    operator: LinearOperator
    noise_std: PerSample
    labels: Tensor | None = None


def observe(x: Image, operator: LinearOperator, noise_std: PerSample, generator: torch.Generator | None = None) -> Observation:
    """Corrupts images as the data were: y = A x + noise_std eps, eps of unit variance per real component."""
    y = operator.forward(x)
    return Observation(y + per_sample(noise_std, y) * randn_like(y, generator), operator, noise_std)
