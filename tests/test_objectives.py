"""Each objective against its printed equation, written out with loops over samples and no help from the package's operators."""

import pytest
import torch
from cases import OPERATORS, inpainting, mri
from torch import nn

from rsdmri.config import ObjectiveConfig
from rsdmri.denoiser import Denoiser
from rsdmri.errors import UserError
from rsdmri.mri.fourier import fft2c, ifft2c
from rsdmri.mri.masks import thin_columns
from rsdmri.mri.operators import MultiCoilMRI
from rsdmri.objectives import Ambient, AmbientTweedie, Standard
from rsdmri.observations import Observation, observe
from rsdmri.operators import Identity
from rsdmri.tensors import randn_like

CONFIG = ObjectiveConfig()
SD = 0.5


class TinyNetwork(nn.Module):
    """Something nonlinear that depends on everything it is given."""

    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, 3, padding=1)

    def forward(self, channels, c_noise):
        return torch.tanh(self.conv(channels)) * c_noise[:, None, None, None]


def denoiser(in_channels, out_channels, masked=False):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Denoiser(TinyNetwork(in_channels, out_channels), SD, masked)


def thin_pixels(operator, generator):
    return operator.with_mask(operator.mask & (torch.rand(operator.mask.shape, generator=generator) > 0.1))


def thin_mri(operator, generator):
    return operator.with_mask(thin_columns(operator.mask, 4, 2, generator))


def lam(s):
    return (s**2 + SD**2) / (s * SD) ** 2


def sample(make, shape, is_complex, generator, noise_std=0.0):
    dtype = torch.complex128 if is_complex else torch.float64
    x = torch.randn(shape, dtype=dtype, generator=generator)
    return observe(x, make(generator), torch.full((len(x),), noise_std), generator)


def test_standard_is_equation_7(generator):
    obs = sample(*OPERATORS["mri"], generator)
    f = denoiser(2, 2)
    sigma = torch.tensor([0.1, 0.5, 2.0])
    eps = randn_like(obs.operator.to_image(obs.y), torch.Generator().manual_seed(5))
    loss = Standard(CONFIG).loss(f, obs, sigma, torch.Generator().manual_seed(5))
    for i in range(3):
        w = (obs.operator.maps[i].conj() * ifft2c(obs.y[i] * obs.operator.mask[i])).sum(0)[None, None]
        out = f(w + sigma[i] * eps[i : i + 1], sigma[i : i + 1])
        assert loss[i].item() == pytest.approx((lam(sigma[i]) * (out - w).abs().square().sum()).item(), rel=1e-10)


def test_tweedie_is_equation_8(generator):
    obs = sample(*OPERATORS["identity"], generator, noise_std=0.2)
    f = denoiser(3, 3)
    sigma = torch.tensor([0.3, 0.5, 2.0])
    eps = randn_like(obs.y, torch.Generator().manual_seed(5))
    loss = AmbientTweedie(CONFIG).loss(f, obs, sigma, torch.Generator().manual_seed(5))
    for i in range(3):
        s, y = sigma[i], obs.y[i : i + 1]
        x_t = y + (s**2 - 0.04).sqrt() * eps[i : i + 1]
        prediction = (s**2 - 0.04) / s**2 * f(x_t, s[None]) + 0.04 / s**2 * x_t
        assert loss[i].item() == pytest.approx((lam(s) * (prediction - y).square().sum()).item(), rel=1e-10)


def test_tweedie_without_noise_is_standard(generator):
    obs = sample(*OPERATORS["inpainting"], generator)
    f, sigma = denoiser(3, 3), torch.tensor([0.1, 0.5, 2.0])
    tweedie = AmbientTweedie(CONFIG).loss(f, obs, sigma, torch.Generator().manual_seed(5))
    standard = Standard(CONFIG).loss(f, obs, sigma, torch.Generator().manual_seed(5))
    assert torch.equal(tweedie, standard)


