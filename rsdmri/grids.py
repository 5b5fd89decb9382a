"""Images as pixels, and many of them as one PNG."""

import math
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .errors import UserError
from .files import atomic


def pixels_of(images: ArrayLike) -> NDArray[np.uint8]:
    """Display images as 8-bit ``(n, H, W)`` or ``(n, H, W, 3)``; what is not a number is black."""
    array = np.asarray(images)
    if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] != 3) or not array.size:
        raise UserError(f"images to show must be (n, H, W) or (n, H, W, 3), not {array.shape}")
    return np.rint(255 * np.clip(np.nan_to_num(array), 0, 1)).astype(np.uint8)


def save_grid(path: Path | str, images: ArrayLike, columns: int) -> None:
    """Writes ``(n, H, W[, 3])`` images in [0, 1] as one PNG, row by row, one pixel apart."""
    pixels = pixels_of(images)
    height, width = pixels.shape[1:3]
    columns = max(1, min(columns, len(pixels)))
    lines = math.ceil(len(pixels) / columns)
    shape = (lines * (height + 1) - 1, columns * (width + 1) - 1, *pixels.shape[3:])
    sheet = np.zeros(shape, np.uint8)
    for index, image in enumerate(pixels):
        top, left = index // columns * (height + 1), index % columns * (width + 1)
        sheet[top : top + height, left : left + width] = image
    with atomic(path) as temporary:
        Image.fromarray(sheet).save(temporary, "png")
