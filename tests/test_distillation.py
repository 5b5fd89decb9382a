"""The distiller in a Gaussian world, where teacher and fake are known exactly and the theorems say where it must end.

Images are vectors (B, 1, 1, d), x ~ N(0, C). The exact denoiser of w ~ N(0, S) is S (S + s^2)^-1; G(z) = W z.

    matched      the same measurement noise on both sides, or none where the objective removes it: G ends at C
    mismatched   teacher Standard on noisy y, phase II without noise (DSD Theorem 1, RSD Theorem 1): G ends at C plus the noise
"""

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from cases import mri
from torch import Tensor, nn

from rsdmri import noise
from rsdmri.config import DistillConfig, ObjectiveConfig
from rsdmri.distillation import Distiller, dmd_loss, sds_loss, shown, sid_loss
from rsdmri.errors import UserError
from rsdmri.objectives import Ambient, AmbientTweedie, Standard
from rsdmri.observations import Observation
from rsdmri.operators import LinearOperator
from rsdmri.tensors import randn_like


@dataclass(frozen=True, eq=False)
class Matrix(LinearOperator):
    """A x for one symmetric matrix a sample: ``a`` (B, d, d)."""

    white_on_image: ClassVar[bool] = True
    a: Tensor

    def forward(self, x):
        return torch.einsum("bij,bchj->bchi", self.a, x)

    adjoint = forward

    def gram(self, x):
        return self.forward(self.forward(x))

    def restrict(self, y):
        return y

    def to_image(self, y):
        return y

    def support(self):
        return torch.ones(len(self.a), 1, 1, 1)


class Linear(nn.Module):
    """The exact denoiser of N(0, covariance)."""

    sigma_data, masked = 0.5, False

    def __init__(self, covariance):
        super().__init__()
        self.covariance = covariance
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x_t, sigma, mask=None):
        eye = torch.eye(len(self.covariance))
        filters = self.covariance @ torch.linalg.inv(self.covariance + sigma[:, None, None] ** 2 * eye)
        return torch.einsum("bij,bchj->bchi", filters, x_t)


class LinearGenerator(nn.Module):
    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, z, condition):
        return z[..., : self.w.shape[1]] @ self.w.T


