r"""Corruption operators: A in y = A x + sigma_y eps.

An operator is data: a frozen record of the parameters of a batch of maps A_i, one per sample, that travels beside y. A further
corrupted operator is a new record. A class is abstract or final.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor

from .tensors import Batch, Image


class LinearOperator(Batch, ABC):
    """A batch of linear maps A_i from images (B, C, H, W) to measurements, one per sample."""

    #: Whether white noise on y is white noise on ``to_image(y)``: what Tweedie's formula needs.
    white_on_image: ClassVar[bool]
    #: Whether images have a period, as under Fourier transforms: they are then mirrored about the sample N // 2 instead of their middle.
    periodic: ClassVar[bool] = False

    @abstractmethod
    def forward(self, x: Image) -> Tensor:
        """A x."""

    @abstractmethod
    def adjoint(self, y: Tensor) -> Image:
        """A^H y."""

    @abstractmethod
    def gram(self, x: Image) -> Image:
        """A^H A x; may be faster than ``adjoint(forward(x))``."""

    @abstractmethod
    def restrict(self, y: Tensor) -> Tensor:
        """y with zeros where nothing is measured."""

    @abstractmethod
    def to_image(self, y: Tensor) -> Image:
        """w: the observation on the image grid, where the teacher diffuses."""

    @abstractmethod
    def support(self) -> Tensor:
        """1 where an image can be learned, 0 elsewhere; broadcasts against images (B, 1, H, W) or (B, 1, 1, 1)."""


class MaskedOperator(LinearOperator, ABC):
    """An operator that keeps a part of its samples; the only kind that the Ambient objective accepts."""

    #: 1 = measured; (B, 1, H, W), or (B, 1, 1, W) for whole columns.
    mask: Tensor

    @abstractmethod
    def with_mask(self, mask: Tensor) -> Self:
        """The operator with another mask: a new record."""


@dataclass(frozen=True, eq=False)
class Identity(LinearOperator):
    """A x = x: denoising. ``like`` (B,) only carries the number of samples."""

    white_on_image: ClassVar[bool] = True

    like: Tensor

    def forward(self, x: Image) -> Tensor:
        return x

    def adjoint(self, y: Tensor) -> Image:
        return y

    def gram(self, x: Image) -> Image:
        return x

    def restrict(self, y: Tensor) -> Tensor:
        return y

    def to_image(self, y: Tensor) -> Image:
        return y

    def support(self) -> Tensor:
        return torch.ones_like(self.like).reshape(-1, 1, 1, 1)
