r"""Mirrored observations: y, masks, maps and kernels together, so that what was not measured stays unseen.

Of the transformations of EDM (Karras et al. 2022, F.2) these alone move samples without mixing them: noise stays white, masks stay masks. To
augment clean images first, as public code does, would show the network pixels that nobody observed. The network is told by its label, whose
first two entries say which way an image was mirrored; zeros, at sampling, ask for an image as it is.
"""

from typing import TypeVar

import torch
from torch import Tensor

from .tensors import Batch, per_sample, rand

B = TypeVar("B", bound=Batch)
AXES = (-1, -2)  # left to right, top to bottom


def draw_mirrors(n: int, probability: float, device: torch.device, generator: torch.Generator | None) -> Tensor:
    """Which of n samples are mirrored, (2, n): left to right one half of them, top to bottom with ``probability``."""
    across, along = rand((n, 2), generator, torch.empty(0, device=device)).T
    return torch.stack([across < 0.5, along < probability])  # numbers stay on the host: to send one would be to wait


def mirrored(record: B, which: Tensor, periodic: bool) -> B:
    """A record of tensors (B, ..., H, W), in image or k-space, with the samples ``which`` (2, B) mirrored along each of :data:`AXES`.

    With R the mirroring, y' = R y is what the mirrored operator R A R measures of R x. ``periodic``: as Fourier transforms count.
    """
    for axis, some in zip(AXES, which, strict=True):

        def mirror(tensor: Tensor, axis: int = axis, some: Tensor = some) -> Tensor:
            if tensor.ndim < 3:  # one value a sample
                return tensor
            turned = tensor.flip(axis)
            if periodic and tensor.shape[axis] % 2 == 0:
                turned = turned.roll(1, axis)  # about the sample N // 2
            return torch.where(per_sample(some, tensor), turned, tensor)

        record = record.map(mirror)
    return record


def mirror_labels(which: Tensor, length: int) -> Tensor:
    """The labels (B, length) of mirrored samples."""
    labels = torch.zeros(which.shape[1], length, dtype=torch.float32, device=which.device)
    labels[:, :2] = which.T.float()
    return labels
