r"""Multi-coil Cartesian MRI: A x = M F S_k x for the coils k = 1..K.

S_k are the coil sensitivity maps, sum_k |S_k|^2 = 1 on their support and 0 outside; F is the centred orthonormal FFT of fastMRI
(DC at N//2); M keeps the measured samples. With several sets of maps (soft SENSE, Uecker et al. 2014) x has one image a set, and the coils
see their sum: sum_m S_mk x_m.
"""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..operators import MaskedOperator
from ..tensors import Image, squared
from .fourier import fft2c, ifft2c


@dataclass(frozen=True, eq=False)
class MultiCoilMRI(MaskedOperator):
    """``maps`` (B, coils, H, W) complex, or (B, sets, coils, H, W); ``mask`` bool, (B, 1, 1, W) for whole columns or (B, 1, H, W).

    Images are (B, 1, H, W) complex, or (B, sets, H, W); measurements (B, coils, H, W) complex. A^H A has a norm of at most 1, for
    several sets if they are orthogonal at every pixel, as ESPIRiT's are.
    """

    white_on_image: ClassVar[bool] = False
    periodic: ClassVar[bool] = True

    maps: Tensor
    mask: Tensor

    def forward(self, x: Image) -> Tensor:
        return self.restrict(fft2c(expand(self.maps, x)))

    def adjoint(self, y: Tensor) -> Image:
        return combine(self.maps, ifft2c(self.restrict(y)))

    def gram(self, x: Image) -> Image:
        # F^-1 M F is a circular convolution and commutes with the shifts that centre the FFT: none is needed. A mask of whole
        # columns does nothing along the rows: one transform along W is enough.
        axes = (-2, -1) if self.mask.shape[-2] > 1 else (-1,)
        mask = torch.fft.ifftshift(self.mask, dim=axes)
        # In place, here and below: this is called in every iteration of everything, and passes over memory are most of its time.
        kspace = torch.fft.fftn(expand(self.maps, x), dim=axes, norm="ortho").mul_(mask)
        coil_images = torch.fft.ifftn(kspace, dim=axes, norm="ortho")
        if self.maps.ndim == 5:
            return combine(self.maps, coil_images)
        return coil_images.conj_physical_().mul_(self.maps).sum(1, keepdim=True).conj_physical_()  # without a copy of conj(maps)

    def restrict(self, y: Tensor) -> Tensor:
        # where, not a product: a product keeps the sign of a zero, and NaN.
        return torch.where(self.mask, y, 0)

    def to_image(self, y: Tensor) -> Image:
        return self.adjoint(y)

    def support(self) -> Tensor:
        power = squared(self.maps)
        power = power.sum(2) if self.maps.ndim == 5 else power.sum(1, keepdim=True)
        return (power > 0).to(self.maps.real.dtype)

    def with_mask(self, mask: Tensor) -> Self:
        return replace(self, mask=mask)


def expand(maps: Tensor, x: Image) -> Tensor:
    """S_k x, or its sum over the sets: image (B, 1, H, W), or (B, sets, H, W), -> coil images (B, coils, H, W)."""
    return (maps * x[:, :, None]).sum(1) if maps.ndim == 5 else maps * x


def combine(maps: Tensor, coil_images: Tensor) -> Image:
    """sum_k conj(S_k) x_k: coil images (B, coils, H, W) -> image (B, 1, H, W), or (B, sets, H, W) of maps (B, sets, coils, H, W)."""
    if maps.ndim == 5:
        return (maps.conj() * coil_images[:, None]).sum(2)
    return (maps.conj() * coil_images).sum(1, keepdim=True)
