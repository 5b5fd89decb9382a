"""Photographs from files."""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
from PIL import Image as Picture
from torch import Tensor

from rsdmri.errors import UserError


def read_images(path: Path, split: str, size: int) -> Tensor:
    """Photographs (N, 3, size, size) in [-1, 1] of an .npz with uint8 arrays (N, H, W, 3), brought to size by Lanczos."""
    try:
        arrays = np.load(path, allow_pickle=False)
    except (OSError, ValueError, BadZipFile) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from None
    if not isinstance(arrays, np.lib.npyio.NpzFile) or split not in arrays.files:
        found = ", ".join(arrays.files) if isinstance(arrays, np.lib.npyio.NpzFile) else "one array"
        raise UserError(f"{path}: no array '{split}'; found {found} (data.split)")
    stack = arrays[split]
    if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != 3:
        raise UserError(f"{path}: '{split}' is {stack.dtype} {stack.shape}; expected uint8 (N, H, W, 3)")
    if stack.shape[1:3] != (size, size):
        stack = np.stack(
            [np.asarray(Picture.fromarray(image).resize((size, size), Picture.Resampling.LANCZOS)) for image in stack]
        )
    return torch.from_numpy(stack).movedim(-1, 1).float() / 127.5 - 1
