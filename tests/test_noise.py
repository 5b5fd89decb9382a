import math

import pytest
import torch

from rsdmri import noise
from rsdmri.tensors import randn_like


def test_complex_noise_has_unit_variance_per_real_component(generator):
    draw = randn_like(torch.empty(200_000, dtype=torch.complex128), generator)
    assert draw.real.var().item() == pytest.approx(1, abs=0.02)
    assert draw.imag.var().item() == pytest.approx(1, abs=0.02)
    assert (draw.real * draw.imag).mean().abs() < 0.01


def test_truncated_law_is_the_law_given_that_it_is_above(generator):
    """The same draws as rejection would keep, compared by their quantiles."""
    kept = torch.exp(-1.2 + 1.2 * torch.randn(400_000, generator=generator))
    kept = kept[kept > 0.4]
    drawn = noise.log_normal_above(torch.full((100_000,), 0.4), -1.2, 1.2, generator)
    assert (drawn > 0.4).all()
    points = torch.linspace(0.05, 0.95, 10)
    assert torch.allclose(drawn.log().quantile(points), kept.log().quantile(points), atol=0.03)


def test_truncated_law_at_zero_is_the_law(generator):
    logs = noise.log_normal_above(torch.zeros(100_000), -1.2, 1.2, generator).log()
    assert logs.mean().item() == pytest.approx(-1.2, abs=0.02)
    assert logs.std().item() == pytest.approx(1.2, abs=0.02)


@pytest.mark.parametrize(("u", "sigma"), [(0.1, 0.0167), (0.2, 0.085), (0.3, 0.318), (0.4, 0.965), (0.5, 2.515), (0.8, 24.41)])
def test_published_levels_of_the_generator(u, sigma):
    assert noise.karras(torch.tensor(u), 0.002, 80.0).item() == pytest.approx(sigma, rel=0.01)


def test_weight_written_out():
    s, d = 0.3, 0.5
    assert noise.weight(torch.tensor(s), d).item() == pytest.approx((s * s + d * d) / (s * d) ** 2)
    assert math.isfinite(noise.weight(torch.tensor(0.002), d).item())
