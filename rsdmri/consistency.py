r"""Ambient-Consistency: what Tweedie cannot teach below the level of the noise (Daras et al. 2024, arXiv 2404.10177, section 4).

A denoiser is a martingale along its own reverse process: f(x_t, s) = E[f(x_s', s') | x_t] for every s' < s. Levels s above sigma_y are
taught by the data; asking for the equation with s' anywhere below teaches the rest. The penalty is the square of the difference,

    Re <f(x', s') - f(x_t, s), f(x'', s') - f(x_t, s)>

with two independent draws x', x'' of the reverse chain from x_t: an unbiased estimate, which the square of a mean over draws is not. It
has no weight lambda(s), as published. The chain itself takes no gradient. (Dropout would add a variance of f; the published runs have
little.)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from . import noise
from .denoiser import Denoiser
from .objectives import Objective
from .observations import Observation
from .sampling import reverse_step
from .solvers import inner
from .tensors import Image, PartGenerator, PerSample, randn_like

LOWEST = 2e-3  # no level below is asked for


def consistency_loss(
    denoiser: Denoiser, objective: Objective, obs: Observation, sigma: PerSample, generator: torch.Generator
) -> PerSample:
    """The penalty of observations at levels ``sigma`` (B,), whose mean is that of the ``consistency_samples`` of a batch that are asked.

    The others' is zero. They are asked all over the batch, so that each of its parts has its share.
    """
    config = objective.config
    x_t = objective.perturb(obs, sigma, generator).x_t
    lowest = torch.full_like(sigma, max(config.lowest, LOWEST))
    lower = noise.log_normal_above(lowest, config.mean, config.std, generator, highest=sigma)
    penalty = torch.zeros_like(sigma)
    chosen, weight = _asked(len(sigma), config.consistency_samples, generator)
    places = _on_device(chosen, sigma.device)
    ends = _reverse(denoiser, x_t, sigma, lower, places, config.consistency_steps, generator)
    at, below = sigma[places], lower[places]
    # In one call: few images at a time leave a processor idle.
    f, first, second = denoiser(torch.cat([x_t[places], *ends]), torch.cat([at, below, below])).split(len(places))
    penalty[places] = weight * inner(first - f, second - f)
    return penalty


def _asked(n: int, samples: int, generator: torch.Generator) -> tuple[list[int], float]:
    """Which of the n images that a generator draws for are asked, as even as it goes over the whole batch; and what each then counts.

    A part that has none asks one that counts nothing: processes that split the weights of a network have to call it together.
    """
    number, count = (generator.number, generator.count) if isinstance(generator, PartGenerator) else (0, 1)
    batch = n * count
    samples = min(samples, batch)
    first = number * n
    places = [i for i in range(n) if (first + i + 1) * samples // batch > (first + i) * samples // batch]
    return (places, batch / samples) if places else ([0], 0.0)


def _on_device(places: Sequence[int], device: torch.device) -> Tensor:
    """Indices, sent once and without the host's waiting: a list would be sent anew, and waited for, each time it is used."""
    found = torch.tensor(places)
    return found.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else found


@torch.no_grad()
def _reverse(
    denoiser: Denoiser,
    x_t: Image,
    sigma: PerSample,
    lower: PerSample,
    places: Tensor,
    steps: int,
    generator: torch.Generator,
) -> Sequence[Image]:
    """Two draws of the reverse chain from ``sigma`` to ``lower``, in steps that are even in ln s (:func:`rsdmri.sampling.ancestral`)."""
    twice = places.repeat(2)
    x, now, end = x_t[twice], sigma[twice], lower[twice]
    for step in range(steps):
        then = now * (end / now) ** (1 / (steps - step))
        # For all images, so that the parts of a batch draw what the batch draws.
        eps = torch.cat([randn_like(x_t, generator)[places] for _ in range(2)])
        x = reverse_step(x, denoiser(x, now), now, then, eps)
        now = then
    return x.split(len(places))
