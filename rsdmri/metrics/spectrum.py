"""Distance between the radially averaged power spectra of two sets of images."""

import numpy as np
from numpy.typing import NDArray

from .sliced import Array, ImageSet, Indices, as_array, image_sets

BLOCK = 256  # images transformed at once
FLOOR = 1e-4  # of the reference's mean power at a radius: a missing band counts four decades
EMPTY = 1e-12  # power a pixel where the reference has none; the rounding to 8 bits has 1e-6


def psd(a: ImageSet, b: ImageSet) -> float:
    r"""Radial log-power gap from the images ``a`` to the reference ``b``, in decades.

    .. math::
        \frac{1}{R} \sum_r W_1\big(\{\log_{10}(p_i(r) + \epsilon_r)\}_{i \in a},
        \{\log_{10}(p_j(r) + \epsilon_r)\}_{j \in b}\big)

    with :math:`p_i(r)` of :func:`radial_power`, and :math:`\epsilon_r` 1e-4 times the mean of
    :math:`p_j(r)` over b. A power that is wrong by one factor in every image shows as the logarithm
    of that factor; a set of the right mean with too little variety shows as well, because
    distributions over images are compared and not means.

    Raises:
        UserError: the sets differ in number or shape, or hold anything but finite real images.
    """
    return psd_of_power(*(radial_power(images) for images in image_sets(a, b)))


def psd_of_power(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """The same from the spectra of :func:`radial_power`."""
    floor = FLOOR * second.mean(0) + EMPTY
    logs_a, logs_b = (np.sort(np.log10(power + floor), axis=0) for power in (first, second))
    return float(np.abs(logs_a - logs_b).mean())


def radial_power(images: ImageSet) -> NDArray[np.float64]:
    """Radially averaged power spectrum of each image, ``(N, R)``.

    Radius r is r cycles over the shorter side, from 0 to its Nyquist frequency, so that
    R = min(H, W) // 2 + 1. White noise has its variance as power at every radius (orthonormal
    transform). A Hann window keeps the jump between opposite borders, which is no property of the
    image, out of its spectrum; channels are averaged.
    """
    array = as_array(images)
    window = _hann(array.shape[1])[:, None] * _hann(array.shape[2])
    order, starts, counts = _rings(array.shape[1], array.shape[2])
    blocks = []
    for start in range(0, len(array), BLOCK):
        power = _power(array[start : start + BLOCK], window)
        blocks.append(np.add.reduceat(power[:, order], starts, axis=1) / counts)
    return np.concatenate(blocks)


def _hann(size: int) -> NDArray[np.float64]:
    """A periodic Hann window of unit mean square."""
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    return window / np.sqrt(np.square(window).mean())


def _power(images: Array, window: NDArray[np.float64]) -> NDArray[np.float64]:
    """``(n, H * W)`` power at every frequency, averaged over channels."""
    spectrum = np.fft.fft2(images * window[..., None], axes=(1, 2), norm="ortho")
    return np.square(np.abs(spectrum)).mean(-1).reshape(len(images), -1)


def _rings(height: int, width: int) -> tuple[Indices, Indices, Indices]:
    """Frequencies in the order of their radius, without the corners beyond Nyquist; where each
    radius begins; how many frequencies it has."""
    shorter = min(height, width)
    radius = shorter * np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width))
    ring = np.rint(radius).astype(np.int64).ravel()
    counts = np.bincount(ring)[: shorter // 2 + 1]
    order = np.argsort(ring, kind="stable")[: counts.sum()]
    return order, np.cumsum(counts) - counts, counts
