r"""Images given their observation, by a learned prior: x ~ p(x | y).

A posterior is a denoiser that wraps a denoiser: f(x_t, s) = E[x | x_t] becomes E[x | x_t, y], from which any sampler draws.

    E[x | x_t, y] = f + s^2 grad log p(y | x_t)                            Tweedie's formula, with Bayes' rule

    MMPS  p(y | x_t) = N(A f, sigma_y^2 + A V A^H), V = s^2 df/dx_t        (Rozet et al. 2024, arXiv 2405.13712)
          f + V A^H (sigma_y^2 + A V A^H)^-1 (y - A f)
    DPS   a step against the gradient of |y - A f|                         (Chung et al. 2023, arXiv 2209.14687)
          f - scale sd sqrt(n) (s^2 + sd^2) / sd^2 grad |y - A f|, n real numbers an image

V is the covariance of x given x_t, and symmetric: products with it are products with the transposed Jacobian, which autograd gives. The
norm of DPS is each sample's own (the public code of EM-Diffusion takes that of the batch, which couples its images). DPS was published
for variance-preserving diffusion and a thousand levels, with the step taken on x_t and a length for 256 x 256 pixels; here it is taken on
the estimate, scaled as in that diffusion, is longer the more pixels an image has, and never longer than what is left of the observation
beyond its noise: a draw that explains all of y is y.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoiser
from .observations import Observation
from .sampling import Denoise
from .solvers import conjugate_gradients
from .tensors import Image, PerSample, per_sample, squared, sum_samples, to_channels


def mmps(denoiser: Denoiser, obs: Observation, iterations: int = 3, noise_floor: float = 0.01) -> Denoise:
    """E[x | x_t, y] by moment matching; ``iterations`` of conjugate gradients for the inverse, noise taken as at least ``noise_floor``."""
    variance = obs.noise_std.clamp(min=noise_floor) ** 2

    def denoise(x_t: Image, sigma: PerSample) -> Image:
        f, pulled = _with_pullback(denoiser, x_t, sigma, obs)

        def covariance(u: Image) -> Image:
            return per_sample(sigma**2, u) * pulled(u)

        def apply(v: Tensor) -> Tensor:
            return per_sample(variance, v) * v + obs.operator.forward(covariance(obs.operator.adjoint(v)))

        v = conjugate_gradients(apply, _residual(obs, f), iterations)
        return f + covariance(obs.operator.adjoint(v))

    return denoise


def dps(denoiser: Denoiser, obs: Observation, scale: float = 0.3) -> Denoise:
    """f moved against the gradient of |y - A f|, sample by sample, by at most ``scale`` of sigma_data a pixel (root mean square)."""
    prior = denoiser.sigma_data**2
    expected = obs.noise_std * sum_samples(squared(obs.operator.restrict(_ones(obs.y)))).sqrt()

    def denoise(x_t: Image, sigma: PerSample) -> Image:
        f, pulled = _with_pullback(denoiser, x_t, sigma, obs)
        residual = _residual(obs, f)
        norm = sum_samples(squared(residual)).sqrt().clamp(min=1e-12)
        step = scale * denoiser.sigma_data * to_channels(f[:1]).numel() ** 0.5
        # The gradient of the norm is -J^T A^H r / |r|. A step longer than the residual would leave the observation again; of the residual,
        # noise leaves noise_std sqrt(m), m real numbers measured.
        length = (norm - expected).clamp(min=0, max=step)
        factor = length * (sigma**2 + prior) / prior / norm
        return f + per_sample(factor, f) * pulled(obs.operator.adjoint(residual))

    return denoise


def _residual(obs: Observation, f: Image) -> Tensor:
    return obs.operator.restrict(obs.y.to(_like(obs.y, f))) - obs.operator.forward(f)


def _ones(y: Tensor) -> Tensor:
    """One in each real component."""
    return torch.complex(*[torch.ones_like(y.real)] * 2) if y.is_complex() else torch.ones_like(y)


def _like(y: Tensor, f: Image) -> torch.dtype:
    """The type of measurements in the precision of the image."""
    return y.dtype if f.real.dtype == y.real.dtype else torch.promote_types(y.dtype, f.real.dtype)


def _with_pullback(denoiser: Denoiser, x_t: Image, sigma: PerSample, obs: Observation) -> tuple[Image, Callable[[Image], Image]]:
    """f(x_t, sigma), and u -> (df/dx_t)^T u, real parts and imaginary parts being coordinates of their own."""
    with torch.enable_grad():
        x = x_t.detach().requires_grad_(True)
        f = denoiser.denoise(x, sigma, obs.operator)

    def pulled(u: Image) -> Image:
        (gradient,) = torch.autograd.grad(f, x, u.to(f.dtype), retain_graph=True)
        return gradient.detach() * obs.operator.support()  # as f is zero outside, so V must be on both sides

    return f.detach(), pulled
