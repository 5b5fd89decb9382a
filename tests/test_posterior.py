"""Posterior sampling in a Gaussian world, where everything has a closed form, and the martingale that consistency asks for."""

import dataclasses

import pytest
import torch

from rsdmri.baselines import draw_posterior
from rsdmri.config import EMConfig, Experiment, ObjectiveConfig, SampleConfig
from rsdmri.consistency import _asked, consistency_loss
from rsdmri.denoiser import Denoiser
from rsdmri.mri.masks import draw_columns
from rsdmri.mri.operators import MultiCoilMRI
from rsdmri.noise import log_normal_above
from rsdmri.objectives import AmbientTweedie
from rsdmri.observations import Observation, observe
from rsdmri.operators import Identity, LinearOperator
from rsdmri.posterior import dps, mmps
from rsdmri.sampling import ancestral, heun, levels, noises, sample_generator
from rsdmri.tensors import make_generator, per_sample, randn, to_channels, to_complex
from rsdmri_natural.operators import Blur, Inpainting, SuperResolution, gaussian_kernel

SIZE = (6, 8)


class Gaussian(Denoiser):
    """The exact denoiser of x ~ N(mean, C) on images of one channel, C of the real coordinates (of complex images: twice as many)."""

    def __init__(self, n, complex_images, seed=0, scale=0.5):
        super().__init__(torch.nn.Identity())
        generator = make_generator(seed)
        self.complex_images = complex_images
        count = 2 * n if complex_images else n
        factor = torch.randn(count, count, generator=generator) / count**0.5
        self.covariance = scale**2 * (factor @ factor.T + 0.1 * torch.eye(count))
        self.values, self.vectors = torch.linalg.eigh(self.covariance)
        self.mean = 0.3 * torch.randn(count, generator=generator)

    def flat(self, x):
        return to_channels(x).flatten(1)

    def image(self, flat):
        channels = flat.reshape(len(flat), -1, *SIZE)
        return to_complex(channels) if self.complex_images else channels

    def forward(self, x_t, sigma, mask=None, labels=None):
        shrunk = self.values / (self.values + sigma[:, None] ** 2) * ((self.flat(x_t) - self.mean) @ self.vectors)
        return self.image(self.mean + shrunk @ self.vectors.T)

    def draw(self, n, generator):
        return self.image(
            self.mean + torch.randn(n, len(self.mean), generator=generator) @ torch.linalg.cholesky(self.covariance).T
        )


def matrix_of(operator, prior):
    """A in the real coordinates of one sample."""
    basis = prior.image(torch.eye(len(prior.mean)))
    columns = [to_channels(operator.forward(one[None])).flatten() for one in basis]
    return torch.stack(columns, 1)


def exact(prior, obs, x_t, sigma):
    """E[x | x_t, y] and its covariance, by the formulas for Gaussians; one sample."""
    a = matrix_of(obs.operator, prior)
    identity = torch.eye(len(prior.mean))
    precision = torch.linalg.inv(prior.covariance) + identity / sigma**2 + a.T @ a / obs.noise_std[0] ** 2
    y = to_channels(obs.y).flatten()
    right = torch.linalg.solve(prior.covariance, prior.mean) + prior.flat(x_t)[0] / sigma**2 + a.T @ y / obs.noise_std[0] ** 2
    return torch.linalg.solve(precision, right), torch.linalg.inv(precision)


def mri_operator(generator):
    maps = randn((1, 3, *SIZE), torch.complex128, generator)
    return MultiCoilMRI(maps / maps.abs().square().sum(1, keepdim=True).sqrt(), draw_columns(1, SIZE[1], 2, 2, generator))


OPERATORS = {
    "noise": (lambda g: Identity(torch.zeros(1)), False),
    "inpainting": (lambda g: Inpainting(torch.rand(1, 1, *SIZE, generator=g) < 0.5), False),
    "blur": (lambda g: Blur(gaussian_kernel(5, 1.0)[None]), False),
    "super_resolution": (lambda g: SuperResolution(torch.zeros(1), 2), False),
    "mri": (mri_operator, True),
}


