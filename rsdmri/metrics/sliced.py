"""Sliced Wasserstein distance between two sets of images, patch by patch and scale by scale.

The idea is that of Karras et al., "Progressive Growing of GANs" (ICLR 2018), section 5: each level
of a Laplacian pyramid (Burt and Adelson 1983) shows one band of scales, a 7x7 patch of it is a
point, and two clouds of points are compared along random directions, where the Wasserstein distance
is the mean difference of the sorted projections.

Unlike there, both sets are normalised by the statistics of the *reference* set, so that a wrong
contrast counts.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..tensors import make_generator, randn

ImageSet: TypeAlias = NDArray[np.floating] | Tensor  # (N, H, W) or (N, H, W, channels), in [0, 1]
Array: TypeAlias = NDArray[np.float32]
Indices: TypeAlias = NDArray[np.int64]

PATCH = 7
COARSEST = 16  # pixels of the shorter side below which the pyramid ends
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
GREY_LEVEL = 1 / 255  # smallest scale: what varies less shows the rounding to 8 bits only
CHUNK = 2**22  # projected values held at once, a side
BLOCK = 512  # images whose pyramids are held at once
MOST_PATCHES, FEWEST_PATCHES = 2**20, 4  # of a set, of an image: beyond 16,384 images fewer than 64 are taken of each
RESAMPLED_DIRECTIONS, RESAMPLED_PATCHES = (
    32,
    2**18,
)  # for an interval, a side: how far the distance varies needs fewer than its value


def swd(a: ImageSet, b: ImageSet, *, seed: int = 0, patches: int = 64, projections: int = 256) -> float:
    r"""Sliced Wasserstein distance from the images ``a`` to the reference ``b``, times 1000.

    .. math::
        \frac{1000}{L K} \sum_{l, k}
        W_1\big(\langle \theta_k, P_l(a) \rangle, \langle \theta_k, P_l(b) \rangle\big)

    with :math:`P_l` the normalised patches of level l of L, and :math:`\theta_k` K random unit
    vectors.

    The value is a function of the images and ``seed``. Image i of either set is cut at the same
    positions, so that the distance of a set to itself is zero. Positions differ between images,
    so that another order of the images changes the value, by less than the distance between two
    halves of one set. It is symmetric but for the normalisation.

    Args:
        a, b: as many images on both sides, at least 7x7 pixels, display values in [0, 1].
        patches: positions an image and level.
        projections: random directions a level.

    Raises:
        UserError: the sets differ in number or shape, or hold anything but finite real images.
    """
    return clouds(a, b, seed=seed, patches=patches, projections=projections).distance()


@dataclass(frozen=True)
class Level:
    """The normalised patches of one level, (N * patches, values) a side, image by image, and the directions (K, values)."""

    a: Array
    b: Array
    directions: Array

    def ordered(self, patches: int, kept: int) -> tuple[Array, NDArray[np.int32]]:
        """The projections of ``kept`` of each image's ``patches`` on some directions: gaps between neighbours (K, 2M - 1), and whose each
        is (K, 2M), those of a first."""
        points = np.concatenate(
            [cloud.reshape(-1, patches, cloud.shape[1])[:, :kept].reshape(-1, cloud.shape[1]) for cloud in (self.a, self.b)]
        )
        values = self.directions[:RESAMPLED_DIRECTIONS] @ points.T
        order = np.argsort(values, axis=1).astype(np.int32)
        return np.diff(np.take_along_axis(values, order, 1)), order


class Clouds:
    """Two sets of images as clouds of patches: their distance, and that of sets resampled from them."""

    def __init__(self, levels: Sequence[Level], patches: int) -> None:
        self.levels, self.patches = levels, patches

    def distance(self) -> float:
        """The distance, times 1000."""
        return 1e3 * float(np.mean([wasserstein(level.a, level.b, level.directions) for level in self.levels]))

    def resampled(self, i: Indices, j: Indices) -> float:
        """The distance of the images ``i`` of a to the images ``j`` of b, which may repeat, along a few of the directions.

        Nothing is sorted again: W_1 is the integral of the difference of both distribution functions, in which images have weights.
        """
        kept = self._kept
        weights = np.concatenate(
            [np.bincount(i, minlength=self._images) / len(i), -np.bincount(j, minlength=self._images) / len(j)]
        )
        points = np.repeat(weights / kept, kept).astype(np.float32)
        found = [
            np.abs(np.cumsum(points[order], axis=1)[:, :-1] * gaps).sum(1, dtype=np.float64) for gaps, order in self._ordered
        ]
        return 1e3 * float(np.mean([level.mean() for level in found]))

    @property
    def _images(self) -> int:
        return len(self.levels[0].a) // self.patches

    @cached_property
    def _ordered(self) -> list[tuple[Array, NDArray[np.int32]]]:
        return [level.ordered(self.patches, self._kept) for level in self.levels]

    @property
    def _kept(self) -> int:
        """Patches of an image that an interval is made of."""
        return max(1, min(self.patches, RESAMPLED_PATCHES // self._images))


def clouds(a: ImageSet, b: ImageSet, *, seed: int = 0, patches: int = 64, projections: int = 256) -> Clouds:
    """What :func:`swd` compares; of many images fewer patches are taken, so that memory stays bounded."""
    a, b = image_sets(a, b)
    if min(a.shape[1:3]) < PATCH:
        size = f"{a.shape[1]}x{a.shape[2]}"
        raise UserError(f"swd needs images of at least {PATCH}x{PATCH} pixels, not {size}")
    patches = max(FEWEST_PATCHES, min(patches, MOST_PATCHES // len(a)))
    levels = []
    places = [_places(seed, level, len(a), patches, size) for level, size in enumerate(level_sizes(*a.shape[1:3]))]
    for level, (cut_a, cut_b) in enumerate(zip(_cut_levels(a, places), _cut_levels(b, places), strict=True)):
        cut_a, cut_b = normalised(cut_a, cut_b)
        directions = randn((projections, cut_b.shape[1]), torch.float32, places[level].generator).numpy()
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        levels.append(Level(cut_a, cut_b, directions))
    return Clouds(levels, patches)


class Places(NamedTuple):
    """Where the patches of a level are cut, (N, patches) each; the generator draws the level's directions next."""

    rows: Indices
    columns: Indices
    generator: torch.Generator


