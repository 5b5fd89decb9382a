r"""Mirrored observations: y, masks, maps and kernels together, so that what was not measured stays unseen.

Of the transformations of EDM (Karras et al. 2022, F.2) these alone move samples without mixing them: noise stays white, masks stay masks. To
augment clean images first, as public code does, would show the network pixels that nobody observed. The network is told by its label, whose
first two entries say which way an image was mirrored; zeros, at sampling, ask for an image as it is.
"""

import dataclasses

import torch
from torch import Tensor

from .observations import Observation
from .tensors import per_sample


def mirrored(obs: Observation, which: Tensor, axis: int) -> Observation:
    """Observations of mirrored images, along axis -1 or -2, for the samples ``which`` (B,) bool; the others as they are.

    With R the mirroring, y' = R y is what the mirrored operator R A R measures of R x.
    """

    def mirror(tensor: Tensor) -> Tensor:
        if tensor.ndim < 3:  # one value a sample
            return tensor
        turned = tensor.flip(axis)
        if obs.operator.periodic and tensor.shape[axis] % 2 == 0:
            turned = turned.roll(1, axis)  # about the sample N // 2, as Fourier transforms count
        return torch.where(per_sample(which, tensor), turned, tensor)

    return obs.map(mirror)


def augmented(obs: Observation, probability: float, labels: int, generator: torch.Generator) -> Observation:
    """Half of the images mirrored left to right and, with ``probability``, top to bottom; with their labels (B, ``labels``)."""
    drawn = torch.rand(2, len(obs), device=generator.device, generator=generator)
    turned = drawn < torch.tensor([[0.5], [probability]], device=generator.device)
    for axis, which in zip((-1, -2), turned, strict=True):
        obs = mirrored(obs, which, axis)
    label = torch.zeros(len(obs), labels, dtype=torch.float32, device=generator.device)
    label[:, :2] = turned.T.float()
    return dataclasses.replace(obs, labels=label)
