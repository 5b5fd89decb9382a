"""The package's own distiller ends where the theorems say, to many digits.

The loss is an average over z, eps and s. With a weight that depends on the level alone (``distill.weight: level``, as the theorems have
it) it is a quadratic form in (z, eps): a batch whose second moments are exactly those of independent unit normals gives its expectation
without any error of sampling. The fake is the exact denoiser of what G makes, after every step.
"""

import math
from dataclasses import dataclass

import pytest
import torch
from test_distillation import LinearGenerator, Matrix
from torch import nn

from rsdmri import noise, theory
from rsdmri.config import DistillConfig, ObjectiveConfig
from rsdmri.distillation import Distiller
from rsdmri.objectives import AmbientTweedie, Perturbed, Standard

U = (0.2, 0.35, 0.5, 0.65)  # sigma 0.085 to 8.8


@dataclass(frozen=True, eq=False)
class Measured(Matrix):
    """A x for any matrix (B, m, d)."""

    def adjoint(self, y):
        return torch.einsum("bji,bchj->bchi", self.a, y)

    def to_image(self, y):
        return y


class Exact(nn.Module):
    """The exact denoiser of N(0, covariance), with one inverse a level."""

    sigma_data, masked = 0.5, False
    covariance: torch.Tensor

    def forward(self, x_t, sigma, mask=None):
        levels, which = sigma.unique(return_inverse=True)
        noisy = self.covariance + levels[:, None, None] ** 2 * torch.eye(len(self.covariance))
        return torch.einsum("bij,bchj->bchi", (self.covariance @ torch.linalg.inv(noisy))[which], x_t)


class ExactMoments:
    """An objective whose noise is given, instead of drawn."""

    masked = False

    def __init__(self, objective, eps):
        self.objective, self.eps, self.removes_noise = objective, eps, objective.removes_noise

    def perturb(self, obs, sigma, generator=None):
        w = obs.operator.to_image(obs.y)
        assert (obs.noise_std == 0).all()
        return Perturbed(w + sigma[:, None, None, None] * self.eps, sigma)

    def predict(self, *arguments):
        return self.objective.predict(*arguments)

    def target(self, *arguments):
        return self.objective.target(*arguments)


class World:
    """A generator W (d, r) with its distiller; ``gradient`` is that of its expected loss."""

    def __init__(self, teacher_covariance, a, start, objective=Standard, noise_std=0.0, u=U):
        (measured, _), rank = a.shape, start.shape[1]
        levels = noise.karras(torch.tensor(u), 0.002, 80.0)
        n = 2 * (rank + measured)
        basis = torch.linalg.qr(torch.randn(n, rank + measured))[0] * math.sqrt(n)
        self.z, eps = (part.repeat(len(u), 1)[:, None, None] for part in basis.split([rank, measured], dim=1))
        self.sigma = levels.repeat_interleave(n)
        teacher, self.fake, self.g, self.a = Exact(), Exact(), LinearGenerator(start.clone()), a
        teacher.covariance = teacher_covariance
        objective = ExactMoments(objective(ObjectiveConfig()), eps)
        self.distiller = Distiller(teacher, self.fake, self.g, objective, DistillConfig(weight="level"))
        self.noise_std = torch.full((len(self.sigma),), noise_std)
        self.operator = Measured(a.expand(len(self.sigma), *a.shape))

    def gradient(self):
        self.fake.covariance = (self.a @ self.g.w @ self.g.w.T @ self.a.T).detach()
        self.g.w.grad = None
        self.distiller.generator_loss(self.z, self.operator, self.operator, self.noise_std, self.sigma).mean().backward()
        return self.g.w.grad

    def descend(self, optimizer, steps):
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            self.gradient()
            optimizer.step()
            schedule.step()
        return self.g.w.detach()


def distil(*arguments, **options):
    """W from a start, by Adam with a falling rate."""
    world = World(*arguments, **options)
    return world.descend(torch.optim.Adam(world.g.parameters(), lr=0.05, betas=(0.0, 0.999)), 1500)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


@pytest.fixture
def draw(request):
    """Dimensions, a basis E of the images, a level of noise and a start, all drawn."""
    generator = torch.Generator().manual_seed(request.param)
    torch.manual_seed(request.param)
    d = int(torch.randint(2, 13, (), generator=generator))
    r = min(int(torch.randint(1, 4, (), generator=generator)), d - 1)
    e = torch.linalg.qr(torch.randn(d, r, generator=generator))[0]
    sigma = 0.1 + 0.5 * float(torch.rand((), generator=generator))
    return d, r, e, sigma, 0.3 * torch.randn(d, r, generator=generator), generator


