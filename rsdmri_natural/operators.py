r"""Corruptions of photographs: A in y = A x + sigma_y eps, for real images (B, C, H, W) in [-1, 1].

All of them leave y on the image grid, with noise that is white there: w = to_image(y) = y. Denoising is the engine's ``Identity``.
"""

from abc import ABC
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from rsdmri.operators import LinearOperator, MaskedOperator
from rsdmri.tensors import Image, per_sample, rand, randn_like


class OnImageGrid(LinearOperator, ABC):
    """A measurement that is an image of the same grid: w = y, and white noise stays white."""

    white_on_image: ClassVar[bool] = True

    def gram(self, x: Image) -> Image:
        return self.adjoint(self.forward(x))

    def restrict(self, y: Tensor) -> Tensor:
        return y

    def to_image(self, y: Tensor) -> Image:
        return y

    def support(self) -> Tensor:
        (like,) = self.tensors()
        return torch.ones(len(like), 1, 1, 1, dtype=torch.float32, device=like.device)


@dataclass(frozen=True, eq=False)
class Inpainting(MaskedOperator, OnImageGrid):
    """A x = M x: ``mask`` (B, 1, H, W) bool says which pixels are seen; the channels share it."""

    mask: Tensor

    def forward(self, x: Image) -> Tensor:
        return self.restrict(x)

    def adjoint(self, y: Tensor) -> Image:
        return self.restrict(y)

    def gram(self, x: Image) -> Image:
        return self.restrict(x)

    def restrict(self, y: Tensor) -> Tensor:
        return torch.where(self.mask, y, 0)

    def with_mask(self, mask: Tensor) -> Self:
        return replace(self, mask=mask)


@dataclass(frozen=True, eq=False)
class Blur(OnImageGrid):
    """A x = k * x with a kernel a sample, ``kernel`` (B, k, k), k odd, and reflected edges (scipy.ndimage calls it ``mirror``).

    A correlation, as scipy.ndimage's; k // 2 must be less than H and W. The reflected edges raise the norm of A above one: from 16 x 16
    on to at most 1.03 for a Gaussian of 9 x 9, 1.06 for motion over 9 pixels.
    """

    kernel: Tensor

    def forward(self, x: Image) -> Tensor:
        return _correlated(pad(x, (self.kernel.shape[-1] // 2,) * 4, mode="reflect"), self.kernel)

    def adjoint(self, y: Tensor) -> Image:
        spread = _correlated(pad(y, (self.kernel.shape[-1] - 1,) * 4), self.kernel.flip(-1, -2))
        edge = self.kernel.shape[-1] // 2
        return _fold(_fold(spread, edge, -1), edge, -2)


def _correlated(x: Image, kernel: Tensor) -> Image:
    """Images (B, C, H, W), each with its own kernel (B, k, k), where it lies inside.

    Every plane is a channel of its own: on GPUs such convolutions are done in full single precision, others in TF32, which has three digits.
    """
    planes = x.flatten(0, 1)[None]
    weights = kernel.to(x.dtype).repeat_interleave(x.shape[1], 0)[:, None]
    return conv2d(planes, weights, groups=len(weights))[0].unflatten(0, x.shape[:2])


def _fold(x: Tensor, edge: int, axis: int) -> Tensor:
    """The adjoint of padding ``edge`` reflected samples at both ends of an axis: they are added where they came from."""
    length = x.shape[axis] - 2 * edge
    first, inner, last = x.split([edge, length, edge], axis)
    before, after = ([0, 0] * (-axis) for _ in range(2))
    # The edge samples themselves are not repeated: sample 0 of the padding came from sample ``edge``.
    before[-2:] = [1, length - 1 - edge]
    after[-2:] = [length - 1 - edge, 1]
    return inner + pad(first.flip(axis), before) + pad(last.flip(axis), after)


@dataclass(frozen=True, eq=False)
class SuperResolution(OnImageGrid):
    """A x = P x: the mean over blocks of factor x factor, put back on the image grid; an orthogonal projection.

    ``like`` (B,) only carries the number of samples. An image measured at low resolution is brought here by :func:`enlarged`.
    """

    like: Tensor
    factor: int

    def forward(self, x: Image) -> Tensor:
        return replicated(avg_pool2d(x, self.factor), self.factor)

    def adjoint(self, y: Tensor) -> Image:
        return self.forward(y)


def replicated(low: Image, factor: int) -> Image:
    """Every pixel as a block of factor x factor: U."""
    return low.repeat_interleave(factor, -1).repeat_interleave(factor, -2)


def enlarged(low: Image, noise_std: Tensor, factor: int, generator: torch.Generator) -> tuple[Image, Tensor]:
    """A measured image of low resolution on the image grid, its noise made white there: U y + factor sigma (I - P) n.

    ``noise_std`` (B,) of ``low`` (B, C, H / factor, W / factor); returns y (B, C, H, W) and its noise, factor sigma. What is added lies
    in the null space of P, so that P y is what was measured.
    """
    y = replicated(low, factor)
    n = randn_like(y, generator)
    white = n - replicated(avg_pool2d(n, factor), factor)
    return y + per_sample(factor * noise_std, y) * white, factor * noise_std


def gaussian_kernel(width: int = 9, std: float = 2.0, published: bool = True) -> Tensor:
    """A Gaussian (width, width) in double precision that sums to one.

    ``published``: as the public code of RSD makes it, the filter of radius 4 std applied to a delta of width x width with
    repeated edges, which folds what lies outside back in; else the Gaussian cut off at the edges.
    """
    radius = int(4 * std + 0.5) if published else width // 2
    distance = torch.arange(-radius, radius + 1, dtype=torch.float64)
    weight = torch.exp(-(distance**2) / (2 * std**2))
    # Where each weight of a filter at the middle falls; outside it is mirrored about -1/2 and width - 1/2, as often as it takes.
    place = (torch.arange(-radius, radius + 1) + width // 2) % (2 * width)
    place = torch.where(place < width, place, 2 * width - 1 - place)
    line = torch.zeros(width, dtype=torch.float64).index_add(0, place, weight / weight.sum())
    return torch.outer(line, line)


def motion_kernels(n: int, width: int, generator: torch.Generator) -> Tensor:
    """n kernels (n, width, width), width odd, of a straight motion over ``width`` pixels in a random direction; each sums to one.

    The line is drawn by the bilinear weights of many points on it.
    """
    angle = torch.pi * rand((n, 1), generator, dtype=torch.float64)
    along = torch.linspace(-0.5, 0.5, 8 * width, dtype=torch.float64, device=generator.device) * (width - 1)
    grid = torch.arange(width, dtype=torch.float64, device=generator.device) - width // 2
    rows, columns = ((1 - (grid - (along * part)[..., None]).abs()).clamp(min=0) for part in (angle.sin(), angle.cos()))
    kernels = torch.einsum("nph,npw->nhw", rows, columns)
    return kernels / kernels.sum((1, 2), keepdim=True)