def world(name, noise_std=0.1):
    make, complex_images = OPERATORS[name]
    generator = make_generator(1)
    operator: LinearOperator = make(generator)
    prior = Gaussian(SIZE[0] * SIZE[1], complex_images)
    x = prior.draw(1, generator)
    obs = observe(x, operator, torch.tensor([noise_std]), generator)
    return prior, dataclasses.replace(obs, y=operator.restrict(obs.y)), x, generator


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("sigma", [0.05, 0.7, 5.0])
def test_mmps_is_the_posterior_mean_of_gaussians(name, sigma):
    """With as many steps of conjugate gradients as it takes, to rounding: every corruption of both packages."""
    prior, obs, x, generator = world(name)
    x_t = x + sigma * randn(x.shape, x.dtype, generator)
    found = mmps(prior, obs, iterations=400, noise_floor=1e-6)(x_t, torch.tensor([sigma]))
    assert torch.allclose(prior.flat(found)[0], exact(prior, obs, x_t, sigma)[0], atol=1e-7)


def test_a_few_steps_are_near():
    prior, obs, x, generator = world("inpainting")
    x_t = x + 0.5 * randn(x.shape, x.dtype, generator)
    sigma = torch.tensor([0.5])
    right = exact(prior, obs, x_t, 0.5)[0]
    errors = [float((prior.flat(mmps(prior, obs, k)(x_t, sigma))[0] - right).norm()) for k in (1, 3, 10)]
    prior_alone = float((prior.flat(prior(x_t, sigma))[0] - right).norm())
    assert errors[2] < errors[1] < errors[0] < prior_alone


def test_draws_are_of_the_posterior():
    """Mean and covariance of 1,000 draws; Heun's method is near with 24 levels, the error of the reverse chain falls with their number."""
    prior, obs, _, _ = world("inpainting", noise_std=0.2)
    a = matrix_of(obs.operator, prior)
    covariance = torch.linalg.inv(torch.linalg.inv(prior.covariance) + a.T @ a / 0.2**2)
    mean = covariance @ (torch.linalg.solve(prior.covariance, prior.mean) + a.T @ to_channels(obs.y).flatten() / 0.2**2)
    many, generators = obs[[0] * 1000], [sample_generator(i) for i in range(1000)]
    denoise = mmps(prior, many, 10, 1e-6)

    def shortfall(x):
        draws = prior.flat(x)
        assert ((draws.mean(0) - mean) / covariance.diagonal().sqrt()).abs().max() < 0.12
        return 1 - float(torch.cov(draws.T).trace() / covariance.trace())

    noise = noises(generators, (1, *SIZE), torch.float64)
    assert abs(shortfall(heun(denoise, noise, levels(24, 0.01, 20.0)))) < 0.05
    chain = [shortfall(ancestral(denoise, generators, (1, *SIZE), torch.float64, levels(n, 0.01, 20.0))) for n in (16, 32, 64)]
    assert chain[0] > 1.5 * chain[1] > 2.2 * chain[2] > 0


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("noise_std", [0.05, 0.5])
def test_dps_is_the_step_of_its_formula(name, noise_std):
    """As long as it says, and as what is left beyond the noise, if that is less: at the larger noise often nothing."""
    prior, obs, x, generator = world(name, noise_std)
    sigma = torch.tensor([0.5])
    x_t = (x + 0.5 * randn(x.shape, x.dtype, generator)).requires_grad_(True)
    f = prior(x_t, sigma)
    norm = to_channels(obs.y - obs.operator.forward(f)).square().sum().sqrt()
    (gradient,) = torch.autograd.grad(norm, x_t)
    seen = to_channels(obs.operator.restrict(obs.y)).count_nonzero()
    beyond = max(float(norm.detach()) - noise_std * float(seen) ** 0.5, 0.0)
    step = min(0.2 * prior.sigma_data * len(prior.mean) ** 0.5, beyond)
    expected = f - step * (0.5**2 + prior.sigma_data**2) / prior.sigma_data**2 * gradient
    found = dps(prior, obs, 0.2)(x_t.detach(), sigma)
    assert torch.allclose(found, expected.detach() * obs.operator.support() if name == "mri" else expected.detach(), atol=1e-10)


