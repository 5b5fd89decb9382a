"""A sheet for people: coil maps, eigenvalues, and what the maps leave of the coil images, of the middle slice of a scan."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..grids import save_grid
from .fourier import rss
from .operators import combine, expand

COLUMNS = 8


def write_sheet(path: Path, maps: Tensor, eigenvalues: Tensor, coil_images: Tensor, complete: bool) -> None:
    """Rows of images: |S_k| of all coils; their phases as colours; then image, eigenvalues (0 to 1), and ten times the residual.

    ``maps`` (slices, coils, H, W) or (slices, sets, coils, H, W). Coil images of an undersampled scan (not ``complete``) are aliased, and
    what maps leave of them says nothing: it is left black.
    """
    sets, values = (maps, eigenvalues) if maps.ndim == 5 else (maps[:, None], eigenvalues[:, None])
    middle = len(sets) // 2
    tiles: list[Tensor] = []
    for number in range(sets.shape[1]):
        tiles += _row([_gray(part.abs()) for part in sets[middle, number]])
        tiles += _row([_coloured(part) for part in sets[middle, number]])
    images = coil_images[middle]
    top = rss(images, 0)
    scale = torch.quantile(top.flatten()[: 1 << 24], 0.995).clamp(min=1e-30)
    seen = combine(maps[middle : middle + 1], images[None])[0]
    explained = expand(maps[middle : middle + 1], seen[None])[0]
    left = rss(images - explained, 0) / scale * 10 if complete else torch.zeros_like(top)
    last = [top / scale, *(part.abs() / scale for part in seen), *values[middle], left]
    save_grid(path, np.stack([tile.numpy() for tile in [*tiles, *_row([_gray(part) for part in last])]]), COLUMNS)


def _gray(image: Tensor) -> Tensor:
    """(H, W, 3) of values in [0, 1]."""
    return image.clamp(0, 1)[..., None].expand(-1, -1, 3)


def _coloured(part: Tensor) -> Tensor:
    """Phase as hue, magnitude as brightness, (H, W, 3)."""
    thirds = torch.tensor([0.0, 2 * torch.pi / 3, -2 * torch.pi / 3])
    hue = (1 + torch.cos(part.angle()[..., None] - thirds)) / 2
    return hue * (part.abs() > 0)[..., None]


def _row(tiles: list[Tensor]) -> list[Tensor]:
    """Tiles filled up with black to whole rows."""
    missing = -len(tiles) % COLUMNS
    return tiles + [torch.zeros_like(tiles[0])] * missing
