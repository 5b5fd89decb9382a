"""Pixel masks, True where a pixel is seen, shared by the channels; that of an image is a function of its name."""

import torch
from torch import Tensor

from rsdmri.tensors import make_generator, number_of, rand, randint

CORRUPTION_STREAM = 3


def draw_pixels(n: int, size: tuple[int, int], missing: float, generator: torch.Generator) -> Tensor:
    """n masks (n, 1, H, W) of pixels that are seen with probability 1 - missing, each by itself."""
    return rand((n, 1, *size), generator) >= missing


def draw_boxes(n: int, size: tuple[int, int], side: int, generator: torch.Generator) -> Tensor:
    """n masks (n, 1, H, W) without a square of side x side pixels, anywhere within the image."""
    hidden = []
    for length in size:
        start = randint(length - side + 1, (n, 1), generator)
        index = torch.arange(length, device=generator.device)
        hidden.append((index >= start) & (index < start + side))
    return ~(hidden[0][:, None, :, None] & hidden[1][:, None, None, :])


def image_generator(name: str, seed: int) -> torch.Generator:
    """The generator of an image's corruption: a function of its name, so that the corrupted data set is fixed."""
    return make_generator(seed, CORRUPTION_STREAM, number_of(name))
