"""The DDPM++ U-Net as EDM configures it, and with the gated convolutions of ambient diffusion.

    Song et al., "Score-Based Generative Modeling through Stochastic Differential Equations", 2021
    Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models", 2022, app. F
    Daras et al., "Ambient Diffusion: Learning Clean Distributions from Corrupted Data", 2023

Written from these descriptions. With the default options the parameters correspond one to one, in
shape and in meaning, to those of the published checkpoints: importing one is a renaming. In a state
dict, where level l works at (H / 2^l, W / 2^l):

    embedding.augment           augmentation label -> noise embedding, where there is one
    embedding.linear0, linear1  noise embedding -> the embedding that every block receives
    input                       3x3 convolution, in_channels -> channels
    encoder.{level}.{i}         i = 0 .. blocks - 1; the first one changes the number of channels
    down.{level}                block that leaves this level for level + 1
    middle.{0,1}                blocks at the coarsest level; the first one attends
    up.{level}                  block that arrives at this level from level + 1
    decoder.{level}.{i}         i = 0 .. blocks; each consumes one skip connection, last in first
    output_norm, output         group norm and 3x3 convolution, -> out_channels

    of a block:                 norm0, conv0, affine, norm1, conv1,
                                skip (a 1x1 convolution, where it is not the identity),
                                attention.norm, attention.qkv, attention.proj (where it attends)
    of a convolution:           weight, bias, gate (where it is gated)
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .shapes import check_divisible, group_count

# A sum of two independent branches of equal variance has twice that variance: this keeps it.
SQRT_HALF = 0.5**0.5
# The last convolution of a branch starts almost at zero, so that a block starts almost linear.
NEARLY_ZERO = 1e-5

RESAMPLING: dict[str, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "down": partial(nn.AvgPool2d, 2),  # the box filter [1, 1] / 2 on each axis, every second sample
    "up": partial(nn.Upsample, scale_factor=2, mode="nearest"),  # its transpose, keeping constants
}


class SongUNet(nn.Module):
    """The DDPM++ network F(x, c_noise) of Karras et al. 2022, Table 1.

    ``network(x, c_noise)``: x (B, in_channels, H, W), c_noise (B,) -> (B, out_channels, H, W).
    H and W need not be those of ``size``, but must be divisible by 2^(levels - 1), with
    levels = len(multipliers): other sizes raise ValueError. It computes in the precision of x,
    whatever that of its weights.

    Args:
        in_channels, out_channels: real channels of the input and of the output.
        channels: width of the input layer, even and at least 4.
        multipliers: one per level, finest first; level l has width channels * multipliers[l].
        blocks: residual blocks per level in the encoder; the decoder has one more.
        attention: resolutions (in rows) whose levels attend, in every block of the encoder and the
            last of the decoder. The middle always attends.
        size: (H, W) or the side of a square: the image whose rows ``attention`` counts.
        dropout: probability inside each block.
        augment_channels: length of the augmentation label, 0 for none (EDM's has 9).
        gated: every convolution has a gate, see ``Convolution``.
        checkpointing: blocks keep their inputs alone and compute the rest again in the backward pass.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 4,
        attention: Collection[int] = (16,),
        size: int | tuple[int, int],
        dropout: float = 0.0,
        augment_channels: int = 0,
        gated: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        rows = size if isinstance(size, int) else size[0]
        levels = range(len(multipliers))
        widths = [channels * multiplier for multiplier in multipliers]
        attends = [rows >> level in attention for level in levels]
        block = partial(Block, embedding=4 * channels, dropout=dropout, gated=gated, checkpointing=checkpointing)

        self.augment_channels = augment_channels
        self.embedding = NoiseEmbedding(channels, 4 * channels, augment_channels)
        self.input = Convolution(in_channels, channels, 3, gated=gated)

        self.encoder, self.down = nn.ModuleList(), nn.ModuleList()
        width, skips = channels, [channels]
        for level in levels:
            if level > 0:
                self.down.append(block(width, width, resample="down"))
                skips.append(width)
            stage = nn.ModuleList()
            for _ in range(blocks):
                stage.append(block(width, widths[level], attends=attends[level]))
                width = widths[level]
                skips.append(width)
            self.encoder.append(stage)

        self.middle = nn.ModuleList([block(width, width, attends=True), block(width, width)])

        self.decoder, self.up = nn.ModuleList(), nn.ModuleList()
        for level in reversed(levels):  # coarsest first, as the skips come; inserted finest first
            if level < levels[-1]:
                self.up.insert(0, block(width, width, resample="up"))
            stage = nn.ModuleList()
            for i in range(blocks + 1):
                last = i == blocks
                stage.append(block(width + skips.pop(), widths[level], attends=attends[level] and last))
                width = widths[level]
            self.decoder.insert(0, stage)

        self.output_norm = group_norm(width)
        self.output = Convolution(width, out_channels, 3, gated=gated, gain=NEARLY_ZERO)

    def forward(self, x: Tensor, c_noise: Tensor, augment_labels: Tensor | None = None) -> Tensor:
        """F(x, c_noise), (B, out_channels, H, W).

        ``augment_labels`` (B, augment_channels); None means zeros, an image that is not augmented.
        """
        check_divisible(x, len(self.encoder))
        emb = self.embedding(c_noise, augment_labels)

        x = self.input(x)
        skips = [x]
        for level, stage in enumerate(self.encoder):
            if level > 0:
                x = self.down[level - 1](x, emb)
                skips.append(x)
            for block in stage.children():
                x = block(x, emb)
                skips.append(x)

        for block in self.middle:
            x = block(x, emb)

        for level in reversed(range(len(self.decoder))):
            if level < len(self.up):
                x = self.up[level](x, emb)
            for block in self.decoder[level].children():
                x = block(torch.cat([x, skips.pop()], dim=1), emb)

        return cast(Tensor, self.output(F.silu(self.output_norm(x))))

    def units(self) -> list[nn.Module]:
        """What is put together at a time where weights are split over processes."""
        return [module for module in self.modules() if isinstance(module, Block)]


class NoiseEmbedding(nn.Module):
    """c_noise (B,), augment_labels (B, augment_channels) -> (B, out_channels), for every block."""

    def __init__(self, channels: int, out_channels: int, augment_channels: int = 0) -> None:
        super().__init__()
        if channels < 4 or channels % 2:
            raise ValueError(f"channels must be even and at least 4 (sines and cosines): {channels}")
        self.channels = channels
        self.augment = linear(augment_channels, channels, bias=False) if augment_channels else None
        self.linear0 = linear(channels, out_channels)
        self.linear1 = linear(out_channels, out_channels)

    def forward(self, c_noise: Tensor, augment_labels: Tensor | None = None) -> Tensor:
        dtype = self.linear0.weight.dtype  # never half: a level is told to more than three digits
        emb = sinusoids(c_noise, self.channels).to(dtype)
        if self.augment is not None:
            # Zeros rather than nothing: distributed training wants a gradient for every parameter.
            if augment_labels is None:
                augment_labels = emb.new_zeros(len(emb), self.augment.in_features)
            emb = emb + self.augment(augment_labels.to(dtype))
        elif augment_labels is not None:
            raise ValueError("augment_labels were given to a network of augment_channels = 0")
        return F.silu(self.linear1(F.silu(self.linear0(emb))))


class Block(nn.Module):
    """Residual block: x (B, in_channels, H, W), emb (B, embedding) -> (B, out_channels, H', W').

        h = conv0(resample(silu(norm0(x)))) + affine(emb)
        h = conv1(dropout(silu(norm1(h))))
        x = (skip(resample(x)) + h) / sqrt(2),  then self-attention where it attends

    skip is a 1x1 convolution where the channels or the resolution change, else the identity.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding: int,
        *,
        resample: Literal["none", "down", "up"] = "none",
        attends: bool = False,
        dropout: float = 0.0,
        gated: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self.checkpointing = checkpointing
        self.resample = RESAMPLING[resample]()
        self.norm0 = group_norm(in_channels)
        self.conv0 = Convolution(in_channels, out_channels, 3, gated=gated)
        self.affine = linear(embedding, out_channels)
        self.norm1 = group_norm(out_channels)
        self.dropout = nn.Dropout(dropout)
        self.conv1 = Convolution(out_channels, out_channels, 3, gated=gated, gain=NEARLY_ZERO)
        self.skip: nn.Module = nn.Identity()
        if in_channels != out_channels or resample != "none":
            self.skip = Convolution(in_channels, out_channels, 1, gated=gated)
        self.attention = SelfAttention(out_channels, gated=gated) if attends else nn.Identity()

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled():
            return cast(Tensor, checkpoint(self._compute, x, emb, use_reentrant=False))
        return self._compute(x, emb)

    def _compute(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(self.resample(F.silu(self.norm0(x)))) + self.affine(emb).to(x.dtype)[:, :, None, None]
        h = self.conv1(self.dropout(F.silu(self.norm1(h))))
        x = (self.skip(self.resample(x)) + h) * SQRT_HALF
        return cast(Tensor, self.attention(x))


@contextmanager
def checkpointed(*denoisers: nn.Module) -> Iterator[None]:
    """Blocks that are called inside compute their activations again in the backward pass, which may come later, instead of keeping them."""
    blocks = [module for denoiser in denoisers for module in denoiser.modules() if isinstance(module, Block)]
    before = [block.checkpointing for block in blocks]
    try:
        for block in blocks:
            block.checkpointing = True
        yield
    finally:
        for block, was in zip(blocks, before, strict=True):
            block.checkpointing = was


class SelfAttention(nn.Module):
    """x -> (x + proj(softmax(q k^T / sqrt(C)) v)) / sqrt(2), over the pixels of x (B, C, H, W).

    One head. qkv(norm(x)) is interleaved: its channels 3c, 3c + 1, 3c + 2 are the c-th features of
    q, k and v.
    """

    def __init__(self, channels: int, *, gated: bool = False) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.qkv = Convolution(channels, 3 * channels, 1, gated=gated, gain=0.2**0.5)
        self.proj = Convolution(channels, channels, 1, gated=gated, gain=NEARLY_ZERO)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        qkv = self.qkv(self.norm(x)).reshape(batch, 1, channels, 3, height * width)
        # Each (B, 1 head, pixels, C) and contiguous, as the fused kernels want them. These keep the
        # logits and the softmax in float32 also where q, k and v are in half precision.
        q, k, v = qkv.permute(3, 0, 1, 4, 2).contiguous()
        attended = F.scaled_dot_product_attention(q, k, v)
        x = x + self.proj(attended.transpose(2, 3).reshape(x.shape))
        return x * SQRT_HALF


class Convolution(nn.Module):
    """weight * x + bias, zero-padded to keep the size; gated: (weight * x) s(s(gate * x)) + bias.

    s is the logistic sigmoid, twice as in the published ambient models: a gate is in (0.5, 0.731),
    so it attenuates and never closes. It has the weight's shape and no bias, and spares the bias.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        gated: bool = False,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        shape = (out_channels, in_channels, kernel, kernel)
        self.padding = kernel // 2
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape), gain))
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.gate: nn.Parameter | None = None
        if gated:
            self.gate = nn.Parameter(nn.init.xavier_uniform_(torch.empty(shape), gain))

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        if self.gate is None:
            return F.conv2d(x, weight, bias, padding=self.padding)
        values = F.conv2d(x, weight, padding=self.padding)
        gates = F.conv2d(x, self.gate.to(x.dtype), padding=self.padding).sigmoid().sigmoid()
        return values * gates + bias[:, None, None]


class GroupNorm(nn.GroupNorm):
    """Statistics in single precision, as PyTorch computes them, of an x of any precision."""

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)


def linear(in_features: int, out_features: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Xavier-uniform weights and a zero bias."""
    layer = nn.Linear(in_features, out_features, bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def group_norm(channels: int) -> GroupNorm:
    return GroupNorm(group_count(channels), channels, eps=1e-6)


def sinusoids(c_noise: Tensor, channels: int) -> Tensor:
    """[sin(f_j c), cos(f_j c)], (B, channels): f_j = 10000^(-j / (h - 1)), j < h = channels / 2."""
    dtype = torch.promote_types(c_noise.dtype, torch.float32)
    exponents = torch.linspace(0, 1, channels // 2, dtype=dtype, device=c_noise.device)
    angles = c_noise.to(dtype)[:, None] * 10000.0**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=1)
