"""Pixel masks: iid Bernoulli, shared by the channels; that of an image is a function of its name."""

import torch
from torch import Tensor

from rsdmri.tensors import make_generator, number_of

MASK_STREAM = 3


def draw_pixels(n: int, size: tuple[int, int], missing: float, generator: torch.Generator) -> Tensor:
    """n masks (n, 1, H, W), True where a pixel is seen, which it is with probability 1 - missing."""
    return torch.rand(n, 1, *size, dtype=torch.float32, device=generator.device, generator=generator) >= missing


def thin_pixels(mask: Tensor, delta: float, generator: torch.Generator | None) -> Tensor:
    """M̃ within M: every seen pixel is kept with probability 1 - delta."""
    return mask & (torch.rand(mask.shape, dtype=torch.float32, device=mask.device, generator=generator) >= delta)


def image_generator(name: str, seed: int) -> torch.Generator:
    """The generator of an image's corruption: a function of its name, so that the corrupted data set is fixed."""
    return make_generator(seed, MASK_STREAM, number_of(name))
