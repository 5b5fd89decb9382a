"""Corruptions of photographs: real images (B, 3, H, W) in [-1, 1]."""

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from rsdmri.operators import MaskedOperator
from rsdmri.tensors import Image


@dataclass(frozen=True, eq=False)
class Inpainting(MaskedOperator):
    """A x = M x: ``mask`` (B, 1, H, W) bool says which pixels are seen; the channels share it."""

    white_on_image: ClassVar[bool] = True

    mask: Tensor

    def forward(self, x: Image) -> Tensor:
        return self.restrict(x)

    def adjoint(self, y: Tensor) -> Image:
        return self.restrict(y)

    def gram(self, x: Image) -> Image:
        return self.restrict(x)

    def restrict(self, y: Tensor) -> Tensor:
        return torch.where(self.mask, y, 0)

    def to_image(self, y: Tensor) -> Image:
        return y

    def support(self) -> Tensor:
        return torch.ones_like(self.mask[:, :, :1, :1], dtype=torch.get_default_dtype())

    def with_mask(self, mask: Tensor) -> Self:
        return replace(self, mask=mask)