def distil(objective, teacher_covariance, w, a, noise_std, modelled_noise, steps=500, batch=2048, divergence="sid"):
    """Trains W by the package's generator loss; after every step the fake is the exact denoiser of what G now makes."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    fake, g = Linear(None), LinearGenerator(w)
    config = DistillConfig(divergence=divergence)
    distiller = Distiller(Linear(teacher_covariance), fake.requires_grad_(False), g, objective, config)
    adam = torch.optim.Adam(g.parameters(), lr=0.02, betas=(0.0, 0.999))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(adam, steps)
    d = len(teacher_covariance)
    operator = Matrix(a.expand(batch, d, d))
    for _ in range(steps):
        with torch.no_grad():
            fake.covariance = a @ g.w @ g.w.T @ a + modelled_noise**2 * torch.eye(d)
        z = torch.randn(batch, 1, 1, d, generator=generator)
        sigma = noise.karras(0.8 * torch.rand(batch, generator=generator), 0.002, 80.0)
        loss = distiller.generator_loss(z, operator, operator, torch.full((batch,), noise_std), sigma, generator).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        schedule.step()
    return g.w.detach()


COVARIANCE = torch.tensor([[1.0, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.2]], dtype=torch.float64)
START = torch.eye(3, dtype=torch.float64) * 0.6 + 0.1
EYE = torch.eye(3, dtype=torch.float64)


def relative(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


def test_matched_noise_on_both_sides_ends_at_the_clean_covariance():
    w = distil(Standard(ObjectiveConfig()), COVARIANCE + 0.09 * EYE, START.clone(), EYE, 0.3, 0.3)
    assert relative(w @ w.T, COVARIANCE) < 0.05


def test_matched_tweedie_ends_at_the_clean_covariance():
    w = distil(AmbientTweedie(ObjectiveConfig()), COVARIANCE, START.clone(), EYE, 0.3, 0.0)
    assert relative(w @ w.T, COVARIANCE) < 0.05


def test_mismatched_keeps_the_noise():
    """DSD: teacher Standard on noisy y, phase II without noise: the covariance of y."""
    w = distil(Standard(ObjectiveConfig()), COVARIANCE + 0.09 * EYE, START.clone(), EYE, 0.0, 0.0)
    assert relative(w @ w.T, COVARIANCE + 0.09 * EYE) < 0.05


def test_mismatched_of_rank_one_is_theorem_1_of_rsd():
    """x = e z, A with a kernel: A u = +- sqrt(1 + sigma^2 / |A e|^2) A e."""
    e = torch.tensor([0.8, 0.6, 0.0])
    a = torch.diag(torch.tensor([1.0, 0.5, 0.0]))
    sigma_y = 0.4
    ae = a @ e
    teacher = ae[:, None] * ae + sigma_y**2 * EYE
    u = distil(Standard(ObjectiveConfig()), teacher, torch.tensor([[0.5], [0.4], [0.3]]), a, 0.0, 0.0)[:, 0]
    expected = (1 + sigma_y**2 / (ae @ ae)).sqrt() * ae
    assert relative(a @ u, expected) < 0.05
    assert u[2].item() == pytest.approx(0.3)  # the kernel of A is not touched


def test_matched_of_rank_one_is_the_image_itself():
    e = torch.tensor([0.8, 0.6, 0.0])
    a = torch.diag(torch.tensor([1.0, 0.5, 0.0]))
    ae = a @ e
    teacher = ae[:, None] * ae + 0.16 * EYE
    u = distil(Standard(ObjectiveConfig()), teacher, torch.tensor([[0.5], [0.4], [0.3]]), a, 0.4, 0.4)[:, 0]
    assert relative(a @ u, ae) < 0.05


def test_sid_loss_is_equation_11(generator):
    r, q, w = (torch.randn(2, 1, 3, 4, dtype=torch.complex128, generator=generator) for _ in range(3))
    loss = sid_loss(r, q, w, 1.2)
    for i in range(2):
        parts = [torch.view_as_real(t[i]).flatten() for t in (r, q, w)]
        rr, qq, ww = parts
        total = ((rr - qq) * ((rr - ww) - 1.2 * (rr - qq))).sum()
        assert loss[i].item() == pytest.approx((total / (ww - rr).abs().mean()).item(), rel=1e-12)


@pytest.mark.parametrize("divergence", ["sid", "dmd", "sds"])
def test_a_weight_by_the_level_is_what_the_residual_comes_to(divergence, generator):
    """1 / c_out(s) of EDM for all images alike, instead of 1 / mean |w - r| of each."""
    operator = Matrix(EYE.expand(4, 3, 3))
    z, sigma = torch.randn(4, 1, 1, 3, generator=generator), torch.tensor([0.1, 0.5, 2.0, 20.0])
    losses = {}
    for weight in ("level", "residual"):
        config = DistillConfig(divergence=divergence, weight=weight)
        networks = Linear(COVARIANCE), Linear(0.7 * COVARIANCE), LinearGenerator(START.clone())
        distiller = Distiller(*networks, Standard(ObjectiveConfig()), config)
        losses[weight] = distiller.generator_loss(z, operator, operator, torch.zeros(4), sigma, torch.Generator().manual_seed(3))
    _, eps = (randn_like(z, again) for again in [torch.Generator().manual_seed(3)] for _ in range(2))  # measurement noise first
    x_t = z @ START.T + sigma[:, None, None, None] * eps
    residual = (z @ START.T - Linear(COVARIANCE)(x_t, sigma)).abs().flatten(1).mean(1)
    c_out = sigma * 0.5 / (sigma**2 + 0.25).sqrt()
    assert torch.allclose(losses["level"] * c_out, losses["residual"] * residual)


def test_gradient_flows_through_everything_but_the_weight(generator):
    r, q, w = (torch.randn(1, 1, 3, 4, generator=generator, requires_grad=True) for _ in range(3))
    sid_loss(r, q, w, 1.2).sum().backward()
    weight = 1 / (w - r).detach().abs().mean()
    d = (r - q).detach()
    assert torch.allclose(r.grad, weight * ((r - w) + d - 2.4 * d).detach())
    assert torch.allclose(q.grad, weight * (-(r - w) + 2.4 * d).detach())
    assert torch.allclose(w.grad, -weight * d)


def test_dmd_and_sds_are_gradients_in_the_direction_of_the_target(generator):
    """SiD with detached predictions has the gradient of DMD, weight and all; SDS has the teacher's alone."""
    r, q, w = (torch.randn(2, 1, 3, 4, dtype=torch.complex128, generator=generator, requires_grad=True) for _ in range(3))
    weight = 1 / torch.view_as_real((w - r).detach()).abs().flatten(1).mean(1)[:, None, None, None]
    (found,) = torch.autograd.grad(dmd_loss(r, q, w).sum(), w)
    assert torch.allclose(found, weight * (q - r).detach())
    (of_sid,) = torch.autograd.grad(sid_loss(r.detach(), q.detach(), w, 1.2).sum(), w)
    assert torch.allclose(found, of_sid)
    (of_sds,) = torch.autograd.grad(sds_loss(r, w).sum(), w)
    assert torch.allclose(of_sds, weight * (w - r).detach())
    assert torch.autograd.grad(dmd_loss(r, q, w).sum(), (r, q), allow_unused=True) == (None, None)


