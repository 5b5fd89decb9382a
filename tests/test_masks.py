"""Masks of columns: exact counts, the ACS lines, and what is found in k-space that was measured."""

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from rsdmri.errors import UserError
from rsdmri.mri.masks import (
    acs_lines,
    check_acceleration,
    check_thinning,
    columns,
    default_acs,
    draw_columns,
    find_acs,
    find_dc,
    sampled,
    thin_columns,
    thinned_columns,
    volume_columns,
)
from rsdmri.tensors import make_generator

PUBLISHED = {2: (160, 106), 4: (80, 64), 6: (53, 45), 8: (40, 35)}


@pytest.mark.parametrize(("acceleration", "counts"), PUBLISHED.items())
def test_counts_are_the_published_ones(acceleration, counts, generator):
    acs = default_acs(320)
    assert acs == 20
    mask = draw_columns(3, 320, acceleration, acs, generator)
    assert mask.shape == (3, 1, 1, 320)
    assert mask.sum(-1).flatten().tolist() == [counts[0]] * 3
    assert thin_columns(mask, acceleration, acs, generator).sum(-1).flatten().tolist() == [counts[1]] * 3


def test_acs_lines():
    assert acs_lines(320, 20) == slice(150, 170)
    for width in range(1, 20):
        for acs in range(1, width + 1):
            lines = list(range(*acs_lines(width, acs).indices(width)))
            assert len(lines) == acs
            assert width // 2 in lines


@given(st.integers(4, 200), st.floats(1, 20), st.integers(0, 30), st.integers(0, 1000))
def test_counts_are_exact_and_the_acs_stay(width, acceleration, acs, seed):
    assume(acs <= width and columns(width, acceleration) >= max(acs, 1))
    generator = make_generator(seed)
    mask = draw_columns(4, width, acceleration, acs, generator)
    assert (mask.sum(-1) == columns(width, acceleration)).all()
    assert mask[..., acs_lines(width, acs)].all()
    try:
        check_acceleration(width, acceleration, acs)
    except UserError:
        return
    thinned = thin_columns(mask, acceleration, acs, generator)
    assert (thinned.sum(-1) == columns(width, acceleration + 1)).all()
    assert not (thinned & ~mask).any()
    assert (thinned.sum(-1) < mask.sum(-1)).all()
    assert thinned[..., acs_lines(width, acs)].all()


def test_other_columns_are_uniform():
    n = 4000
    mask = draw_columns(n, 32, 4, 2, make_generator(7)).reshape(n, 32)
    outside = torch.ones(32, dtype=torch.bool)
    outside[acs_lines(32, 2)] = False
    share = 6 / 30  # eight columns, two of them ACS
    deviation = (share * (1 - share) / n) ** 0.5
    assert ((mask[:, outside].double().mean(0) - share).abs() < 5 * deviation).all()


@given(st.integers(8, 128), st.integers(0, 20))
def test_an_impossible_acceleration_is_told_the_possible_ones(width, acs):
    assume(acs <= width)
    for acceleration in range(1, width + 1):
        kept, fewer = columns(width, acceleration), columns(width, acceleration + 1)
        if kept >= max(acs, 1) and max(acs, 1) <= fewer < kept:
            check_acceleration(width, acceleration, acs)
        else:
            with pytest.raises(UserError, match=r"R can be [0-9, -]+\.|take fewer ACS lines"):
                check_acceleration(width, acceleration, acs)


def test_the_message_about_an_acceleration():
    with pytest.raises(UserError, match=r"acceleration 40 is impossible with 320 columns and 20 ACS lines .* R can be 1-15\."):
        check_acceleration(320, 40, 20)
    with pytest.raises(UserError, match=r"R >= 1"):
        check_acceleration(320, 0.5, 20)
    with pytest.raises(UserError, match=r"30 ACS lines asked for, and k-space has 16 columns"):
        check_acceleration(16, 1, 30)
    with pytest.raises(UserError, match="R can be 1-10, 12"):  # 64/11 and 64/12 both give 5 columns
        check_acceleration(64, 11, 4)


def test_masks_of_other_numbers_of_columns_lose_one_in_r_plus_one(generator):
    """Scans that came undersampled, in one batch with others."""
    masks = torch.cat([draw_columns(2, 64, 8, 4, generator), draw_columns(2, 64, 4, 4, generator)])
    thinned = thin_columns(masks, 4, 4, generator)
    assert thinned.sum(-1).flatten().tolist() == [6, 6, 12, 12]  # 8 * 4 / 5, floor(64 / 5)
    assert not (thinned & ~masks).any()
    assert thinned[..., acs_lines(64, 4)].all()


