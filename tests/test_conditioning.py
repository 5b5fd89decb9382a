"""Whitening, coil compression, oversampling and common matrices: k = F S x + noise stays true."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from rsdmri.errors import UserError
from rsdmri.mri import phantoms
from rsdmri.mri.conditioning import compressed, conditioned, cut, resampled, whitened
from rsdmri.mri.config import MRIData
from rsdmri.mri.fourier import fft2c, ifft2c, resized
from rsdmri.mri.operators import combine
from rsdmri.mri.readers import KSpace
from rsdmri.tensors import make_generator, randn

SIZE, COILS = (40, 36), 6


def world(seed=0, size=SIZE, noise=0.0, covariance=None):
    """A scan k = F S x + n of known maps, which are zero outside of a disc as ESPIRiT's are."""
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(phantoms.coil_maps(rng, COILS, size))[None].repeat(2, 1, 1, 1)
    y, x = phantoms.grid(size)
    maps = torch.where(torch.from_numpy(np.hypot(y, x) < 0.97), maps, 0)
    image = phantoms.head(rng, 2, size) * np.exp(1j * phantoms.smooth_phase(rng, 2, size))
    kspace = fft2c(maps * torch.from_numpy(image)[:, None])
    draw = randn(kspace.shape, torch.complex128, make_generator(seed))
    if covariance is not None:
        draw = torch.einsum("nk,skhw->snhw", torch.linalg.cholesky(covariance), draw)
    mask = torch.ones(size[1], dtype=torch.bool)
    scan = KSpace(Path("x.h5"), kspace + noise * draw, mask, mask, "", size, noise or 1e-6, noise_covariance=covariance, slices=2)
    return scan, maps


def unexplained(scan, maps):
    images = ifft2c(scan.kspace)
    return float((images - maps * combine(maps, images)).norm() / images.norm())


def covariance_of(noise):
    samples = noise.movedim(1, 0).flatten(1)
    return samples @ samples.mH / samples.shape[1]


def random_covariance():
    a = randn((COILS, COILS), torch.complex128, make_generator(5))
    return a @ a.mH / COILS + 0.2 * torch.eye(COILS)


def test_whitening_makes_noise_independent_and_keeps_the_equation():
    covariance = random_covariance()
    silent, maps = world()
    scan, white = whitened(silent, maps, covariance)
    assert unexplained(scan, white) < 1e-6
    norm = white.norm(dim=1)
    assert torch.allclose(norm[norm > 0], torch.ones(1), atol=1e-9)
    noisy, _ = world(noise=0.3, covariance=covariance)
    scan, _ = whitened(noisy, maps, 2 * 0.3**2 * covariance)
    noise = scan.kspace - whitened(silent, maps, 2 * 0.3**2 * covariance)[0].kspace
    assert (covariance_of(noise) - torch.eye(COILS)).abs().max() < 0.15
    assert torch.view_as_real(noise).std().item() == pytest.approx(scan.noise_std, rel=0.03)


def test_compression_keeps_the_signal_and_the_noise():
    scan, maps = world()
    energy = scan.kspace.norm()
    for coils in (5, 4):
        fewer, virtual = compressed(scan, maps, coils, 12)
        assert fewer.kspace.shape[1] == virtual.shape[1] == coils
        assert fewer.kspace.norm() > 0.97 * energy
        assert unexplained(fewer, virtual) < 1e-6  # a unitary mixture of what the equation holds for
    every, virtual = compressed(scan, maps, COILS, 12)
    assert every.kspace.norm() == pytest.approx(float(energy))
    noisy, _ = world(noise=0.3)
    mixed, clean = (compressed(part, maps, 4, 12) for part in (noisy, scan))
    assert mixed[0].noise_std == 0.3
    # Pure noise through the same mixture: only the centre, which decides the mixture, is the scan's.
    inside = torch.zeros(SIZE[1], dtype=torch.bool)
    inside[12:24] = True
    pure = dataclasses.replace(scan, kspace=torch.where(inside, scan.kspace, noisy.kspace - scan.kspace))
    outside = compressed(pure, maps, 4, 12)[0].kspace[..., ~inside]
    assert torch.view_as_real(outside).std().item() == pytest.approx(0.3, rel=0.03)
    assert clean[0].kspace.shape == mixed[0].kspace.shape