def matrix(rows, columns, generator):
    """A drawn A of norm one."""
    a = torch.randn(rows, columns, generator=generator)
    return a / torch.linalg.matrix_norm(a, 2)


DRAWS = [pytest.param(seed, marks=[pytest.mark.slow] if seed > 4 else []) for seed in range(20)]


@pytest.mark.parametrize("draw", DRAWS, indirect=True)
def test_theorem_1_of_dsd(draw):
    """Mismatched: W W^T = (1 + sigma^2) E E^T, and the distance that the theorem gives."""
    d, r, e, sigma, start, _ = draw
    w = distil(theory.observed_covariance(e, torch.eye(d), sigma), torch.eye(d), start)
    assert relative(w @ w.T, theory.dsd_covariance(e, sigma)) < 1e-3
    assert theory.wasserstein2(w @ w.T, e @ e.T).item() == pytest.approx(theory.dsd_distance(d, r, sigma), rel=1e-3)


@pytest.mark.parametrize("draw", DRAWS, indirect=True)
def test_theorem_1_of_rsd(draw):
    """Mismatched, r = 1, e in Im A^T, A with a kernel; the part of u in Im A^T is the minimiser of least norm."""
    d, _, _, sigma, start, generator = draw
    a = matrix(max(1, d - 2), d, generator)
    e = a.T @ torch.randn(len(a), generator=generator)
    e, start = e / e.norm(), start[:, :1]
    u = distil(theory.observed_covariance(e[:, None], a, sigma), a, start)
    v, expected = a @ u[:, 0], a @ theory.rsd_direction(e, a, sigma)
    assert relative(torch.outer(v, v), torch.outer(expected, expected)) < 1e-3
    least = torch.linalg.pinv(a) @ v
    gain = float((a @ e).square().sum())
    distance = theory.wasserstein2(torch.outer(least, least), torch.outer(e, e)).item()
    assert distance == pytest.approx(theory.rsd_distance(gain, sigma), rel=1e-3)


@pytest.mark.parametrize("draw", DRAWS, indirect=True)
def test_matched_ends_at_the_clean_covariance(draw):
    """The noise is removed on both sides: A W W^T A^T = A E E^T A^T, whatever the measurement noise is."""
    d, _, e, sigma, start, generator = draw
    a = torch.eye(d) + matrix(d, d, generator) / 2
    clean = a @ e @ e.T @ a.T
    start = 0.5 * e + 0.1 * start  # inside the basin: where the data have no variance, that is small
    w = distil(clean, a, start, AmbientTweedie, noise_std=sigma)
    assert relative(a @ w @ w.T @ a.T, clean) < 1e-3


@pytest.mark.parametrize("draw", range(2), indirect=True)
def test_weight_decay_takes_the_kernel_of_a_away(draw):
    """The loss does not see it: its gradient has no part there."""
    d, _, _, sigma, start, generator = draw
    a = matrix(max(1, d - 2), d, generator)
    kernel = torch.linalg.svd(a)[2][len(a) :]
    e = a.T @ torch.randn(len(a), generator=generator)
    world = World(theory.observed_covariance((e / e.norm())[:, None], a, sigma), a, start[:, :1])
    assert (kernel @ world.gradient()).abs().max() < 1e-10 * world.gradient().norm()
    assert (kernel @ start[:, :1]).abs().max() > 0.02
    optimizer = torch.optim.SGD(world.g.parameters(), lr=0.02, momentum=0.9, weight_decay=0.05)
    u = world.descend(optimizer, 2000)
    assert (kernel @ u).abs().max() < 1e-2
    assert u.norm() > 0.5


@pytest.mark.parametrize(("ratio", "outwards"), [(0.5, True), (1.5, False), (5.9, False), (6.1, True)])
def test_alpha_above_one_has_a_basin(ratio, outwards):
    """Where S + s^2 exceeds alpha / (alpha - 1) (C + s^2), six times at 1.2, the gradient drives a generator away (docs/theory.md)."""
    c, u = 0.5, 0.35
    s = float(noise.karras(torch.tensor(u), 0.002, 80.0))
    start = torch.tensor([[math.sqrt(ratio * (c + s**2) - s**2)]])
    gradient = World(torch.tensor([[c]]), torch.eye(1), start, u=(u,)).gradient()
    assert (gradient.item() < 0) == outwards
