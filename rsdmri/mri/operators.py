r"""Multi-coil Cartesian MRI: A x = M F S_k x for the coils k = 1..K.

S_k are the coil sensitivity maps, sum_k |S_k|^2 = 1 on their support and 0 outside; F is the centred orthonormal FFT of fastMRI
(DC at N//2); M keeps the measured samples.
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
    """``maps`` (B, coils, H, W) complex; ``mask`` bool, (B, 1, 1, W) for whole columns or (B, 1, H, W).

    Images are (B, 1, H, W) complex, measurements (B, coils, H, W) complex. A^H A has a norm of at most 1.
    """

    white_on_image: ClassVar[bool] = False

    maps: Tensor
    mask: Tensor

    def forward(self, x: Image) -> Tensor:
        return self.restrict(fft2c(self.maps * x))

    def adjoint(self, y: Tensor) -> Image:
        return self._combine(ifft2c(self.restrict(y)))

    def gram(self, x: Image) -> Image:
        # F^-1 M F is a circular convolution and commutes with the shifts that centre the FFT: none is needed. A mask of whole
        # columns does nothing along the rows: one transform along W is enough.
        axes = (-2, -1) if self.mask.shape[-2] > 1 else (-1,)
        mask = torch.fft.ifftshift(self.mask, dim=axes)
        kspace = torch.fft.fftn(self.maps * x, dim=axes, norm="ortho")
        return self._combine(torch.fft.ifftn(kspace * mask, dim=axes, norm="ortho"))

    def restrict(self, y: Tensor) -> Tensor:
        # where, not a product: a product keeps the sign of a zero, and NaN.
        return torch.where(self.mask, y, 0)

    def to_image(self, y: Tensor) -> Image:
        return self.adjoint(y)

    def support(self) -> Tensor:
        return (squared(self.maps).sum(1, keepdim=True) > 0).to(self.maps.real.dtype)

    def with_mask(self, mask: Tensor) -> Self:
        return replace(self, mask=mask)

    def _combine(self, images: Tensor) -> Image:
        return (self.maps.conj() * images).sum(1, keepdim=True)
