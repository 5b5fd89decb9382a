r"""The denoiser f(x_t, sigma) = E[x | x_t], and the one-step generator made of it.

EDM preconditioning (Karras et al. 2022, Table 1), with sd = sigma_data per real component:

    f(x_t, s) = c_skip x_t + c_out F(c_in x_t, ln(s) / 4)
    c_skip = sd^2 / (s^2 + sd^2),  c_out = s sd / sqrt(s^2 + sd^2),  c_in = 1 / sqrt(s^2 + sd^2)

Images are complex or real outside and real channels inside; this is the only module that knows of channels. A *masked* denoiser
(Ambient) sees its image through an operator and is shown the mask in channels of its own; the published models scale these by c_in, too,
and have as many outputs as inputs, of which the first are the image.
"""

from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from .config import NetworkConfig
from .operators import LinearOperator, MaskedOperator
from .tensors import Image, PerSample, per_sample, to_channels, to_complex


class Denoiser(nn.Module):
    """``network``: (B, c, H, W) real and (B,) -> (B, c', H, W) real; c is the channels of the image and of ``mask_input``'s mask.

    It is shown rows and columns filled up with zeros to a ``multiple`` of what it can halve; images of any size may come.
    """

    def __init__(
        self,
        network: nn.Module,
        sigma_data: float = 0.5,
        masked: bool = False,
        multiple: int = 1,
        mask_input: Literal["one", "each", "pair"] = "one",
    ) -> None:
        super().__init__()
        self.mask_input = mask_input
        self.network = network
        self.sigma_data = sigma_data
        self.masked = masked
        self.multiple = multiple
        self.bf16, self.channels_last = False, False  # how it is computed (rsdmri.compute)
        self.called: Callable[..., Tensor] | None = (
            None  # in the network's place while processes share a step (rsdmri.distributed)
        )

    def forward(self, x_t: Image, sigma: PerSample, mask: Tensor | None = None, labels: Tensor | None = None) -> Image:
        """f(x_t, sigma): x_t (B, C, H, W), sigma (B,), mask broadcasting to (B, 1, H, W) if the denoiser is masked.

        ``labels`` (B, n) are those of augmented images, for a network that takes them.
        """
        if (mask is not None) != self.masked:
            raise ValueError(
                f"a denoiser with masked={self.masked} was called {'with' if mask is not None else 'without'} a mask"
            )
        s = sigma.to(x_t.real.dtype)
        variance = s**2 + self.sigma_data**2
        c_in = variance.rsqrt()
        channels = per_sample(c_in, x_t) * to_channels(x_t)
        count = channels.shape[1]
        if mask is not None:
            channels = torch.cat([channels, self._mask_channels(mask, channels, per_sample(c_in, channels))], dim=1)
        dtype = next(self.network.parameters()).dtype
        layout = torch.channels_last if self.channels_last else torch.contiguous_format
        height, width = channels.shape[-2:]
        missing = (0, -width % self.multiple, 0, -height % self.multiple)
        whole = pad(channels, missing) if any(missing) else channels
        told = () if labels is None else (labels,)
        seen = whole.to(torch.bfloat16 if self.bf16 else dtype, memory_format=layout)
        network = self.called or self.network
        out = network(seen, (s.log() / 4).to(dtype), *told).to(channels.dtype)[:, :count, :height, :width]
        f = to_complex(out) if x_t.is_complex() else out
        c_skip = per_sample(self.sigma_data**2 / variance, x_t)
        c_out = per_sample(s * self.sigma_data * variance.rsqrt(), x_t)
        return c_skip * x_t + c_out * f

    def _mask_channels(self, mask: Tensor, channels: Tensor, c_in: Tensor) -> Tensor:
        """What the network is shown of the mask, beside the ``channels`` of the image."""
        shown = mask.to(channels.dtype).expand(len(channels), 1, *channels.shape[-2:])
        if self.mask_input == "one":
            return shown
        beside = [shown, torch.ones_like(shown)] if self.mask_input == "pair" else [shown] * channels.shape[1]
        return c_in * torch.cat(beside, dim=1)

    def denoise(self, x_t: Image, sigma: PerSample, operator: LinearOperator) -> Image:
        """f of an image with white noise on the whole grid: a masked denoiser sees Ã^H Ã x_t and M̃, others x_t itself.

        What a sampler and the generator call; the result is zero outside the operator's support.
        """
        if self.masked:
            operator = cast(MaskedOperator, operator)
            f = self(operator.gram(x_t), sigma, operator.mask)
        else:
            f = self(x_t, sigma)
        return cast(Image, f * operator.support())


class Generator(nn.Module):
    """G(z; condition) = f(sigma_init z, sigma_init): one call of a denoiser (SiD; RSD section 3)."""

    def __init__(self, denoiser: Denoiser, sigma_init: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sigma_init = sigma_init

    def forward(self, z: Image, condition: LinearOperator) -> Image:
        """x_g for z of unit variance per real component; ``condition`` is the operator that a masked generator is shown."""
        sigma = torch.full((len(z),), self.sigma_init, dtype=z.real.dtype, device=z.device)
        return self.denoiser.denoise(self.sigma_init * z, sigma, condition)


def label_length(denoiser: Denoiser) -> int:
    """The length of the augmentation label that a denoiser's network takes."""
    return int(getattr(denoiser.network, "augment_channels", 0))


def build_denoiser(config: NetworkConfig, *, channels: int, size: Sequence[int], complex_images: bool, masked: bool) -> Denoiser:
    """A denoiser with fresh weights for images (channels, *size); it takes images of other sizes, too."""
    multiple = 2 ** (len(config.multipliers) - 1)  # every level but the first halves the image
    rows, columns = (-(-length // multiple) * multiple for length in size)
    out_channels = channels * (2 if complex_images else 1)
    of_mask = {"one": 1, "each": out_channels, "pair": 2}[config.mask_input] if masked else 0
    in_channels = out_channels + of_mask
    if of_mask and config.mask_input != "one":
        out_channels = in_channels  # as published
    from .nn import MonaiUNet, SongUNet

    network: nn.Module
    if config.kind == "song":
        network = SongUNet(
            in_channels,
            out_channels,
            channels=config.channels,
            multipliers=config.multipliers,
            blocks=config.blocks,
            attention=config.attention,
            size=(rows, columns),
            dropout=config.dropout,
            gated=config.gated,
            augment_channels=config.augment,
            checkpointing=config.checkpointing,
        )
    else:
        network = MonaiUNet(
            in_channels,
            out_channels,
            channels=[config.channels * m for m in config.multipliers],
            blocks=config.blocks,
            attention=[rows >> level in config.attention for level in range(len(config.multipliers))],
        )
    return Denoiser(network, config.sigma_data, masked, multiple, config.mask_input)