def test_compression_looks_at_lines_that_an_accelerated_scan_has():
    scan, maps = world()
    other = scan.kspace.clone()
    other[..., :10], other[..., 30:] = 100, -50j
    first, second = (compressed(dataclasses.replace(scan, kspace=k), maps, 3, 8)[0].kspace for k in (scan.kspace, other))
    assert torch.equal(first[..., 12:24], second[..., 12:24])


def test_oversampled_rows_are_removed_without_touching_the_noise():
    scan, maps = world()
    scan = dataclasses.replace(scan, recon_size=(20, 36))
    small, cropped = conditioned(scan, maps, MRIData())
    assert small.kspace.shape == (2, COILS, 20, 36)
    assert torch.allclose(ifft2c(small.kspace), ifft2c(scan.kspace)[..., 10:30, :], atol=1e-12)
    assert torch.equal(cropped, maps[..., 10:30, :])
    kept, _ = conditioned(scan, maps, MRIData(oversampling="keep"))
    assert kept.kspace.shape[-2] == 40
    sized, _ = conditioned(scan, maps, MRIData(size=(30, 36)))
    assert sized.kspace.shape[-2:] == (30, 36)
    noise, _ = world(seed=3, noise=1.0)
    pure = dataclasses.replace(noise, kspace=noise.kspace - world(seed=3)[0].kspace)
    assert torch.view_as_real(cut(pure, maps, (20, 36))[0].kspace).std().item() == pytest.approx(1.0, rel=0.03)


@pytest.mark.parametrize("matrix", [(60, 54), (41, 37), (30, 27), (40, 50)])
def test_a_common_matrix_keeps_the_field_of_view_and_the_brightness(matrix):
    scan, maps = world()
    other, maps_there = resampled(scan, maps, matrix)
    assert other.kspace.shape == (2, COILS, *matrix)
    dc, new_dc = scan.kspace[..., 20, 18], other.kspace[..., matrix[0] // 2, matrix[1] // 2]
    factor = (matrix[0] * matrix[1] / (40 * 36)) ** 0.5
    assert torch.allclose(new_dc, dc * factor)
    means = [ifft2c(k).mean((-1, -2)) for k in (scan.kspace, other.kspace)]
    assert torch.allclose(means[0], means[1], atol=1e-10)
    assert unexplained(other, maps_there) < 0.08  # a smoother or a finer image through interpolated maps
    assert other.noise_std == pytest.approx(scan.noise_std * factor)
    assert other.mask.tolist() == [abs(i - matrix[1] // 2) <= 18 and i - matrix[1] // 2 < 18 for i in range(matrix[1])]


@pytest.mark.parametrize("size", [(80, 72), (20, 18), (41, 35), (13, 50)])
def test_resized_fields_stay_in_their_place(size):
    """A plane wave of the field of view, whose values at the other grid are known."""
    y, x = (torch.arange(n) - n // 2 for n in SIZE)
    v, u = (torch.arange(n) - n // 2 for n in size)

    def wave(y, x, height, width):
        return torch.exp(2j * torch.pi * (y[:, None] / height - 2 * x / width))

    found = resized(wave(y, x, *SIZE)[None], size)[0]
    expected = wave(v, u, *size)
    assert (found - expected).abs().max() < 0.02
    assert abs(float((found * expected.conj()).mean().angle())) < 1e-3  # not shifted


def test_there_and_back_is_the_same_k_space():
    scan, maps = world()
    back, _ = resampled(resampled(scan, maps, (64, 53))[0], torch.ones(2, COILS, 64, 53, dtype=torch.complex128), SIZE)
    assert torch.allclose(back.kspace, scan.kspace, atol=1e-12)
    assert back.mask.all()


def test_what_cannot_be_conditioned():
    scan, maps = world()
    with pytest.raises(UserError, match="not positive definite"):
        whitened(scan, maps, torch.zeros(COILS, COILS, dtype=torch.complex128))
    with pytest.raises(UserError, match="cannot be cut"):
        cut(scan, maps, (80, 36))
    under = dataclasses.replace(scan, mask=torch.arange(36) % 2 == 0)
    with pytest.raises(UserError, match="keep their 36 columns"):
        cut(under, maps, (40, 20))