def _places(seed: int, level: int, n: int, patches: int, size: tuple[int, int]) -> Places:
    generator = make_generator(seed, level)
    rows, columns = (torch.randint(length - PATCH + 1, (n, patches), generator=generator).numpy() for length in size)
    return Places(rows, columns, generator)


def _cut_levels(images: Array, places: Sequence[Places]) -> list[Array]:
    """The patches of every level, a block of images at a time: pyramids of all of them would be many times the patches."""
    found: list[list[Array]] = [[] for _ in places]
    for start in range(0, len(images), BLOCK):
        block = slice(start, start + BLOCK)
        for part, band, place in zip(found, laplacian(images[block]), places, strict=True):
            part.append(cut(band, place.rows[block], place.columns[block]))
    return [np.concatenate(part) for part in found]


def image_sets(a: ImageSet, b: ImageSet) -> tuple[Array, Array]:
    """Both sets as :func:`as_array` gives them; :class:`UserError` unless number and size agree."""
    first, second = as_array(a), as_array(b)
    if first.shape != second.shape:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise UserError(f"only sets of one number and size of images can be compared, not {shapes}")
    return first, second


def as_array(images: ImageSet) -> Array:
    """The images as ``(N, H, W, channels)`` float32; :class:`UserError` unless real and finite."""
    array = images.detach().cpu().numpy() if isinstance(images, Tensor) else np.asarray(images)
    if array.ndim == 3:
        array = array[..., None]
    if array.ndim != 4 or not array.size or array.shape[-1] not in (1, 3):
        shape = tuple(images.shape)
        raise UserError(f"images must have the shape (N, H, W) or (N, H, W, 3), not {shape}")
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"images must be real numbers in [0, 1], not {array.dtype}")
    if not np.isfinite(array).all():
        raise UserError("some images hold NaN or infinity; they cannot be compared")
    return array.astype(np.float32, copy=False)


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """Rows and columns of each level of :func:`laplacian`."""
    sizes = [(height, width)]
    while min(sizes[-1]) >= 2 * COARSEST:
        sizes.append(((sizes[-1][0] + 1) // 2, (sizes[-1][1] + 1) // 2))
    return sizes


def laplacian(images: Array) -> Iterator[Array]:
    """The Laplacian pyramid, finest level first; the last level is the remaining low-pass image."""
    while min(images.shape[1:3]) >= 2 * COARSEST:
        coarse = _smooth(images)[:, ::2, ::2]
        spread = np.zeros_like(images)
        spread[:, ::2, ::2] = 4 * coarse  # three of four pixels are zero: keeps the mean
        yield images - _smooth(spread)
        images = coarse
    yield images


def _smooth(images: Array) -> Array:
    """The binomial filter along rows and columns, mirrored at the borders."""
    for axis in (1, 2):
        padded = np.pad(images, [(2, 2) if i == axis else (0, 0) for i in range(4)], mode="reflect")
        taps = np.lib.stride_tricks.sliding_window_view(padded, len(BINOMIAL), axis=axis)
        images = taps @ np.array(BINOMIAL, np.float32)
    return images


def cut(images: Array, rows: Indices, columns: Indices) -> Array:
    """Patches whose upper left corners lie at ``(N, patches)`` places: ``(N * patches, C, 49)``."""
    windows = np.lib.stride_tricks.sliding_window_view(images, (PATCH, PATCH), axis=(1, 2))
    chosen = windows[np.arange(len(images))[:, None], rows, columns]
    return chosen.reshape(-1, images.shape[-1], PATCH * PATCH)


def normalised(a: Array, b: Array) -> tuple[Array, Array]:
    """Both clouds of patches, flat, by the mean and standard deviation of each channel of ``b``."""
    mean = b.mean((0, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    std = b.std((0, 2), keepdims=True, dtype=np.float64).astype(np.float32)
    scale = np.maximum(std, np.float32(GREY_LEVEL))
    return ((a - mean) / scale).reshape(len(a), -1), ((b - mean) / scale).reshape(len(b), -1)


def wasserstein(a: Array, b: Array, directions: Array) -> float:
    """Wasserstein-1 of two equally large clouds of points, averaged over unit ``directions``."""
    total = 0.0
    step = max(1, CHUNK // len(a))
    for start in range(0, len(directions), step):
        chosen = directions[start : start + step]
        difference = np.sort(chosen @ a.T) - np.sort(chosen @ b.T)
        total += float(np.abs(difference).mean(1, dtype=np.float64).sum())
    return total / len(directions)
