"""Equispaced columns, Poisson discs and fastMRI's masks."""

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rsdmri.errors import UserError
from rsdmri.mri.masks import acs_lines, columns
from rsdmri.mri.patterns import equispaced_columns, fastmri_columns, poisson_disc


@given(st.integers(8, 400), st.floats(1, 12), st.integers(0, 30), st.text(max_size=5))
def test_equispaced_columns_are_exactly_so_many(width, acceleration, acs, name):
    assume(acs <= width and columns(width, acceleration) >= max(acs, 1))
    mask = equispaced_columns(name, width, acceleration, acs)
    assert int(mask.sum()) == columns(width, acceleration)
    assert mask[acs_lines(width, acs)].all()
    assert torch.equal(mask, equispaced_columns(name, width, acceleration, acs))


def test_equispaced_columns_are_evenly_spaced():
    mask = equispaced_columns("x", 320, 4, 20)
    beside = mask.clone()
    beside[acs_lines(320, 20)] = False
    places = beside.nonzero().flatten()
    left = places[places < 150].diff()
    assert left.max() - left.min() <= 1
    others = [equispaced_columns(name, 320, 4, 20) for name in "abcdef"]
    assert len({tuple(other.tolist()) for other in others}) > 1
    encoded = torch.zeros(320, dtype=torch.bool)
    encoded[20:300] = True
    inside = equispaced_columns("x", 320, 4, 20, encoded=encoded)
    assert int(inside.sum()) == 70
    assert not inside[~encoded].any()


@pytest.mark.parametrize(("acceleration", "acs"), [(4, 16), (8, 12), (12, 0), (1, 10)])
def test_poisson_discs(acceleration, acs):
    mask = poisson_disc("x", (96, 80), acceleration, acs)
    assert int(mask.sum()) == 96 * 80 // acceleration
    assert mask[acs_lines(96, acs), acs_lines(80, acs)].all()
    assert torch.equal(mask, poisson_disc("x", (96, 80), acceleration, acs))
    assert acceleration == 1 or not torch.equal(mask, poisson_disc("y", (96, 80), acceleration, acs))


def test_poisson_discs_keep_their_distance_and_are_denser_inside():
    mask = poisson_disc("x", (128, 128), 8, 12)
    inner, outer = mask[44:84, 44:84].double().mean(), mask.double().mean()
    assert inner > 1.8 * outer
    rim = mask.clone()
    rim[24:104, 24:104] = False
    points = rim.nonzero().double()
    nearest = (torch.cdist(points, points) + 1e9 * torch.eye(len(points))).min(1).values
    assert nearest.quantile(0.05) > 1.4  # of as many points at random many would touch


def test_impossible_patterns():
    with pytest.raises(UserError, match="R can be 1 to 4"):
        poisson_disc("x", (32, 32), 5, 16)
    with pytest.raises(UserError, match="impossible with 32 columns"):
        equispaced_columns("x", 32, 8, 8)
    for kind in ("random", "equispaced"):
        with pytest.raises(UserError, match=r"R must be below 12\.3"):
            fastmri_columns("x", 320, 16, 0.08, kind)
    with pytest.raises(UserError, match="impossible"):
        fastmri_columns("x", 320, 8, 0.125, "equispaced")


@settings(max_examples=60, deadline=None)
@given(
    st.integers(100, 400), st.sampled_from([(0.08, 4), (0.04, 8), (0.1, 3)]), st.text("abc0123456789_.", min_size=1, max_size=20)
)
def test_fastmri_masks_are_bit_identical(width, pair, name):
    subsample = pytest.importorskip("fastmri.data.subsample")
    fraction, acceleration = pair
    for kind, theirs in (("random", subsample.RandomMaskFunc), ("equispaced", subsample.EquispacedMaskFractionFunc)):
        expected, _ = theirs([fraction], [acceleration])((1, 1, width, 2), seed=tuple(map(ord, name)))
        found = fastmri_columns(name, width, acceleration, fraction, kind)
        assert np.array_equal(found.numpy(), expected.numpy().ravel() > 0)