@pytest.mark.parametrize("divergence", ["sid", "dmd"])
def test_the_gradient_of_the_generator_is_a_finite_difference(divergence, generator):
    """Of SiD: of the loss with its weight held at its value. Of DMD: of the product of what it holds with the target."""
    start = START.clone()
    operator = Matrix(EYE.expand(64, 3, 3))
    config = DistillConfig(divergence=divergence)
    fake = Linear(0.7 * COVARIANCE).requires_grad_(False)
    z, sigma = torch.randn(64, 1, 1, 3, generator=generator), torch.full((64,), 0.7)

    def parts(w):
        """r, q and w of a generator, with the same noise every time."""
        seen = {}
        g = LinearGenerator(w.clone())
        distiller = Distiller(Linear(COVARIANCE), fake, g, Standard(ObjectiveConfig()), config)
        name = f"rsdmri.distillation.{divergence}_loss"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(name, lambda r, q, w, *alpha: seen.update(r=r.detach(), q=q.detach(), w=w.detach()) or torch.zeros(64))
            distiller.generator_loss(z, operator, operator, torch.zeros(64), sigma, torch.Generator().manual_seed(3))
        return seen["r"], seen["q"], seen["w"]

    r0, q0, w0 = parts(start)
    weight = 1 / (w0 - r0).abs().flatten(1).mean(1)

    def value(w):
        r, q, target = parts(w)
        if divergence == "dmd":
            return (weight * ((q0 - r0) * target).flatten(1).sum(1)).mean()
        return (weight * ((r - q) * (r - target) - 1.2 * (r - q) ** 2).flatten(1).sum(1)).mean()

    g = LinearGenerator(start.clone())
    distiller = Distiller(Linear(COVARIANCE), fake, g, Standard(ObjectiveConfig()), config)
    distiller.generator_loss(z, operator, operator, torch.zeros(64), sigma, torch.Generator().manual_seed(3)).mean().backward()
    for i, j in ((0, 0), (1, 2), (2, 1)):
        step = torch.zeros(3, 3)
        step[i, j] = 1e-5
        difference = (value(start + step) - value(start - step)) / 2e-5
        assert g.w.grad[i, j].item() == pytest.approx(difference.item(), rel=1e-6, abs=1e-9)


def test_dmd_ends_at_the_clean_covariance():
    w = distil(AmbientTweedie(ObjectiveConfig()), COVARIANCE, START.clone(), EYE, 0.3, 0.0, divergence="dmd")
    assert relative(w @ w.T, COVARIANCE) < 0.05


def test_sds_ends_at_a_mode():
    """Without a fake score nothing keeps the spread: every image goes to the most probable one, here zero."""
    w = distil(AmbientTweedie(ObjectiveConfig()), COVARIANCE, START.clone(), EYE, 0.3, 0.0, divergence="sds")
    assert (w @ w.T).norm() < 0.05 * COVARIANCE.norm()


def test_where_the_fakes_loss_is_taken(generator):
    """On all that was measured, as the teacher's, or on what the further corrupted mask keeps."""
    operator = mri(generator)
    thinned = operator.mask & (torch.arange(16) != 8)
    x = torch.randn(3, 1, 10, 16, dtype=torch.complex128, generator=generator)
    objective = Ambient(ObjectiveConfig(), lambda whole, _: whole.with_mask(thinned))
    for space, kept in (("measured", operator), ("kept", operator.with_mask(thinned))):
        distiller = Distiller(Constant(x), Constant(0 * x), lambda z, condition: x, objective, DistillConfig(fake_space=space))
        loss = distiller.fake_loss(x, operator, operator, torch.zeros(3), torch.ones(3), generator)
        energy = kept.gram(x).abs().square().flatten(1).sum(1)
        assert torch.allclose(loss, noise.weight(torch.ones(3), 0.5) * energy)
    with pytest.raises(UserError, match="fake_space 'kept' exists only for objective 'ambient'"):
        Distiller(Constant(x), Constant(x), lambda z, c: x, Standard(ObjectiveConfig()), DistillConfig(fake_space="kept"))