def test_ambient_on_inpainting_is_equation_9(generator):
    obs = sample(*OPERATORS["inpainting"], generator)
    f, sigma = denoiser(4, 3, masked=True), torch.tensor([0.1, 0.5, 2.0])
    replay = torch.Generator().manual_seed(5)
    fewer = thin_pixels(obs.operator, replay).mask
    eps = randn_like(obs.y, replay)
    loss = Ambient(CONFIG, thin_pixels).loss(f, obs, sigma, torch.Generator().manual_seed(5))
    for i in range(3):
        m, few = obs.operator.mask[i : i + 1], fewer[i : i + 1]
        y = obs.y[i : i + 1]
        out = f(few * (y + sigma[i] * eps[i : i + 1]), sigma[i : i + 1], few)
        assert loss[i].item() == pytest.approx((lam(sigma[i]) * (m * (out - y)).square().sum()).item(), rel=1e-10)


def test_ambient_on_mri_is_equation_10_from_kspace_alone(generator):
    obs = sample(*OPERATORS["mri"], generator, noise_std=0.05)
    obs = Observation(obs.operator.restrict(obs.y), obs.operator, obs.noise_std)
    f, sigma = denoiser(3, 2, masked=True), torch.tensor([0.1, 0.5, 2.0])
    replay = torch.Generator().manual_seed(5)
    fewer = thin_mri(obs.operator, replay).mask
    eps = randn_like(torch.empty(3, 1, 10, 16, dtype=torch.complex128), replay)
    loss = Ambient(CONFIG, thin_mri).loss(f, obs, sigma, torch.Generator().manual_seed(5))
    for i in range(3):
        maps, m, few = obs.operator.maps[i], obs.operator.mask[i], fewer[i]

        def normal(x, mask, maps=maps):
            return (maps.conj() * ifft2c(mask * fft2c(maps * x))).sum(0, keepdim=True)

        def back(k, mask, maps=maps):
            return (maps.conj() * ifft2c(mask * k)).sum(0, keepdim=True)

        x_t = back(obs.y[i], few) + sigma[i] * normal(eps[i], few)
        out = f(x_t[None], sigma[i : i + 1], few[None])[0]
        expected = lam(sigma[i]) * (normal(out, m) - back(obs.y[i], m)).abs().square().sum()
        assert loss[i].item() == pytest.approx(expected.item(), rel=1e-10)


def test_ambient_never_sees_what_was_not_measured(generator):
    """Changing k-space outside the mask changes nothing."""
    obs = sample(*OPERATORS["mri"], generator)
    spoiled = Observation(torch.where(obs.operator.mask, obs.y, 1e6), obs.operator, obs.noise_std)
    f, sigma, ambient = denoiser(3, 2, masked=True), torch.tensor([0.1, 0.5, 2.0]), Ambient(CONFIG, thin_mri)
    losses = [ambient.loss(f, o, sigma, torch.Generator().manual_seed(5)) for o in (obs, spoiled)]
    assert torch.allclose(losses[0], losses[1], rtol=1e-12)


def test_tweedie_refuses_coloured_noise():
    with pytest.raises(UserError, match=r"white.*'ambient' or 'standard'"):
        AmbientTweedie(CONFIG).check(MultiCoilMRI)


def test_ambient_refuses_data_without_a_mask():
    with pytest.raises(UserError, match="mask"):
        Ambient(CONFIG, thin_pixels).check(Identity)
    Ambient(CONFIG, thin_pixels).check(type(inpainting(torch.Generator())))
    Ambient(CONFIG, thin_mri).check(type(mri(torch.Generator())))


def test_clamped_law_wastes_the_published_share(generator):
    noise_std = torch.full((100_000,), 0.2)
    levels = AmbientTweedie(ObjectiveConfig(law="clamp")).levels(noise_std, generator)
    assert (levels == 0.2).double().mean().item() == pytest.approx(0.367, abs=0.01)
    truncated = AmbientTweedie(ObjectiveConfig(law="truncated")).levels(noise_std, generator)
    assert (truncated > 0.2).all()


def test_image_space_has_no_target(generator):
    obs = sample(*OPERATORS["mri"], generator)
    ambient = Ambient(CONFIG, thin_mri)
    perturbed = ambient.perturb(obs, torch.ones(3), generator)
    with pytest.raises(ValueError, match="image"):
        ambient.target(perturbed, obs, "image")
