"""How networks are computed: precision of the activations, layout in memory, compilation. What they compute stays the same."""

from collections.abc import Iterable

import torch
from torch import nn

from . import distributed
from .config import ComputeConfig
from .denoiser import Denoiser
from .errors import UserError
from .memory import keep_freed

MODES = {"default": "default", "graphs": "reduce-overhead"}  # of torch.compile


def arranged(denoiser: Denoiser, config: ComputeConfig, device: torch.device) -> Denoiser:
    """The denoiser itself, on ``device`` and computed as ``config`` says.

    Compilation is in place, so that state dicts keep their names; copies of a denoiser are not compiled.
    """
    denoiser.to(device)
    if device.type == "cpu":
        keep_freed()
    denoiser.bf16 = in_bf16(config, device)
    denoiser.channels_last = config.channels_last
    if config.channels_last:
        denoiser.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compile != "none":
        if config.compile == "graphs" and device.type != "cuda":
            raise UserError("compute.compile 'graphs' needs a GPU, and the device is the CPU. Use 'default' or 'none'.")
        if config.compile == "graphs" and distributed.size() > 1:
            raise UserError("compute.compile 'graphs' is for one process. Use 'default' or 'none'.")
        denoiser.network.compile(mode=MODES[config.compile])
    return denoiser


def in_bf16(config: ComputeConfig, device: torch.device) -> bool:
    """Whether activations are in bf16. On CPUs only where it is asked for: few have instructions for it, the others are slower."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return config.precision == "bf16"


def adam(parameters: Iterable[nn.Parameter], lr: float, betas: tuple[float, float]) -> torch.optim.Adam:
    """Adam in one kernel for all weights, which can leave out a step without the host's asking the device whether to."""
    return torch.optim.Adam(parameters, lr=lr, betas=betas, fused=True)
