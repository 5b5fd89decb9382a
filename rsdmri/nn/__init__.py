"""Networks on plain real channels: what a denoiser calls, whatever the application.

A network is any ``nn.Module`` called as ``network(channels, c_noise)`` with channels
(B, C_in, H, W) and c_noise (B,), both real floats; it returns (B, C_out, H, W). Preconditioning,
complex numbers and masks belong to the denoiser that calls it.
"""

from .monai_unet import MonaiUNet
from .song_unet import SongUNet, checkpointed

__all__ = ["MonaiUNet", "SongUNet", "checkpointed"]
