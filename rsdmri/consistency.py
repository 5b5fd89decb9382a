r"""Ambient-Consistency: what Tweedie cannot teach below the level of the noise (Daras et al. 2024, arXiv 2404.10177, section 4).

A denoiser is a martingale along its own reverse process: f(x_t, s) = E[f(x_s', s') | x_t] for every s' < s. Levels s above sigma_y are
taught by the data; asking for the equation with s' anywhere below teaches the rest. The penalty is the square of the difference,

    lambda(s) Re <f(x', s') - f(x_t, s), f(x'', s') - f(x_t, s)>

with two independent draws x', x'' of the reverse chain from x_t: an unbiased estimate, which the square of a mean over draws is not. The
chain itself takes no gradient. (Dropout would add a variance of f; the published runs have little.)
"""

import torch

from . import noise
from .denoiser import Denoiser
from .objectives import Objective
from .observations import Observation
from .sampling import reverse_step
from .solvers import inner
from .tensors import Image, PerSample, randn_like

LOWEST = 2e-3  # no level below is asked for


def consistency_loss(
    denoiser: Denoiser, objective: Objective, obs: Observation, sigma: PerSample, generator: torch.Generator
) -> PerSample:
    """The penalty of the first ``objective.config.consistency_samples`` observations at levels ``sigma`` (B,)."""
    config = objective.config
    obs, sigma = obs[: config.consistency_samples], sigma[: config.consistency_samples]
    x_t = objective.perturb(obs, sigma, generator).x_t
    lowest = torch.full_like(sigma, max(config.lowest, LOWEST))
    lower = noise.log_normal_above(lowest, config.mean, config.std, generator, highest=sigma)
    f = denoiser(x_t, sigma)
    draws = [denoiser(_reverse(denoiser, x_t, sigma, lower, config.consistency_steps, generator), lower) for _ in range(2)]
    return noise.weight(sigma, denoiser.sigma_data) * inner(draws[0] - f, draws[1] - f)


@torch.no_grad()
def _reverse(denoiser: Denoiser, x: Image, sigma: PerSample, lower: PerSample, steps: int, generator: torch.Generator) -> Image:
    """A draw of the reverse chain from ``sigma`` to ``lower`` in steps that are even in ln s (:func:`rsdmri.sampling.ancestral`)."""
    now = sigma
    for step in range(steps):
        then = now * (lower / now) ** (1 / (steps - step))
        x = reverse_step(x, denoiser(x, now), now, then, randn_like(x, generator))
        now = then
    return x
