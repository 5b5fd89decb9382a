r"""The Inception network of the Fréchet inception distance: images in bytes -> 2048 features.

    Szegedy et al., "Rethinking the Inception Architecture for Computer Vision", 2015 (arXiv 1512.00567)
    Heusel et al., "GANs Trained by a Two Time-Scale Update Rule", 2017 (arXiv 1706.08500): the distance

Written from these descriptions. The distance is defined by one set of weights, of the TensorFlow graph ``inception-2015-12-05``, whose
network differs from other Inceptions in some points: average pools do not count the zeros around the border, the pool of the very last
block takes the maximum, batch normalisation adds 0.001 to the variance, and there are 1008 classes and no auxiliary classifier. Two
places publish these weights for PyTorch (:mod:`.weights`), as the same file under two names. The names of modules below are those of its
tensors: loading them is no renaming, and every tensor must fit. The package neither holds this file nor fetches it.
"""

from collections.abc import Sequence
from typing import NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError

FEATURES = 2048
SIZE = (299, 299)  # rows and columns that the network was trained on


class Layer(NamedTuple):
    """A convolution of a block: its name, its output channels, its kernel's rows and columns, its stride."""

    name: str
    channels: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


class Branch(NamedTuple):
    """Layers one after the other, then the ends side by side, which all see the last layer's output."""

    chain: Sequence[Layer]
    ends: Sequence[Layer] = ()


