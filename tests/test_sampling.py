import itertools

import pytest
import torch

from rsdmri.sampling import SAMPLERS, calls, euler, heun, levels, noises, sample_generator

VARIANCES = torch.tensor([0.05, 0.3, 1.0])


def exact_denoiser(x, sigma):
    """E[x | x_t] of independent normal components of known variance."""
    s2 = sigma[:, None, None, None] ** 2
    v = VARIANCES.reshape(1, 1, 1, 3)
    return v / (v + s2) * x


def closed_form(noise, sigma_max):
    """The flow's exact end: every component shrinks by sqrt(v / (v + sigma_max^2))."""
    v = VARIANCES.reshape(1, 1, 1, 3)
    return noise * sigma_max * (v / (v + sigma_max**2)).sqrt()


def error(steps):
    noise = torch.ones(1, 1, 1, 3)
    # The last step, to zero, is Euler's: its share is made negligible by a small last level.
    found = heun(exact_denoiser, noise, levels(steps, 1e-4, 80.0))
    return ((found - closed_form(noise, 80.0)) / closed_form(noise, 80.0)).abs().max().item()


def test_heun_is_of_second_order():
    errors = [error(steps) for steps in (36, 72, 144)]
    for coarse, fine in itertools.pairwise(errors):
        assert 3.5 < coarse / fine < 5


def test_published_grid():
    expected = [
        80,
        57.6,
        40.8,
        28.4,
        19.4,
        12.9,
        8.40,
        5.32,
        3.26,
        1.92,
        1.09,
        0.585,
        0.296,
        0.140,
        0.060,
        0.0229,
        0.0075,
        0.002,
        0,
    ]
    found = levels(18, 0.002, 80.0)
    assert torch.allclose(found, torch.tensor(expected), rtol=0.02, atol=1e-9)


def test_network_calls_are_twice_the_steps_less_one():
    calls = []

    def counted(x, sigma):
        calls.append(float(sigma[0]))
        return exact_denoiser(x, sigma)

    heun(counted, torch.ones(2, 1, 1, 3), levels(18, 0.002, 80.0))
    assert len(calls) == 35


def test_truncated_sampler_returns_the_estimate_once_the_next_level_is_below():
    seen = []

    def recorded(x, sigma):
        seen.append(float(sigma[0]))
        return x * 0 + len(seen)

    found = heun(recorded, torch.ones(1, 1, 1, 3), levels(18, 0.002, 80.0), stop=0.2)
    assert seen[-1] == pytest.approx(0.296, rel=0.01)  # the last level above 0.2
    assert (found == len(seen)).all()


def test_noise_of_a_sample_is_a_function_of_its_seed():
    alone = noises([sample_generator(7)], (1, 4, 4), torch.complex64)
    among = noises([sample_generator(s) for s in (3, 7, 9)], (1, 4, 4), torch.complex64)
    assert torch.equal(alone[0], among[1])
    assert not torch.equal(among[0], among[1])


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("stop", [0.0, 1.0, 100.0])
def test_the_number_of_calls_is_that_of_the_calls(sampler, stop):
    seen = []

    def denoise(x, sigma):
        seen.append(float(sigma[0]))
        return 0 * x

    sigmas = levels(18, 0.002, 80.0)
    SAMPLERS[sampler](denoise, torch.zeros(1, 1, 2, 2), sigmas, stop)
    assert calls(sampler, sigmas, stop) == len(seen)
    assert stop > 0 or len(seen) == {"heun": 35, "euler": 18}[sampler]


def test_euler_is_of_first_order():
    """Halved steps halve the error of the exact denoiser's path."""
    noise = torch.ones(1, 1, 1, 3, dtype=torch.float64)
    fine = heun(exact_denoiser, noise, levels(2000, 1e-4, 80.0))
    errors = [(euler(exact_denoiser, noise, levels(steps, 1e-4, 80.0)) - fine).norm().item() for steps in (72, 144, 288)]
    assert 1.7 < errors[0] / errors[1] < 2.4
    assert 1.7 < errors[1] / errors[2] < 2.4
