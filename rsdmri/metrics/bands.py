"""Features of images that need no trained network: where brightness lies, and how much detail of each scale and direction there is.

D = 64 numbers a channel (the image averaged on a grid of 8 x 8) and 16 a level of a pyramid (the decimal logarithm of the mean squared
difference to the next pixel in four directions, on a grid of 2 x 2). The first see a wrong layout and a lack of variety, the second blur,
noise and aliasing. They say nothing about what an image shows.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError

LAYOUT, PARTS = 8, 2
EMPTY = 1e-5  # the rounding to 8 bits leaves about 1e-6


def bands(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Features (N, D) of images (N, H, W, channels) of at least 8 x 8 pixels.

    Raises:
        UserError: the images are smaller.
    """
    if min(images.shape[1:3]) < LAYOUT:
        raise UserError(
            f"features need images of at least {LAYOUT} x {LAYOUT} pixels, not {images.shape[1]} x {images.shape[2]}. Ask for distances that"
            " need none: --evaluate.metrics swd psd"
        )
    x = torch.from_numpy(images.astype(np.float64) / 255).movedim(-1, 1)
    found = [F.adaptive_avg_pool2d(x, LAYOUT).flatten(1)]
    grey = x.mean(1, keepdim=True)
    while min(grey.shape[-2:]) >= LAYOUT:
        found += [_energy(difference) for difference in _differences(grey)]
        grey = F.avg_pool2d(grey, 2)
    features: NDArray[np.float64] = torch.cat(found, 1).numpy()
    return features


def _differences(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """To the pixel on the right, below, and along both diagonals."""
    here, right = x[..., :-1, :-1], x[..., :-1, 1:]
    below, across = x[..., 1:, :-1], x[..., 1:, 1:]
    return right - here, below - here, across - here, below - right


def _energy(difference: Tensor) -> Tensor:
    return (F.adaptive_avg_pool2d(difference.square(), PARTS) + EMPTY).log10().flatten(1)