def test_dps_does_not_couple_the_images_of_a_batch():
    prior, obs, x, generator = world("inpainting")
    other = dataclasses.replace(obs, y=100 * obs.y)
    both = Observation.cat([obs, other])
    x_t = (x + 0.5 * randn(x.shape, x.dtype, generator))[[0, 0]]
    sigma = torch.tensor([0.5, 0.5])
    together = dps(prior, both)(x_t, sigma)
    assert torch.allclose(together[:1], dps(prior, obs)(x_t[:1], sigma[:1]), atol=1e-10)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(("method", "sampler"), [("mmps", "heun"), ("mmps", "ancestral"), ("dps", "heun"), ("dps", "ancestral")])
def test_an_image_is_drawn_by_its_generator_alone(method, sampler, name):
    prior, obs, _, _ = world(name)

    class Domain:
        complex_images = prior.complex_images

    experiment = Experiment(
        em=EMConfig(method=method, sampler=sampler, steps=6), sample=SampleConfig(sigma_min=0.02, sigma_max=10.0)
    )
    both = draw_posterior(prior, obs[[0, 0]], [sample_generator(4), sample_generator(5)], experiment, Domain())
    alone = draw_posterior(prior, obs, [sample_generator(5)], experiment, Domain())
    assert torch.allclose(both[1:], alone, atol=1e-10) and not torch.allclose(both[:1], alone)


def test_levels_between():
    lowest, highest = torch.full((20000,), 0.05), torch.full((20000,), 0.6)
    drawn = log_normal_above(lowest, -1.2, 1.2, make_generator(0), highest)
    assert drawn.min() > 0.05 and drawn.max() < 0.6
    free = log_normal_above(lowest, -1.2, 1.2, make_generator(1))
    assert abs(float(drawn.log().mean()) - float(free[free < 0.6].log().mean())) < 0.02


def test_the_exact_denoiser_is_consistent():
    """Its penalty is zero on average, at levels below that of the noise, too; a denoiser that is wrong there has one."""
    prior = Gaussian(SIZE[0] * SIZE[1], False, scale=0.4)
    objective = AmbientTweedie(ObjectiveConfig(kind="tweedie", consistency=1.0, consistency_samples=4000, consistency_steps=30))
    generator = make_generator(2)
    obs = observe(prior.draw(4000, generator), Identity(torch.zeros(4000)), torch.full((4000,), 0.3), generator)
    sigma = objective.levels(obs.noise_std, generator)
    penalty = consistency_loss(prior, objective, obs, sigma, generator)
    assert abs(float(penalty.mean())) < 4 * float(penalty.std()) / 4000**0.5 + 0.02

    class Wrong(Gaussian):
        def forward(self, x_t, sigma, mask=None, labels=None):
            right = super().forward(x_t, sigma)
            return torch.where((sigma < 0.3)[:, None, None, None], right + 0.2, right)

    wrong = Wrong(SIZE[0] * SIZE[1], False, scale=0.4)
    assert float(consistency_loss(wrong, objective, obs, sigma, generator).mean()) > 0.5


def test_consistency_takes_no_gradient_through_the_chain(monkeypatch):
    """Its gradient is that of the penalty written out, with the ends of the chains as numbers; half of the batch is asked."""
    prior = Gaussian(SIZE[0] * SIZE[1], False)
    prior.mean = torch.nn.Parameter(prior.mean)
    objective = AmbientTweedie(ObjectiveConfig(kind="tweedie", consistency=1.0, consistency_samples=2, consistency_steps=3))
    generator = make_generator(3)
    obs = observe(prior.draw(4, generator).detach(), Identity(torch.zeros(4)), torch.full((4,), 0.2), generator)
    sigma = objective.levels(obs.noise_std, generator)
    calls = []
    forward = prior.forward
    monkeypatch.setattr(prior, "forward", lambda *args: calls.append((*args, torch.is_grad_enabled())) or forward(*args))
    loss = consistency_loss(prior, objective, obs, sigma, generator)
    (found,) = torch.autograd.grad(loss.mean(), prior.mean)
    assert [i for i, value in enumerate(loss.tolist()) if value != 0] == [1, 3]
    ((x, level, _),) = [call for call in calls if call[-1]]
    assert torch.equal(level[:2], sigma[[1, 3]]) and torch.equal(level[2:4], level[4:]) and len(calls) == 1 + 3
    f, first, second = forward(x, level).split(2)
    first, second = first - f, second - f
    (expected,) = torch.autograd.grad((first * second).sum((1, 2, 3)).mean(), prior.mean)
    assert torch.allclose(found, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("samples", "parts"), [(1, 4), (5, 3), (12, 2), (40, 1)])