@given(st.integers(1, 320), st.floats(1, 20))
def test_thinning_always_takes_a_column_from_such_a_mask(measured, acceleration):
    assume(measured != columns(320, acceleration))
    kept = thinned_columns(torch.tensor([measured]), 320, acceleration)
    assert 0 <= kept.item() < measured


def test_a_mask_that_cannot_be_thinned_is_refused():
    mask = draw_columns(1, 64, 8, 7, make_generator(0))[0, 0, 0]
    with pytest.raises(UserError, match=r"8 columns were measured, 7 of them ACS lines; .* keeps 6"):
        check_thinning(mask, 4, 7)
    check_thinning(mask, 4, 6)


def test_columns_filled_with_zeros_are_never_drawn(generator):
    encoded = torch.ones(64, dtype=torch.bool)
    encoded[:8] = encoded[60:] = False
    masks = draw_columns(200, 64, 4, 4, generator, encoded)
    assert (masks.sum(-1) == 52 // 4).all()
    assert not masks[..., ~encoded].any()
    assert masks[..., acs_lines(64, 4)].all()


def test_a_volume_has_one_mask():
    first = volume_columns("file1000001", 320, 4, 20)
    assert first.shape == (320,)
    assert torch.equal(first, volume_columns("file1000001", 320, 4, 20))
    assert not torch.equal(first, volume_columns("file1000002", 320, 4, 20))
    assert not torch.equal(first, volume_columns("file1000001", 320, 4, 20, seed=1))
    torch.set_default_dtype(torch.float32)
    assert torch.equal(first, volume_columns("file1000001", 320, 4, 20))


def kspace(height=32, width=40, at=(16, 20)):
    """Noise whose energy falls off from a centre."""
    y, x = torch.meshgrid(torch.arange(height) - at[0], torch.arange(width) - at[1], indexing="ij")
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 3, height, width, dtype=torch.complex64, generator=generator) / (1 + y**2 + x**2) + 50 * (
        (y == 0) & (x == 0)
    )


def test_columns_are_told_from_other_patterns():
    k, mask = kspace(), draw_columns(1, 40, 3, 6, make_generator(0))[0, 0, 0]
    assert sampled(k).tolist() == [True] * 40
    assert torch.equal(sampled(torch.where(mask, k, 0)), mask)
    zero_filled = torch.where(mask, k, 0)
    zero_filled[..., :5, :] = 0  # rows that the readout never reached
    assert torch.equal(sampled(zero_filled), mask)
    points = torch.rand(32, 40, generator=make_generator(1)) < 0.4
    assert torch.equal(sampled(torch.where(points, k, 0)), points)


def test_the_centre_is_found_by_energy():
    assert find_dc(kspace(at=(14, 23)), torch.ones(40, dtype=torch.bool)) == (14, 23)
    spike = kspace()
    spike[0, 0, 3, 2] = 1e4  # far from the middle: a defect of the scan
    assert find_dc(spike, torch.ones(40, dtype=torch.bool)) == (16, 20)


def test_acs_of_columns():
    mask = torch.zeros(40, dtype=torch.bool)
    mask[[1, 9, 14, *range(17, 26), 30]] = True
    assert find_acs(kspace(), mask) == (slice(0, 32), slice(17, 26))
    assert find_acs(kspace(at=(16, 24)), mask) == (slice(0, 32), slice(17, 26))
    mask = torch.ones(40, dtype=torch.bool)
    assert find_acs(kspace(), mask) == (slice(0, 32), slice(0, 40))


def test_acs_of_points():
    mask = torch.rand(32, 40, generator=make_generator(2)) < 0.2
    mask[8:24, 10:30] = True
    mask[7, 20] = mask[24, 10] = mask[15, 9] = mask[15, 30] = False
    assert find_acs(kspace(), mask) == (slice(8, 24), slice(10, 30))


def test_no_sampled_line_in_the_acs():
    mask = torch.ones(40, dtype=torch.bool)
    mask[10:30] = False
    with pytest.raises(UserError, match="no sampled line in the ACS"):
        find_acs(kspace(), mask)
