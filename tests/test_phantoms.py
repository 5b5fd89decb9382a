"""Drawn heads and coils: functions of their seed, smooth where they should be, and as a scanner would see them."""

import itertools

import numpy as np
import pytest
import torch

from rsdmri.mri import phantoms
from rsdmri.mri.fourier import fft2c, ifft2c, rss

SIZE = (32, 32)


def rng(seed=0):
    return np.random.default_rng(seed)


def volume(index=0, size=SIZE, slices=4, seed=0):
    return phantoms.draw(seed, index, slices, 8, size)


def test_a_phantom_is_a_function_of_seed_and_index():
    k = volume()
    assert (k.shape, k.dtype) == ((4, 8, *SIZE), torch.complex64)
    assert torch.equal(k, volume())
    assert not torch.allclose(k, volume(index=1), atol=0.1)
    assert not torch.allclose(k, volume(seed=1), atol=0.1)


def test_brightness_is_about_one_and_the_corners_are_empty():
    for index in range(6):
        x = rss(ifft2c(volume(index)), 1)
        assert 0.4 < x.quantile(0.99) < 1.2
        assert x[..., :4, :4].max() < 0.05
        assert (x > 0.1).float().mean() > 0.25


def test_heads_differ_and_their_slices_come_closer_with_their_distance():
    heads = [phantoms.head(rng(seed), 5, (64, 64)) for seed in range(8)]
    assert all(x.min() >= 0 and x.max() <= 1 for x in heads)
    between = [np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in itertools.pairwise(heads)]
    assert min(between) > 0.35
    assert np.std([x[0][x[0] > 0.2].mean() for x in heads]) > 0.03
    few, many = heads[0], phantoms.head(rng(0), 33, (64, 64))
    assert np.array_equal(many[::8], few)  # the same solid, cut in thinner steps
    steps, thin_steps = (np.linalg.norm(np.diff(x, axis=0), axis=(1, 2)).max() for x in (few, many))
    assert thin_steps < 0.55 * steps  # what edges sweep over falls with the distance, its norm with the root: 8^-1/2 = 0.35


def test_the_image_keeps_its_brightness_on_the_coarse_grid():
    """The mean over the field of view is one sample of k-space, and cutting does not change it."""
    fine = phantoms.head(rng(), 1, (128, 128)) + 0j
    k = phantoms.kspace(fine, np.ones((1, 128, 128), complex), SIZE)
    assert ifft2c(k).mean().item() == pytest.approx(fine.mean(), abs=1e-6)


def test_a_fine_image_is_seen_at_a_low_resolution():
    """A plane wave below the band limit stays as it is, one above vanishes, and both grids have the same centre."""
    y, x = phantoms.grid((128, 128))
    ones = np.ones((1, 128, 128), complex)
    low, high = (np.exp(1j * np.pi * f * (x + 0.5 * y))[None] for f in (6, 40))
    y, x = phantoms.grid(SIZE)
    seen = ifft2c(phantoms.kspace(low, ones, SIZE))[0, 0]
    assert np.allclose(seen, np.exp(1j * np.pi * 6 * (x + 0.5 * y)), atol=1e-5)
    assert ifft2c(phantoms.kspace(high, ones, SIZE)).abs().max() < 1e-5


def test_edges_ring_as_in_a_scan():
    """Against box averages of the fine image, the cut k-space over- and undershoots next to edges."""
    x = phantoms.head(rng(3), 1, (128, 128))
    boxes = x.reshape(1, 32, 4, 32, 4).mean((2, 4))
    seen = ifft2c(phantoms.kspace(x + 0j, np.ones((1, 128, 128), complex), SIZE))[:, 0].real.numpy()
    assert seen.min() < -0.01 < boxes.min()


@pytest.mark.parametrize("coils", [1, 2, 8])
def test_coils(coils):
    maps = phantoms.coil_maps(rng(), coils, (64, 64))
    assert maps.shape == (coils, 64, 64)
    assert np.allclose((np.abs(maps) ** 2).sum(0), 1)


def test_coils_are_smooth_local_and_of_their_own():
    maps = phantoms.coil_maps(rng(), 8, (64, 64))
    inside = sum(c**2 for c in phantoms.grid((64, 64))) < 0.8
    step = np.abs(np.diff(maps, axis=-1))[:, inside[:, 1:]]
    assert step.max() < 0.12
    assert (np.abs(maps[:, inside]).max(1) > 2 * np.abs(maps[:, inside]).mean(1)).all()
    energy = np.abs(fft2c(torch.from_numpy(maps * inside)).numpy()) ** 2
    assert energy[:, 24:41, 24:41].sum() > 0.95 * energy.sum()
    # Different enough to tell places apart, and between volumes.
    values = np.linalg.svd(maps[:, inside], compute_uv=False)
    assert values[3] > 0.1 * values[0]
    assert np.abs(maps - phantoms.coil_maps(rng(1), 8, (64, 64))).mean() > 0.1


def test_phase_is_smooth_and_changes_slowly_along_the_slices():
    spans = []
    for seed in range(10):
        phase = phantoms.smooth_phase(rng(seed), 5, (64, 64))
        assert phase.shape == (5, 64, 64)
        assert max(np.abs(np.diff(phase, axis=axis)).max() for axis in (1, 2)) < 0.5
        assert np.abs(np.diff(phase, axis=0)).max() < 1.0
        spans.append(np.ptp(phase))
    assert 1.5 < np.median(spans) < 12
    assert np.ptp(phantoms.smooth_phase(rng(), 1, (8, 8), strength=0.0)) == 0
