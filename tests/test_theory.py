"""The closed forms agree with themselves and with numerical minimisation."""

import pytest
import torch

from rsdmri import theory

LEVELS = (0.05, 0.2, 0.5, 1.0, 3.0)


def draw(d, r, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(d, r, generator=generator, dtype=torch.float64))[0], generator


def minimise(w, e, a, sigma, decay=0.0):
    """W from a start, by a quasi-Newton method on the closed loss."""
    w = w.clone().requires_grad_(True)
    solver = torch.optim.LBFGS(
        [w], lr=1, max_iter=2000, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        solver.zero_grad()
        value = theory.loss(w, e, a, sigma, LEVELS) + decay * w.square().sum()
        value.backward()
        return value

    solver.step(closure)
    return w.detach()


@pytest.mark.parametrize(("d", "r"), [(3, 1), (6, 2), (12, 3)])
@pytest.mark.parametrize("sigma", [0.1, 0.5])
def test_the_minimisers_of_dsd(d, r, sigma):
    e, generator = draw(d, r, d)
    start = 0.5 * torch.randn(d, r, generator=generator, dtype=torch.float64)
    w = minimise(start, e, torch.eye(d, dtype=torch.float64), sigma)
    expected = theory.dsd_covariance(e, sigma)
    assert torch.allclose(w @ w.T, expected, atol=1e-6)
    assert theory.wasserstein2(w @ w.T, e @ e.T).item() == pytest.approx(theory.dsd_distance(d, r, sigma), rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("seed", range(4))
def test_the_minimisers_of_rsd(seed):
    """A with a kernel: only A u is determined; what lies in the kernel stays, or goes with a little weight decay."""
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(4, 6, generator=generator, dtype=torch.float64) / 2
    e = a.T @ torch.randn(4, generator=generator, dtype=torch.float64)
    e, sigma = e / e.norm(), 0.3
    start = torch.randn(6, 1, generator=generator, dtype=torch.float64)
    kernel = torch.linalg.svd(a)[2][4:]
    u = minimise(start, e[:, None], a, sigma)[:, 0]
    expected = theory.rsd_direction(e, a, sigma)
    assert min((a @ (u - expected)).norm(), (a @ (u + expected)).norm()) < 1e-5
    assert torch.allclose(kernel @ u, kernel @ start[:, 0], atol=1e-5)
    shrunk = minimise(start, e[:, None], a, sigma, decay=1e-6)[:, 0]
    assert (kernel @ shrunk).abs().max() < 1e-2
    gain = float((a @ e).square().sum())
    assert min((shrunk - expected).norm(), (shrunk + expected).norm()) < 1e-2
    assert theory.wasserstein2(torch.outer(expected, expected), torch.outer(e, e)).item() == pytest.approx(
        theory.rsd_distance(gain, sigma), rel=1e-3
    )


def test_eta_is_the_gain_along_the_signal():
    """And the printed lemma, without the square, is not."""
    e, _ = draw(5, 1, 0)
    a = torch.diag(torch.tensor([1.0, 0.5, 0.8, 0.3, 1.2], dtype=torch.float64))
    gain, sigma, s = float((a @ e).square().sum()), 0.3, 0.4
    inverse = torch.linalg.inv(theory.observed_covariance(e, a, sigma) + s**2 * torch.eye(5, dtype=torch.float64))
    c = sigma**2 + s**2
    direction = (a @ e)[:, 0] / gain**0.5
    expected = torch.eye(5, dtype=torch.float64) / c**2 - theory.eta(gain, sigma, s) * torch.outer(direction, direction)
    assert torch.allclose(inverse @ inverse, expected)
    assert theory.eta(gain, sigma, s) != pytest.approx(gain * (2 * c + gain) / (c**2 * (c + gain)), rel=1e-3)


def test_the_distance_of_the_observations():
    e, _ = draw(7, 2, 1)
    eye = torch.eye(7, dtype=torch.float64)
    found = theory.wasserstein2(theory.observed_covariance(e, eye, 0.4), e @ e.T)
    assert found.item() == pytest.approx(theory.observed_distance(7, 2, 0.4), rel=1e-6)


def test_fisher_vanishes_for_equals_and_is_the_closed_form_in_one_dimension():
    one, two = torch.eye(1, dtype=torch.float64), 2 * torch.eye(1, dtype=torch.float64)
    assert theory.fisher(one, one, 0.3).item() == 0
    assert theory.fisher(one, two, 0.5).item() == pytest.approx(1.25 * (1 / 1.25 - 1 / 2.25) ** 2)
