r"""Restoration score distillation (RSD Algorithm 6): a teacher becomes a one-step generator, with no clean image in sight.

    fake:       x_g = G(z), no gradient;  y_g = A x_g + sigma_y eps;  one step on the teacher's own objective on (y_g, A)
    generator:  x_g = G(z);  w_g = A' x_g corrupted as the data;  x_t = what the objective makes of it at level s;
                r, q = predictions of the teacher f_phi and of the fake f_psi;  w = target

    SiD (RSD Eq. 11):  sum Re[conj(r - q)(r - w)] - alpha |r - q|^2
    DMD:               the gradient q - r in the direction of w, which is that of KL(p_G, p_X) up to s^2      (Yin et al. 2024)
    SDS:               the gradient w - r: the teacher alone, whose minimum is a mode                         (Poole et al. 2023)

each divided by max(mean |w - r|, 1e-5), detached, or by what that comes to at the level s for all images alike: s sd / sqrt(s^2 + sd^2).

The masks of A and A' are independent of the one that G is shown: were A the operator that G was shown, G would be judged only where
it was told. Gradients flow through x_g and through the inputs of both score networks, which are frozen by
``requires_grad_(False)`` and not by ``no_grad``; the weight alone is detached.
"""

from typing import cast

import torch
from torch import nn

from . import noise
from .config import DistillConfig
from .denoiser import Denoiser, Generator
from .errors import UserError
from .nn import checkpointed
from .objectives import Objective
from .observations import Observation, observe
from .operators import LinearOperator, MaskedOperator
from .tensors import Image, PerSample, squared, sum_samples

SMALLEST_RESIDUAL = 1e-5  # SiD: below it the weight stops growing


def sid_loss(r: Image, q: Image, w: Image, alpha: float, size: PerSample | None = None) -> PerSample:
    """The SiD loss (RSD Eq. 11) of predictions r (teacher) and q (fake) and target w; (B,), summed over real components.

    Divided by ``size``, by default by mean |w - r|.
    """
    difference = r - q
    loss = sum_samples((difference.conj() * (r - w)).real - alpha * squared(difference))
    return loss / (_mean_residual(r, w) if size is None else size)


def dmd_loss(r: Image, q: Image, w: Image, size: PerSample | None = None) -> PerSample:
    """A loss whose gradient with respect to w is (q - r) / size: of distribution matching (Yin et al. 2024, arXiv 2311.18828).

    Its value means nothing: r, q and the size, by default mean |w - r|, are detached.
    """
    return sum_samples(((q - r).detach().conj() * w).real) / (_mean_residual(r, w) if size is None else size)


def sds_loss(r: Image, w: Image, size: PerSample | None = None) -> PerSample:
    """A loss whose gradient with respect to w is (w - r) / size: eps_phi - eps (Poole et al. 2023, arXiv 2209.14988)."""
    return dmd_loss(r, w, w, size)


def _mean_residual(r: Image, w: Image) -> PerSample:
    """mean |w - r| over all real components, masked ones included, at least 1e-5; detached."""
    residual = (w - r).detach()
    real = torch.view_as_real(residual) if residual.is_complex() else residual
    return real.abs().flatten(1).mean(1).clamp(min=SMALLEST_RESIDUAL)


class Distiller(nn.Module):
    """The three networks of Algorithm 6 and their two losses.

    ``teacher`` is frozen; ``fake`` and ``generator`` start as its copies. Every operator that enters is drawn from the data's
    law by the caller; no image ever enters.
    """

    def __init__(
        self, teacher: Denoiser, fake: Denoiser, generator: Generator, objective: Objective, config: DistillConfig
    ) -> None:
        super().__init__()
        for option in ("space", "fake_space"):
            if getattr(config, option) != "measured" and not objective.masked:
                raise UserError(f"distill.{option} '{getattr(config, option)}' exists only for objective 'ambient'")
        self.teacher = teacher.requires_grad_(False).eval()
        self.fake = fake
        self.generator = generator
        self.objective = objective
        self.config = config

    def generate(self, z: Image, condition: LinearOperator) -> Image:
        """x_g = G(z; condition)."""
        return cast(Image, self.generator(z, shown(condition, self.config)))

    def fake_loss(
        self,
        z: Image,
        condition: LinearOperator,
        operator: LinearOperator,
        noise_std: PerSample,
        sigma: PerSample,
        generator: torch.Generator | None = None,
    ) -> PerSample:
        """The teacher's objective on generated, corrupted observations; (B,). No gradient reaches the generator."""
        with torch.no_grad():
            obs = observe(self.generate(z, condition), operator, noise_std, generator)
        return self.objective.loss(self.fake, obs, sigma, generator, self.config.fake_space, self.config.augment)

    def generator_loss(
        self,
        z: Image,
        condition: LinearOperator,
        operator: LinearOperator,
        noise_std: PerSample,
        sigma: PerSample,
        generator: torch.Generator | None = None,
    ) -> PerSample:
        """The loss of the generator; (B,). The fake must have been frozen by ``requires_grad_(False)``."""
        return self.compare(self.generate(z, condition), operator, noise_std, sigma, generator)

    def compare(
        self,
        x_g: Image,
        operator: LinearOperator,
        noise_std: PerSample,
        sigma: PerSample,
        generator: torch.Generator | None = None,
    ) -> PerSample:
        """The loss of generated images: how teacher and fake differ on what the data's corruption leaves of them."""
        obs = self.compared(x_g, operator, noise_std, generator)
        perturbed = self.objective.perturb(obs, sigma, generator)
        space = self.config.space
        # The only place where the image itself may be the target: here it is the generator's own.
        w = x_g * operator.support() if space == "image" else self.objective.target(perturbed, obs, space)
        # DMD and SDS take no gradient through the scores.
        through = torch.is_grad_enabled() and self.config.divergence == "sid"
        again = (self.teacher, self.fake) if self.config.checkpointing else ()
        with torch.set_grad_enabled(through), checkpointed(*again):
            r = self.objective.predict(self.teacher, perturbed, obs, space)
            q = self.objective.predict(self.fake, perturbed, obs, space) if self.config.divergence != "sds" else r
        size = noise.weight(sigma, self.teacher.sigma_data).rsqrt() if self.config.weight == "level" else None
        if self.config.divergence == "sid":
            return sid_loss(r, q, w, self.config.alpha, size)
        return dmd_loss(r, q, w, size) if self.config.divergence == "dmd" else sds_loss(r, w, size)

    def compared(
        self, x_g: Image, operator: LinearOperator, noise_std: PerSample, generator: torch.Generator | None = None
    ) -> Observation:
        """The observation of x_g that the scores see: with measurement noise only if the objective models the noise."""
        if self.objective.removes_noise:
            return Observation(operator.forward(x_g), operator, torch.zeros_like(noise_std))
        return observe(x_g, operator, noise_std, generator)


def shown(condition: LinearOperator, config: DistillConfig) -> LinearOperator:
    """What a generator is shown of a drawn operator: itself, or with ``condition: full`` the same one that keeps everything."""
    if config.condition == "full" and isinstance(condition, MaskedOperator):
        return condition.with_mask(torch.ones_like(condition.mask))
    return condition