def test_fake_loss_gives_the_generator_no_gradient(generator):
    g = LinearGenerator(START.clone())
    fake = Linear(nn.Parameter(COVARIANCE.clone()))
    distiller = Distiller(Linear(nn.Parameter(COVARIANCE.clone())), fake, g, Standard(ObjectiveConfig()), DistillConfig())
    z, operator = torch.randn(4, 1, 1, 3, generator=generator), Matrix(EYE.expand(4, 3, 3))
    distiller.fake_loss(z, operator, operator, torch.zeros(4), torch.ones(4), generator).sum().backward()
    assert fake.covariance.grad is not None
    assert all(p.grad is None for p in (*g.parameters(), *distiller.teacher.parameters()))


def test_generator_loss_reaches_the_generator_alone(generator):
    g = LinearGenerator(START.clone())
    networks = [Linear(nn.Parameter(COVARIANCE.clone())) for _ in range(2)]
    distiller = Distiller(networks[0], networks[1].requires_grad_(False), g, Standard(ObjectiveConfig()), DistillConfig())
    z, operator = torch.randn(4, 1, 1, 3, generator=generator), Matrix(EYE.expand(4, 3, 3))
    distiller.generator_loss(z, operator, operator, torch.zeros(4), torch.ones(4), generator).sum().backward()
    assert all(p.grad is not None for p in g.parameters())
    assert all(p.grad is None for network in networks for p in network.parameters())


class Constant(nn.Module):
    """A denoiser that knows the image, as a perfect one at the level zero."""

    sigma_data, masked = 0.5, True

    def __init__(self, image):
        super().__init__()
        self.image = image

    def forward(self, x_t, sigma, mask=None):
        return self.image


@pytest.mark.parametrize("space", ["measured", "image", "kept"])
def test_in_every_space_a_perfect_prediction_is_the_target(space, generator):
    """Where the scores say the image itself, r = q = w: nothing is left to learn. In another operator's space it would be."""
    operator = mri(generator)
    thinned = mri(generator).with_mask(operator.mask & (torch.arange(16) != 8))
    x = torch.randn(3, 1, 10, 16, dtype=torch.complex128, generator=generator)
    objective = Ambient(ObjectiveConfig(), lambda whole, _: whole.with_mask(thinned.mask))
    predicted = Constant(x)
    obs = Observation(operator.forward(x), operator, torch.zeros(3))
    perturbed = objective.perturb(obs, torch.ones(3), generator)
    r = objective.predict(predicted, perturbed, obs, space)
    support = operator.support()
    expected = {"measured": operator.gram(x), "image": support * x, "kept": perturbed.thinned.gram(x)}[space]
    assert torch.allclose(r, expected, atol=1e-12)
    distiller = Distiller(Constant(x), Constant(x + 1), lambda z, condition: x, objective, DistillConfig(space=space))
    seen = {}

    def loss(r, q, w, alpha, size):
        seen.update(r=r, q=q, w=w)
        return torch.zeros(3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rsdmri.distillation.sid_loss", loss)
        distiller.generator_loss(x, operator, operator, torch.zeros(3), torch.ones(3), generator)
    assert torch.allclose(seen["r"], seen["w"], atol=1e-12)
    assert not torch.allclose(seen["q"], seen["w"], atol=1e-2)


def test_what_a_generator_is_shown(generator):
    operator = mri(generator)
    assert shown(operator, DistillConfig(condition="drawn")) is operator
    full = shown(operator, DistillConfig(condition="full"))
    assert full.mask.all()
    assert torch.equal(full.maps, operator.maps)


def test_generator_is_compared_with_noise_only_if_the_objective_models_it(generator):
    x_g, operator = torch.zeros(4000, 1, 1, 3), Matrix(EYE.expand(4000, 3, 3))
    for objective, expected in ((Standard, 0.3), (AmbientTweedie, 0.0)):
        distiller = Distiller(
            Linear(COVARIANCE), Linear(COVARIANCE), LinearGenerator(START), objective(ObjectiveConfig()), DistillConfig()
        )
        obs = distiller.compared(x_g, operator, torch.full((4000,), 0.3), generator)
        assert obs.y.std().item() == pytest.approx(expected, abs=0.01)
        assert obs.noise_std[0].item() == expected
