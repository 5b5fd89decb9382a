"""Images as they stand in the report: PNGs inside the page, phases in colour, and samples beside their nearest neighbours."""

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .errors import UserError
from .grids import pixels_of
from .metrics.bands import bands

SHARP = 192  # small images are enlarged to this by repetition: a browser would blur them
AREA = 1 << 20  # pixels of a grid: of large images fewer are shown
PAGE = 6 << 20  # pixels of all grids of a page, which is to stay below 10 MB
MOST_COMPARED = 2000  # observations among which a nearest one is looked for
THUMB = 128  # phases and neighbours of larger images are made smaller than this: a page of them has to stay small
HUES, SHADES = 32, 8  # of a phase: 256 colours are one byte a pixel
LIGHTNESS, CHROMA = 70.0, 38.0  # of the colours of phases (CIELAB): a circle that a screen can show
BRIGHT = 99  # percentile of the magnitudes above which a phase has its full brightness
Pixels: TypeAlias = NDArray[np.uint8]


@dataclass(frozen=True)
class Grid:
    """Some images of one kind: ``(n, H, W)`` or ``(n, H, W, 3)``, display values in [0, 1]."""

    title: str
    images: ArrayLike
    caption: str = ""
    complex_images: NDArray[np.complexfloating] | None = None
    """The same images ``(n, H, W)`` where they are complex: their phases can be looked at, too."""


@dataclass(frozen=True)
class Neighbours:
    """Samples of one kind beside the training images nearest to them; all display images."""

    title: str
    images: ArrayLike
    nearest: ArrayLike
    distances: Sequence[float]


@dataclass(frozen=True)
class Yardstick:
    """What a distance to the nearest neighbour is to be held against."""

    observations: int
    """Among how many it was looked for."""
    to_nearest: float
    """The median distance of one of them to the nearest other."""
    to_any: float
    """The median distance of two of them."""


def yardstick_of(observations: NDArray[np.float64]) -> Yardstick:
    """How far observations lie from each other, of their features (N, D), N > 1."""
    from scipy.spatial.distance import pdist, squareform

    pairs = pdist(observations)
    square = squareform(pairs)
    np.fill_diagonal(square, np.inf)
    return Yardstick(len(observations), float(np.median(square.min(1))), float(np.median(pairs)))


def features_of(images: ArrayLike) -> NDArray[np.float64]:
    """The features ``bands`` of display images ``(n, H, W[, 3])``."""
    pixels = pixels_of(images)
    return bands(pixels if pixels.ndim == 4 else pixels[..., None])


def shows(size: tuple[int, int], most: int, grids: int) -> int:
    """How many images of a size each of so many grids shows: as many as keep the page small, and at least two."""
    return max(2, min(most, min(AREA, PAGE // grids) // (size[0] * size[1])))


def grid_of(grid: Grid) -> dict[str, Any]:
    """What the page shows of a grid."""
    pixels = pixels_of(grid.images)
    phases: list[str | None] = [None] * len(pixels)
    if grid.complex_images is not None:
        if grid.complex_images.shape != pixels.shape[:3]:
            raise UserError(f"complex images of {grid.complex_images.shape} cannot be those of {pixels.shape}")
        phases = [_palette_uri(image) for image in phase_indices(grid.complex_images)]
    images = [{"uri": data_uri(image), "phase": phase} for image, phase in zip(pixels, phases, strict=True)]
    return {"title": grid.title, "caption": grid.caption, "columns": _columns(len(pixels)), "images": images}


def pairs_of(found: Neighbours) -> dict[str, Any]:
    """What the page shows of samples and their neighbours, small."""
    ours, theirs = (smaller(pixels_of(images)) for images in (found.images, found.nearest))
    pairs = [
        {"ours": data_uri(a), "theirs": data_uri(b), "distance": distance}
        for a, b, distance in zip(ours, theirs, found.distances, strict=True)
    ]
    return {"title": found.title, "pairs": pairs, "least": min(found.distances)}


def _columns(n: int) -> int:
    return min(6, math.ceil(math.sqrt(n)))


def smaller(images: Pixels) -> Pixels:
    """Means of blocks of pixels, so many that no side is longer than 128."""
    means = block_means(images.astype(np.float64), THUMB)
    return np.rint(means).astype(np.uint8)


def block_means(images: NDArray[Any], side: int) -> NDArray[Any]:
    """``(n, H, W[, channels])`` with no side longer than ``side``; what is left of a block at the edge is cut off."""
    factor = math.ceil(max(images.shape[1:3]) / side)
    if factor == 1:
        return images
    height, width = (length // factor for length in images.shape[1:3])
    blocks = images[:, : height * factor, : width * factor].reshape(len(images), height, factor, width, factor, *images.shape[3:])
    means: NDArray[Any] = blocks.mean((2, 4))
    return means


# Phase


@cache
def phase_colours() -> Pixels:
    """The 256 colours of phases, (256, 3): 32 hues round a circle of equal lightness, each in 8 shades from black.

    Equal lightness, because brightness says how strong the signal is.
    """
    angle = 2 * np.pi * np.arange(HUES) / HUES
    full = _srgb_of_lab(np.full(HUES, LIGHTNESS), CHROMA * np.cos(angle), CHROMA * np.sin(angle))
    shades = np.arange(SHADES) / (SHADES - 1)
    return np.rint(255 * full[:, None] * shades[:, None]).astype(np.uint8).reshape(-1, 3)


def phase_indices(images: NDArray[np.complexfloating]) -> Pixels:
    """The colour of each pixel ``(n, h, w)`` of complex images, which are made small first: hue by phase, shade by magnitude."""
    small = block_means(np.nan_to_num(images), THUMB)
    magnitude = np.abs(small)
    bright = np.percentile(magnitude, BRIGHT) or 1.0
    shade = np.rint((SHADES - 1) * np.sqrt(np.clip(magnitude / bright, 0, 1))).astype(int)
    hue = np.rint(HUES * np.angle(small) / (2 * np.pi)).astype(int) % HUES
    return (hue * SHADES + shade).astype(np.uint8)


@cache
def phase_key() -> str:
    """A strip of the hues from -pi to pi."""
    angles = np.linspace(-np.pi, np.pi, 4 * HUES, endpoint=False)
    hue = np.rint(HUES * angles / (2 * np.pi)).astype(int) % HUES
    return _palette_uri((hue * SHADES + SHADES - 1).astype(np.uint8)[None].repeat(8, 0))


def _srgb_of_lab(lightness: NDArray[np.float64], a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """CIELAB (D65) to sRGB in [0, 1], by their standards (CIE 15, IEC 61966-2-1)."""
    fy = (lightness + 16) / 116
    f = np.stack([fy + a / 500, fy, fy - b / 200], -1)
    ratio = np.where(f > 6 / 29, f**3, 3 * (6 / 29) ** 2 * (f - 4 / 29))
    xyz = ratio * (0.95047, 1.0, 1.08883)
    matrix = np.array([[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]])
    linear = np.clip(xyz @ matrix.T, 0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


# PNG


def data_uri(image: Pixels) -> str:
    """One image, enlarged by repetition if it is small."""
    return _uri(Image.fromarray(_enlarged(image)))


def _palette_uri(indices: Pixels) -> str:
    image = Image.fromarray(_enlarged(indices))
    image.putpalette(phase_colours().tobytes())
    return _uri(image)


def _enlarged(image: Pixels) -> Pixels:
    factor = max(1, SHARP // max(image.shape[:2]))
    return image.repeat(factor, 0).repeat(factor, 1)


def _uri(image: Image.Image) -> str:
    stream = io.BytesIO()
    image.save(stream, "png", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
