"""Whether the phase of complex images is right, of which magnitudes say nothing.

The phase of an image is known but for a constant; what it looks like is how it changes from pixel to pixel. For lags of 1, 2 and 4 pixels
along both axes, the differences arg(x[i + lag] conj x[i]) are counted by the product of their magnitudes, so that the background, whose
phase is noise, counts little. :func:`phase` is the Wasserstein distance of these histograms on the circle, image by image and angle by angle.
"""

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

LAGS = (1, 2, 4)
BINS = 72  # of 5 degrees

Histograms = NDArray[np.float64]  # (N, 2 * lags, bins), each of sum one


def phase_histograms(images: NDArray[np.complexfloating]) -> Histograms:
    """The histograms of complex images (N, H, W) of more than four pixels a side.

    Raises:
        UserError: the images are real, too small or not finite.
    """
    if not np.iscomplexobj(images) or images.ndim != 3 or min(images.shape[1:], default=0) <= max(LAGS):
        shape = " x ".join(map(str, images.shape))
        raise UserError(
            f"phase needs complex images (N, H, W) of more than {max(LAGS)} pixels a side, not {images.dtype} {shape}"
        )
    if not np.isfinite(images).all():
        raise UserError("some images hold NaN or infinity; their phase cannot be compared")
    return np.stack([_histogram(image) for image in images])


def phase(a: Histograms, b: Histograms) -> float:
    r"""Distance of two sets of histograms of as many images, in degrees.

    .. math::
        \frac{1}{L} \sum_l W_1\big(\overline{h}^a_l, \overline{h}^b_l\big) + W_1\big(\{w_i\}_{i \in a}, \{w_j\}_{j \in b}\big)

    with :math:`\overline{h}_l` the mean histogram at lag l, compared on the circle, and :math:`w_i` how widely the differences of image i
    spread: the first part sees a wrong phase, the second a phase of the wrong variety.
    """
    means = [circular_wasserstein(h, g) for h, g in zip(a.mean(0), b.mean(0), strict=True)]
    widths = [np.sort(_width(h), axis=0) for h in (a, b)]
    return float(np.mean(means) + np.abs(widths[0] - widths[1]).mean())


def circular_wasserstein(h: NDArray[np.float64], g: NDArray[np.float64]) -> float:
    """Wasserstein-1 of two histograms of sum one on the circle, in degrees: their difference, summed up, about its median."""
    total = np.cumsum(h - g)
    return float(np.abs(total - np.median(total)).sum() * 360 / BINS)


def _histogram(image: NDArray[np.complexfloating]) -> Histograms:
    rows = []
    for axis in (0, 1):
        for lag in LAGS:
            later, earlier = np.split(image, [lag], axis)[1], np.split(image, [-lag], axis)[0]
            product = later * earlier.conj()
            weight = np.abs(product).astype(np.float64)
            # Zero lies in the middle of a bin, not on the border of two.
            place = np.rint(np.angle(product) * (BINS / (2 * np.pi))).astype(np.int64) % BINS
            total = weight.sum()
            counts = np.bincount(place.ravel(), weight.ravel(), BINS)
            rows.append(
                counts / total if total > 0 else np.eye(1, BINS)[0]
            )  # an empty image has no phase: as if it were constant
    return np.stack(rows)


def _width(h: Histograms) -> NDArray[np.float64]:
    """The mean absolute difference in degrees of each image and lag."""
    angle = np.abs((np.arange(BINS) + BINS // 2) % BINS - BINS // 2) * (360 / BINS)
    width: NDArray[np.float64] = h @ angle
    return width
