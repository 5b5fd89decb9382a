r"""The laws of sigma, and the weight that makes the loss equal at all levels.

Training:    ln sigma ~ N(mean, std^2), possibly restricted to sigma > sigma_y          (EDM Table 1; Ambient Tweedie)
Generator:   sigma(u) = (max^(1/rho) + (1 - u) (min^(1/rho) - max^(1/rho)))^rho, u ~ U[0, t_max]        (SiD)
Weight:      lambda(s) = (s^2 + sd^2) / (s sd)^2                                        (EDM Table 1)

EDM: Karras et al. 2022, arXiv 2206.00364. SiD: Zhou et al. 2024, arXiv 2404.04057.
"""

import torch
from torch import Tensor

from .tensors import PerSample, rand


def log_normal_above(
    lowest: PerSample, mean: float, std: float, generator: torch.Generator | None = None, highest: PerSample | None = None
) -> PerSample:
    """Levels of the log-normal law restricted to sigma > lowest, one a sample; ``lowest`` may be 0. With ``highest``, also below that.

    Drawn by inversion of the cumulative distribution, so that nothing is rejected and no level repeats.
    """
    normal = torch.special.ndtr
    below = normal((lowest.double().log() - mean) / std)
    within = 1 - below if highest is None else normal((highest.double().log() - mean) / std) - below
    uniform = rand(lowest.shape, generator, lowest, torch.float64)
    quantile = torch.special.ndtri((below + uniform * within).clamp(1e-12, 1 - 1e-12))
    sigma = torch.exp(mean + std * quantile)
    if highest is not None:
        sigma = torch.minimum(sigma, highest.double())
    # Where the law has no mass left in float64, the lowest level itself: never below it.
    return torch.maximum(sigma, lowest.double()).to(lowest.dtype)


def karras(u: Tensor, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """sigma(u) for u in [0, 1]: sigma(0) = sigma_min, sigma(1) = sigma_max."""
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return (high + (1 - u) * (low - high)) ** rho


def weight(sigma: PerSample, sigma_data: float) -> PerSample:
    """lambda(sigma), which gives the network's output unit weight at every level."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2
