r"""The noise of measurements whose noise nobody recorded.

Signal only adds to what is read off, so that of several places the one with the least is the best, and where the signal is strong the
result is an upper bound: :attr:`NoiseLevel.bound` says so.

    complex samples    median |k|^2 = 2 ln 2 sigma^2 of complex normal noise of sigma per real component
    images             median |h| = 0.6745 sigma of the finest diagonal Haar coefficients h (Donoho and Johnstone 1994); of colours, those of
                       their differences, in which photographs have hardly any detail
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .tensors import Image, squared

FEWEST = 1000  # samples: the median of so many is good to 2.3 %
RELIABLE_SNR = 10.0  # above it, what is estimated is named an upper bound
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
        """Whether it is only an upper bound: it was estimated, and the signal is more than 10 times as strong."""
        return self.estimated and signal > RELIABLE_SNR * self.std


def of_samples(regions: dict[str, Tensor]) -> NoiseLevel:
    """From regions of complex samples with little signal; exact zeros, which nobody measured, are left out.

    Of the regions with enough samples (else of the largest), the one with the least.
    """
    powers = {name: power[power > 0] for name, samples in regions.items() for power in [squared(samples).flatten()]}
    most = max(len(power) for power in powers.values())
    if most == 0:
        raise ValueError("no samples to read the noise off")
    found = {
        name: math.sqrt(float(power.median()) / (2 * math.log(2)))
        for name, power in powers.items()
        if len(power) >= min(FEWEST, most)
    }
    source = min(found, key=lambda name: found[name])
    return NoiseLevel(found[source], source, estimated=True)


def of_images(images: Image) -> NoiseLevel:
    """From real images (N, C, H, W) in [-1, 1], of which H and W are at least 2; what is clipped at the ends is left out."""
    height, width = images.shape[-2] // 2 * 2, images.shape[-1] // 2 * 2
    cut = images[..., :height, :width]
    if cut.shape[1] == 3:
        cut = torch.einsum("dc,nchw->ndhw", torch.tensor(DIFFERENCES, dtype=cut.dtype), cut)
    h = (cut[..., ::2, ::2] - cut[..., 1::2, ::2] - cut[..., ::2, 1::2] + cut[..., 1::2, 1::2]) / 2
    inside = torch.nn.functional.max_pool2d(images[..., :height, :width].abs(), 2).amax(1) < 1
    levels = []
    for band in h.unbind(1):
        kept = band[inside] if int(inside.sum()) >= FEWEST else band.flatten()
        levels.append(float(kept.abs().median()) / MEDIAN_OF_NORMAL)
    return NoiseLevel(min(levels), "finest wavelet band", estimated=True)
