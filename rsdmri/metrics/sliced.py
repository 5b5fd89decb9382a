"""Sliced Wasserstein distance between two sets of images, patch by patch and scale by scale.

The idea is that of Karras et al., "Progressive Growing of GANs" (ICLR 2018), section 5: each level
of a Laplacian pyramid (Burt and Adelson 1983) shows one band of scales, a 7x7 patch of it is a
point, and two clouds of points are compared along random directions, where the Wasserstein distance
is the mean difference of the sorted projections.

Unlike there, both sets are normalised by the statistics of the *reference* set, so that a wrong
contrast counts.
"""

from collections.abc import Iterator
from typing import TypeAlias

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
    a, b = image_sets(a, b)
    if min(a.shape[1:3]) < PATCH:
        size = f"{a.shape[1]}x{a.shape[2]}"
        raise UserError(f"swd needs images of at least {PATCH}x{PATCH} pixels, not {size}")
    distances = []
    for level, (band_a, band_b) in enumerate(zip(laplacian(a), laplacian(b), strict=True)):
        generator = make_generator(seed, level)
        rows, columns = (
            torch.randint(size - PATCH + 1, (len(a), patches), generator=generator).numpy() for size in band_b.shape[1:3]
        )
        cut_a, cut_b = normalised(cut(band_a, rows, columns), cut(band_b, rows, columns))
        directions = randn((projections, cut_b.shape[1]), torch.float32, generator).numpy()
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        distances.append(wasserstein(cut_a, cut_b, directions))
    return 1e3 * float(np.mean(distances))


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
