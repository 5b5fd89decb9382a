r"""Fourier transforms of MRI, as in fastMRI: centred (DC at N // 2) and orthonormal, over the last two axes.

k[u] = 1/sqrt(N) sum_n x[n] exp(-2 pi i (u - N//2) (n - N//2) / N)     in each direction
"""

import torch
from torch import Tensor

from ..tensors import squared

AXES = (-2, -1)


def fft2c(x: Tensor) -> Tensor:
    """Image (..., H, W) -> centred k-space (..., H, W)."""
    with torch.autocast(x.device.type, enabled=False):  # there is no half-precision complex FFT worth having
        return torch.fft.fftshift(torch.fft.fft2(torch.fft.ifftshift(x, dim=AXES), norm="ortho"), dim=AXES)


def ifft2c(kspace: Tensor) -> Tensor:
    """Centred k-space (..., H, W) -> image (..., H, W): the inverse and the adjoint of :func:`fft2c`."""
    with torch.autocast(kspace.device.type, enabled=False):
        return torch.fft.fftshift(torch.fft.ifft2(torch.fft.ifftshift(kspace, dim=AXES), norm="ortho"), dim=AXES)


def crop(x: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of the last two axes, from (N - n) // 2 on as fastMRI cuts images; ``ValueError`` if ``size`` is larger."""
    (height, width), (h, w) = _fitting(x, size), size
    top, left = (height - h) // 2, (width - w) // 2
    return x[..., top : top + h, left : left + w]


def crop_kspace(kspace: Tensor, size: tuple[int, int]) -> Tensor:
    """The centre of k-space with DC kept at n // 2: the same image on a coarser grid.

    The image comes out brighter by sqrt(H W / (h w)), because the FFT is orthonormal on both grids.
    """
    (height, width), (h, w) = _fitting(kspace, size), size
    top, left = height // 2 - h // 2, width // 2 - w // 2
    return kspace[..., top : top + h, left : left + w]


def resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Smooth images (..., H, W), real or complex, at the places of another grid of the same field of view, by linear interpolation.

    Pixel r lies at (r - N // 2) / N, as the centred FFT has it; the field is periodic.
    """
    along_y, along_x = (_weights(n, before).to(x.device, x.dtype) for n, before in zip(size, x.shape[-2:], strict=True))
    return along_y @ x @ along_x.T


def _weights(n: int, before: int) -> Tensor:
    """Rows (n, before) of two weights each."""
    places = (torch.arange(n, dtype=torch.float64) - n // 2) * (before / n) + before // 2
    lower = places.floor()
    weights = torch.zeros(n, before, dtype=torch.float64)
    rows = torch.arange(n)
    weights[rows, lower.long() % before] += 1 - (places - lower)
    weights[rows, (lower.long() + 1) % before] += places - lower
    return weights


def rss(x: Tensor, dim: int) -> Tensor:
    """Root of the sum of squares over the coils."""
    return squared(x).sum(dim).sqrt()


def _fitting(x: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    height, width = x.shape[-2:]
    if size[0] > height or size[1] > width:
        raise ValueError(f"cannot crop {height} x {width} to {size[0]} x {size[1]}")
    return height, width