def test_every_part_asks_and_together_they_ask_as_many_as_they_should(samples, parts):
    """Processes that split a network have to call it together: what is asked too much counts nothing."""
    asked = [_asked(12 // parts, samples, make_generator(0, part=(number, parts))) for number in range(parts)]
    assert all(places for places, _ in asked)
    assert sum(weight * len(places) for places, weight in asked) == pytest.approx(12)
    assert sum(len(places) for places, weight in asked if weight) == min(samples, 12)


@pytest.mark.parametrize("name", ["noise", "inpainting"])  # the others do not come so near in a few levels
@pytest.mark.parametrize("noise_std", [0.1, 0.3])
def test_dps_leaves_the_noise(name, noise_std):
    """What a draw does not explain is as large as the noise, whose level it knows; else it would be the noisy image itself."""
    prior, obs, _, _ = world(name, noise_std)
    obs = dataclasses.replace(obs, y=obs.y.to(torch.complex128 if obs.y.is_complex() else torch.float64))
    dtype = torch.complex128 if prior.complex_images else torch.float64
    noise = noises([sample_generator(1)], (1, *SIZE), dtype)
    x = heun(dps(prior, obs), noise, levels(18, 0.01, 20.0))
    left = to_channels(obs.y - obs.operator.forward(x)).square().sum().sqrt()
    seen = to_channels(obs.operator.restrict(obs.y)).count_nonzero()
    assert 0.7 < float(left) / (noise_std * float(seen) ** 0.5) < 1.6


def test_dps_does_not_step_beyond_the_observation():
    """However many levels: a step is no longer than what is left."""
    prior, obs, _, _ = world("inpainting", noise_std=0.02)
    left = []
    for count in (10, 40):
        noise = noises([sample_generator(1)], (1, *SIZE), torch.float64)
        x = heun(dps(prior, obs), noise, levels(count, 0.01, 20.0))
        left.append(float(obs.operator.restrict(x - obs.y).norm()))
    assert max(left) < 0.1  # a constant step leaves 0.3 and 0.9


@pytest.mark.parametrize("side", [16, 96])
def test_dps_reaches_the_observation_whatever_the_size(side):
    """Of images of any size, by the default of ten levels; a step of one length for all leaves all of a large one."""

    class White(torch.nn.Module):
        sigma_data = 0.5

        def denoise(self, x_t, sigma, operator):
            return x_t * per_sample(0.25 / (sigma**2 + 0.25), x_t)

    generator = make_generator(0)
    y = 0.5 * randn((1, 1, side, side), torch.float64, generator)
    obs = Observation(y, Identity(torch.zeros(1)), torch.zeros(1, dtype=torch.float64))
    noise = noises([sample_generator(1)], (1, side, side), torch.float64)
    x = heun(dps(White(), obs), noise, levels(10, 0.02, 80.0).double())
    assert float((x - y).norm() / y.norm()) < 0.05


@pytest.mark.parametrize("method", [mmps, dps])
def test_nothing_is_drawn_where_nothing_is_seen(method):
    prior, obs, x, generator = world("mri")
    maps = obs.operator.maps.clone()
    maps[..., :4] = 0
    operator = dataclasses.replace(obs.operator, maps=maps)
    blind = dataclasses.replace(obs, operator=operator, y=operator.forward(x))
    x_t = x + randn(x.shape, x.dtype, generator)
    assert not method(prior, blind)(x_t, torch.tensor([1.0]))[..., :4].any()
