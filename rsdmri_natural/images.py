"""Photographs from files."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

from rsdmri.arrays import open_npz, read_array
from rsdmri.errors import UserError


def read_images(path: Path, split: str, size: int) -> Tensor:
    """Photographs (N, 3, size, size) in [-1, 1] of an .npz with uint8 arrays (N, H, W, 3), brought to size by Lanczos."""
    arrays = open_npz(path)
    if split not in arrays.files:
        raise UserError(f"{path}: no array '{split}'; found {', '.join(arrays.files) or 'nothing'} (data.split)")
    stack = read_array(path, arrays, split)
    if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != 3 or stack.size == 0:
        raise UserError(f"{path}: '{split}' is {stack.dtype} {stack.shape}; expected uint8 (N, H, W, 3)")
    if stack.shape[1:3] != (size, size):
        stack = np.stack(
            [np.asarray(Picture.fromarray(image).resize((size, size), Picture.Resampling.LANCZOS)) for image in stack]
        )
    return torch.from_numpy(stack).movedim(-1, 1).float() / 127.5 - 1
