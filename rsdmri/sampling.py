r"""The teacher's sampler, and noise that is a function of a seed.

Heun's method for dx = (x - f(x, s)) / s ds along the levels of EDM (Karras et al. 2022, Algorithm 1 with S_churn = 0):

    s_i = (max^(1/rho) + i / (n - 1) (min^(1/rho) - max^(1/rho)))^rho, i = 0..n-1,  s_n = 0

It is of second order where two steps' levels are positive; the last step, to zero, is Euler's and returns f.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from .noise import karras
from .tensors import Image, make_generator, per_sample, randn

Denoise: TypeAlias = Callable[[Image, Tensor], Image]  # (x_t, sigma (B,)) -> f(x_t, sigma)

SAMPLE_STREAM = 7  # the purpose of a sample's generator: keeps it apart from the streams of training


def sample_generator(seed: int) -> torch.Generator:
    """The CPU generator from which everything of one sample is drawn: its operator first, then its noise."""
    return make_generator(seed, SAMPLE_STREAM)


def levels(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """The levels s_0 = sigma_max > ... > s_(steps-1) = sigma_min > 0, float64 (steps + 1,)."""
    u = 1 - torch.arange(steps, dtype=torch.float64) / (steps - 1)
    return torch.cat([karras(u, sigma_min, sigma_max, rho), torch.zeros(1, dtype=torch.float64)])


def heun(denoise: Denoise, noise: Image, sigmas: Tensor, stop: float = 0.0) -> Image:
    """Integrates from ``noise`` (unit variance per real component, float64) at sigmas[0] down to sigmas[-1].

    ``stop``: returns the estimate f(x, s) as soon as the next level is below it (Ambient-Truncated; DSD section 4).
    """
    x = noise * sigmas[0]

    def slope(x: Image, sigma: Tensor) -> tuple[Image, Image]:
        f = denoise(x, sigma.expand(len(x)))
        return f, (x - f) / sigma

    for now, then in itertools.pairwise(sigmas):
        f, d = slope(x, now)
        if then < stop or then == 0:
            return f
        guess = x + (then - now) * d
        _, d_then = slope(guess, then)
        x = x + (then - now) * (d + d_then) / 2
    return x


def euler(denoise: Denoise, noise: Image, sigmas: Tensor, stop: float = 0.0) -> Image:
    """The same of first order: one call a step."""
    x = noise * sigmas[0]
    for now, then in itertools.pairwise(sigmas):
        f = denoise(x, now.expand(len(x)))
        if then < stop or then == 0:
            return f
        x = x + (then - now) * (x - f) / now
    return x


def ancestral(
    denoise: Denoise, generators: Sequence[torch.Generator], shape: Sequence[int], dtype: torch.dtype, sigmas: Tensor
) -> Image:
    """Draws by the reverse chain (Ho et al. 2020, with variances that explode): one fresh noise a step, from each sample's own generator.

    x(s') = f + (s'/s)^2 (x(s) - f) + s' sqrt(1 - (s'/s)^2) eps

    Of first order: with 32 levels the variance of Gaussians comes out a fifth too small, with twice as many a tenth.
    """
    device = sigmas.device
    x = noises(generators, shape, dtype).to(device) * sigmas[0]
    for now, then in itertools.pairwise(sigmas):
        f = denoise(x, now.expand(len(x)))
        if then == 0:
            return f
        x = reverse_step(x, f, now, then, noises(generators, shape, dtype).to(device))
    return x


def reverse_step(x: Image, f: Image, now: Tensor, then: Tensor, eps: Image) -> Image:
    """One step of :func:`ancestral` from level ``now`` to ``then``, each of one for all samples or (B,)."""
    kept = (then / now) ** 2
    return f + per_sample(kept, x) * (x - f) + per_sample(then * (1 - kept).clamp(min=0).sqrt(), x) * eps


SAMPLERS = {"heun": heun, "euler": euler}


def calls(sampler: str, sigmas: Tensor, stop: float = 0.0) -> int:
    """Calls of the network in a sampler: Heun's two a step, Euler's one; one in the step that returns."""
    steps = next(number for number, then in enumerate(sigmas[1:].tolist()) if then < stop or then == 0)
    return steps * (2 if sampler == "heun" else 1) + 1


def noises(generators: Sequence[torch.Generator], shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """One noise a generator, (B, *shape)."""
    return torch.cat([randn((1, *shape), dtype, generator) for generator in generators])
