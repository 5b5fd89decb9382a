"""MONAI's diffusion U-Net behind the engine's interface; MONAI is imported where one is built."""

import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ..errors import UserError
from .shapes import check_divisible, group_count

# MONAI embeds time steps 0 .. 1000 by sinusoids of frequency at most 1. c_noise = ln(sigma) / 4
# spans about 3 units, which hardly moves them; times a thousand, it spans what they were made for.
TIMESTEPS_PER_UNIT = 1000.0


class MonaiUNet(nn.Module):
    """``monai.networks.nets.DiffusionModelUNet`` in two dimensions (Rombach et al. 2022).

    ``network(x, c_noise)``: x (B, in_channels, H, W), c_noise (B,) -> (B, out_channels, H, W).
    H and W must be divisible by 2^(levels - 1), with levels = len(channels): other sizes raise
    ValueError. MONAI's network has no dropout; its output is exactly zero before training.

    Args:
        in_channels, out_channels: real channels of the input and of the output.
        channels: width of each level, finest first.
        blocks: residual blocks per level.
        attention: whether each level attends, finest first; None: none. The middle always attends.

    Raises:
        UserError: MONAI or einops is not installed.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        channels: Sequence[int] = (32, 64),
        blocks: int = 1,
        attention: Sequence[bool] | None = None,
    ) -> None:
        super().__init__()
        try:
            import einops  # noqa: F401  MONAI's attention needs it, but MONAI does not install it
            from monai.networks.nets.diffusion_model_unet import DiffusionModelUNet
        except ImportError as error:
            raise UserError(
                f"the MONAI network cannot be built here ({error}): it needs monai and einops. "
                "Install them with 'pip install monai einops', or choose another network."
            ) from error
        self.levels = len(channels)
        self.unet = DiffusionModelUNet(
            spatial_dims=2,
            in_channels=in_channels,
            out_channels=out_channels,
            num_res_blocks=blocks,
            channels=tuple(channels),
            attention_levels=tuple(attention or [False] * len(channels)),
            norm_num_groups=group_count(math.gcd(*channels)),  # one number for every level
            num_head_channels=tuple(channels),  # one head, as in SongUNet
            use_flash_attention=True,  # never stores the matrix of all pairs of pixels
        )

    def forward(self, x: Tensor, c_noise: Tensor) -> Tensor:
        """F(x, c_noise), (B, out_channels, H, W)."""
        check_divisible(x, self.levels)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=x.dtype is torch.bfloat16):
            return cast(Tensor, self.unet(x, TIMESTEPS_PER_UNIT * c_noise))
