r"""The noise of measurements whose noise nobody recorded.

Signal only adds to what is read off, so that of several places the one with the least is the best, and where the signal is strong the
result is an upper bound: :attr:`NoiseLevel.bound` says so.

    complex samples    median |k|^2 = 2 ln 2 sigma^2 of complex normal noise of sigma per real component; the root mean square over coils
    images             median |h| = 0.6745 sigma of the finest diagonal Haar coefficients h (Donoho and Johnstone 1994); of colours, those of
                       their differences, in which photographs have hardly any detail
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, max_pool2d

from .errors import UserError
from .tensors import Image, squared

FEWEST = 1000  # samples: the median of so many is good to 2.3 %
NAMED_ABOVE = 8.5  # times what was found, which at a true ratio of 10 is up to 15 % too much: then it is named an upper bound
COMPRESSED = 0.15  # of the details of twice the size: colours with less at the finest scale were stored at half resolution
FEWEST_COLOURED = 20  # images whose channels differ
MEDIAN_OF_NORMAL = 0.6744897501960817  # of its absolute value
#: Orthonormal differences of three colours.
DIFFERENCES = ((1 / math.sqrt(2), -1 / math.sqrt(2), 0.0), (1 / math.sqrt(6), 1 / math.sqrt(6), -2 / math.sqrt(6)))


@dataclass(frozen=True)
class NoiseLevel:
    """sigma_y per real component, where it was found, and whether it was estimated among signal instead of known."""

    std: float
    source: str
    estimated: bool

    def bound(self, signal: float) -> bool:
        """Whether it is only an upper bound: it was estimated, and the signal is about 10 times as strong, or more."""
        return self.estimated and signal > NAMED_ABOVE * self.std


def of_samples(regions: dict[str, Tensor]) -> NoiseLevel:
    """From regions (..., coils, H, W) of complex samples with little signal; exact zeros, which nobody measured, are left out.

    Of the regions with enough samples (else of the largest), the one with the least.
    """
    counts = {name: int((samples != 0).sum()) for name, samples in regions.items()}
    most = max(counts.values())
    if most == 0:
        raise ValueError("no samples to read the noise off")
    found = {name: _level(samples) for name, samples in regions.items() if counts[name] >= min(FEWEST, most)}
    source = min(found, key=lambda name: found[name])
    return NoiseLevel(found[source], source, estimated=True)


def _level(samples: Tensor) -> float:
    """sigma of samples (..., coils, H, W), whose coils may have noise of their own."""
    coils = squared(samples).movedim(-3, 0).flatten(1)
    variances = [power[power > 0].median() / (2 * math.log(2)) for power in coils if bool((power > 0).any())]
    return math.sqrt(float(torch.stack(variances).mean()))


def of_images(images: Image) -> NoiseLevel:
    """From real images (N, C, H, W) in [-1, 1], H and W even; what is clipped at the ends is left out.

    A :class:`UserError` for colours that were stored at half resolution, as JPEG does: their noise is not white any more. Of images whose
    channels are equal (grey ones stored as colours) the one channel is taken.
    """
    grey = (images == images[:, :1]).flatten(1).all(1)
    colours = images[~grey] if images.shape[1] == 3 and int((~grey).sum()) >= FEWEST_COLOURED else images[:0]
    shown = colours if len(colours) else images
    inside = max_pool2d(shown.abs(), 2).amax(1) < 1
    if len(colours):
        bands = torch.einsum("dc,nchw->ndhw", torch.tensor(DIFFERENCES, dtype=images.dtype), colours)
        coarser = _median(_diagonal(avg_pool2d(bands, 2) * 2).flatten()) if min(bands.shape[-2:]) >= 4 else 0.0
        if _median(_diagonal(bands).flatten()) < COMPRESSED * coarser:
            raise UserError(
                "the colours have hardly any detail at the finest scale, as in compressed files (JPEG), where noise is not white any more:"
                " give data.noise_std, or the pictures before they were compressed"
            )
    else:
        bands = images[:, :1] if bool(grey.all()) else images
    enough = int(inside.sum()) >= FEWEST
    levels = [_median(band[inside] if enough else band.flatten()) for band in _diagonal(bands).unbind(1)]
    return NoiseLevel(min(levels) / MEDIAN_OF_NORMAL, "finest wavelet band", estimated=True)


def _diagonal(x: Tensor) -> Tensor:
    """The diagonal Haar coefficients of the finest scale, orthonormal; an odd last row or column is left out."""
    height, width = x.shape[-2] // 2 * 2, x.shape[-1] // 2 * 2
    x = x[..., :height, :width]
    return (x[..., ::2, ::2] - x[..., 1::2, ::2] - x[..., ::2, 1::2] + x[..., 1::2, 1::2]) / 2


def _median(values: Tensor) -> float:
    return float(values.abs().median())