class Convolution(nn.Module):
    """Convolution without bias, batch normalisation, ReLU: (N, in_channels, H, W) -> (N, out_channels, H', W').

    Zeros around the border keep the size, unless ``padded`` is False.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int] = (1, 1), stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Block(nn.Module):
    """Branches side by side, and a pool: (N, in_channels, H, W) -> (N, the sum of their channels, H', W').

    Args:
        in_channels: channels of the input.
        branches: in the order of their channels in the output. A layer of stride 2 is not padded, the others are.
        pool: without parameters; the last channels of the output.
        projection: channels of the 1x1 convolution that follows the pool, 0 for none.
    """

    def __init__(self, in_channels: int, branches: Sequence[Branch], pool: nn.Module, projection: int = 0) -> None:
        super().__init__()
        self.branches = branches
        for branch in branches:
            channels = in_channels
            for layer in branch.chain:
                self._add(layer, channels)
                channels = layer.channels
            for layer in branch.ends:
                self._add(layer, channels)
        self.pool = pool
        self.branch_pool = Convolution(in_channels, projection) if projection else nn.Identity()

    def _add(self, layer: Layer, in_channels: int) -> None:
        padded = layer.stride == 1
        self.add_module(layer.name, Convolution(in_channels, layer.channels, layer.kernel, layer.stride, padded))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [output for branch in self.branches for output in self._follow(branch, x)]
        return torch.cat([*outputs, self.branch_pool(self.pool(x))], dim=1)

    def _follow(self, branch: Branch, x: Tensor) -> list[Tensor]:
        for layer in branch.chain:
            x = self.get_submodule(layer.name)(x)
        return [self.get_submodule(layer.name)(x) for layer in branch.ends] or [x]


def block_a(in_channels: int, projection: int) -> Block:
    """35 x 35 pixels, 5x5 kernels and two 3x3 ones in a row."""
    branches = [
        Branch([Layer("branch1x1", 64)]),
        Branch([Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, (5, 5))]),
        Branch([Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3))]),
    ]
    return Block(in_channels, branches, average_pool(), projection)


def block_b(in_channels: int) -> Block:
    """From 35 x 35 to 17 x 17 pixels."""
    branches = [
        Branch([Layer("branch3x3", 384, (3, 3), 2)]),
        Branch([Layer("branch3x3dbl_1", 64), Layer("branch3x3dbl_2", 96, (3, 3)), Layer("branch3x3dbl_3", 96, (3, 3), 2)]),
    ]
    return Block(in_channels, branches, nn.MaxPool2d(3, stride=2))


def block_c(in_channels: int, channels: int) -> Block:
    """17 x 17 pixels, 7x7 kernels as rows and columns; ``channels`` between these."""
    double = [
        Layer("branch7x7dbl_1", channels),
        Layer("branch7x7dbl_2", channels, (7, 1)),
        Layer("branch7x7dbl_3", channels, (1, 7)),
        Layer("branch7x7dbl_4", channels, (7, 1)),
        Layer("branch7x7dbl_5", 192, (1, 7)),
    ]
    single = [
        Layer("branch7x7_1", channels),
        Layer("branch7x7_2", channels, (1, 7)),
        Layer("branch7x7_3", 192, (7, 1)),
    ]
    return Block(in_channels, [Branch([Layer("branch1x1", 192)]), Branch(single), Branch(double)], average_pool(), 192)


def block_d(in_channels: int) -> Block:
    """From 17 x 17 to 8 x 8 pixels."""
    seven = [
        Layer("branch7x7x3_1", 192),
        Layer("branch7x7x3_2", 192, (1, 7)),
        Layer("branch7x7x3_3", 192, (7, 1)),
        Layer("branch7x7x3_4", 192, (3, 3), 2),
    ]
    three = [Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, (3, 3), 2)]
    return Block(in_channels, [Branch(three), Branch(seven)], nn.MaxPool2d(3, stride=2))


def block_e(in_channels: int, pool: nn.Module) -> Block:
    """8 x 8 pixels, 3x3 kernels as rows beside columns."""
    branches = [
        Branch([Layer("branch1x1", 320)]),
        Branch(
            [Layer("branch3x3_1", 384)],
            [Layer("branch3x3_2a", 384, (1, 3)), Layer("branch3x3_2b", 384, (3, 1))],
        ),
        Branch(
            [Layer("branch3x3dbl_1", 448), Layer("branch3x3dbl_2", 384, (3, 3))],
            [Layer("branch3x3dbl_3a", 384, (1, 3)), Layer("branch3x3dbl_3b", 384, (3, 1))],
        ),
    ]
    return Block(in_channels, branches, pool, 192)


def average_pool() -> nn.Module:
    """The mean of those of 3x3 pixels that lie in the image, as TensorFlow takes it."""
    return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)


class Inception(nn.Module):
    """``network(images)``: bytes (N, 3, H, W) -> features (N, 2048), of the last average pool.

    Images are uint8 from 0 to 255, RGB, of any size; grey ones are repeated in three channels by the caller. They are brought to 299 x 299
    pixels by :func:`resize_tf1` and scaled to (x - 128) / 128, as in the TensorFlow graph and as torch-fidelity does. pytorch-fid resizes
    with half-pixel centres and scales to 2 x / 255 - 1: its values differ a little from those of the graph, and from these.

    For inference only: always in evaluation mode, without gradients. Features have the type of the weights, float32 where
    :func:`.weights.load_inception` made the network; TF32 convolutions, PyTorch's default on GPUs, round them more coarsely. ``fc``, the
    classifier, is not used; it is part of the published file.

    Raises:
        UserError: from ``forward``, if the images are not uint8 (N, 3, H, W).
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Convolution(3, 32, (3, 3), 2, padded=False)
        self.Conv2d_2a_3x3 = Convolution(32, 32, (3, 3), padded=False)
        self.Conv2d_2b_3x3 = Convolution(32, 64, (3, 3))
        self.Conv2d_3b_1x1 = Convolution(64, 80)
        self.Conv2d_4a_3x3 = Convolution(80, 192, (3, 3), padded=False)
        self.Mixed_5b = block_a(192, 32)
        self.Mixed_5c = block_a(256, 64)
        self.Mixed_5d = block_a(288, 64)
        self.Mixed_6a = block_b(288)
        self.Mixed_6b = block_c(768, 128)
        self.Mixed_6c = block_c(768, 160)
        self.Mixed_6d = block_c(768, 160)
        self.Mixed_6e = block_c(768, 192)
        self.Mixed_7a = block_d(768)
        self.Mixed_7b = block_e(1280, average_pool())
        self.Mixed_7c = block_e(2048, nn.MaxPool2d(3, stride=1, padding=1))
        self.fc = nn.Linear(FEATURES, 1008)
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        # Batch statistics would make features depend on the other images: whoever holds this network cannot switch them on.
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise UserError(
                f"Inception takes images of uint8, 0 to 255, in the shape (N, 3, H, W), not {str(images.dtype).removeprefix('torch.')}"
                f" {tuple(images.shape)}. Scale them to 0..255, round, convert to uint8; repeat a single channel three times."
            )
        x = (resize_tf1(images.to(self.fc.weight.dtype), SIZE) - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return cast(Tensor, x.mean((2, 3)))


def resize_tf1(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear interpolation of (..., H, W) to ``size`` as TensorFlow 1 does it, by default: float32, or float64 for float64.

    Pixel i of the result lies at i H / size[0] of the image, between the pixels on both sides of it, or on the last one: without the shift
    of half a pixel that later resizing has, and without a low-pass filter when the image becomes smaller.

    Raises:
        UserError: an image or a result without pixels, or images that are not real numbers.
    """
    if images.ndim < 2 or 0 in images.shape[-2:] or min(size) < 1 or images.is_complex():
        raise UserError(f"real images of (..., H, W) are needed for resizing to {size}, not {images.dtype} {tuple(images.shape)}")
    x = images.to(torch.promote_types(images.dtype, torch.float32))
    # Columns first, as TensorFlow does: the result is the same to the last bit.
    return _resize(_resize(x, size[1], -1), size[0], -2)


def _resize(x: Tensor, length: int, axis: int) -> Tensor:
    last = x.shape[axis] - 1
    position = torch.arange(length, dtype=x.dtype, device=x.device) * (x.shape[axis] / length)
    before = position.long().clamp(max=last)
    weight = (position - before).reshape([-1] + [1] * (-1 - axis))
    left, right = x.index_select(axis, before), x.index_select(axis, (before + 1).clamp(max=last))
    return left + (right - left) * weight
