"""ESPIRiT on the grid of its kernels, against the sums as they are printed, eigh, and noise."""

import numpy as np
import pytest
import torch

from rsdmri.mri import kernels
from rsdmri.tensors import make_generator, randn_like

KERNEL, COILS = 3, 2
SIZE = (9, 8)


def noise(*shape, seed=0, dtype=torch.complex128):
    return randn_like(torch.empty(shape, dtype=dtype), make_generator(seed))


def test_windows_are_all_of_them():
    block = noise(2, COILS, 5, 6)
    found = kernels.windows(block, KERNEL)
    assert found.shape == (2, 3 * 4, COILS * 9)
    assert torch.equal(found[1, 1 * 4 + 2], block[1, :, 1:4, 2:5].flatten())


@pytest.mark.parametrize("shape", [(2, 7, 12), (2, 12, 7)])
def test_row_space_is_that_of_the_svd(shape):
    a = noise(*shape)
    singular, vectors = kernels.row_space(a)
    _, expected, right = torch.linalg.svd(a, full_matrices=False)
    assert torch.allclose(singular, expected, rtol=1e-10)
    overlap = (vectors[:, :4].mH @ vectors[:, :4]) - (right[:, :4].mH @ right[:, :4])
    assert overlap.abs().max() < 1e-10


def direct(block, threshold):
    """G(r) by the usual way: every kernel transformed to the size of the image, and summed there."""
    _, singular, right = np.linalg.svd(kernels.windows(block[None], KERNEL)[0].numpy(), full_matrices=False)
    field = np.zeros((*SIZE, COILS, COILS), complex)
    y, x = (np.arange(n) - n // 2 for n in SIZE)
    for vector in right[singular > threshold * singular[0]]:
        kernel = vector.reshape(COILS, KERNEL, KERNEL)
        phase_y = np.exp(2j * np.pi * np.outer(y, np.arange(KERNEL)) / SIZE[0])
        phase_x = np.exp(2j * np.pi * np.outer(x, np.arange(KERNEL)) / SIZE[1])
        image = np.einsum("ya,xb,kab->yxk", phase_y, phase_x, kernel)
        field += np.einsum("yxi,yxj->yxij", image, image.conj()) / KERNEL**2
    return field


@pytest.mark.parametrize("threshold", [0.02, 0.5])
def test_the_small_grid_is_the_sum_over_kernels(threshold):
    block = noise(COILS, 6, 6)
    vectors, values = kernels.coil_eigenvectors(block[None], SIZE, KERNEL, threshold, torch.zeros(1), sets=COILS)
    field = torch.from_numpy(direct(block, threshold))
    rebuilt = torch.einsum("syx,siyx,sjyx->yxij", values[0].to(torch.complex128), vectors[0], vectors[0].conj())
    assert (rebuilt - field).abs().max() < 1e-5  # of vectors that are converged to 1e-6
    assert (values >= -1e-9).all()
    assert (values <= 1 + 1e-9).all()


@pytest.mark.parametrize("gap", [0.5, 0.05, 1e-3, 0.0])
@pytest.mark.parametrize("n", [1, 4, 15])
def test_the_dominant_eigenvector_is_that_of_eigh(n, gap):
    basis = torch.linalg.qr(noise(200, n, n))[0]
    spectrum = torch.linspace(0, 1 - gap, n, dtype=torch.float64) if n > 1 else torch.zeros(1, dtype=torch.float64)
    spectrum[-1] = 1.0
    spectrum[max(n - 2, 0)] = 1.0 if n == 1 else 1 - gap
    matrices = (basis * spectrum) @ basis.mH
    vector = kernels.dominant(matrices)
    assert torch.allclose(vector.norm(dim=1), torch.ones(200, dtype=torch.float64), atol=1e-9)
    value = torch.linalg.vecdot(vector, (matrices @ vector[..., None])[..., 0]).real
    assert (1 - value).abs().max() < 1e-6
    if gap:
        assert (1 - (basis[..., -1].conj() * vector).sum(1).abs()).max() < 1e-5


@pytest.mark.parametrize("least", [0.3, 0.9])
def test_only_eigenvalues_below_the_least_are_left_early(least):
    """Those above are as without a limit; those below stay below."""
    basis = torch.linalg.qr(noise(2000, 6, 6))[0]
    spectrum = torch.rand(2000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    matrices = (basis * spectrum[:, None]) @ basis.mH
    above = spectrum.amax(1) > least
    vectors, values = kernels.top_eigenvectors(matrices, 1, least)
    expected, expected_values = kernels.top_eigenvectors(matrices, 1)
    agreement = (vectors[:, 0].conj() * expected[:, 0]).sum(1).abs()
    assert (1 - agreement[above]).abs().quantile(0.99) < 1e-5
    assert torch.allclose(values[above], expected_values[above], rtol=1e-6)
    assert (values[~above] < least).all()
    assert (values[~above] > 0.6 * expected_values[~above]).all()
    if least > 0.5:
        assert (values[~above] < (1 - 1e-9) * expected_values[~above]).any()  # they were left early


def test_zero_matrices_have_some_vector():
    vectors, values = kernels.top_eigenvectors(torch.zeros(3, 4, 4, dtype=torch.complex64), 2)
    assert torch.isfinite(torch.view_as_real(vectors)).all()
    assert not values.any()


def test_two_sets_are_the_first_two_eigenvectors():
    a = noise(100, 5, 5)
    matrices = a @ a.mH
    vectors, values = kernels.top_eigenvectors(matrices, 2)
    expected, basis = torch.linalg.eigh(matrices)
    assert torch.allclose(values, expected[:, -2:].flip(-1), rtol=1e-5)
    agreement = torch.einsum("psn,pns->ps", vectors.conj(), basis[..., -2:].flip(-1))
    assert (1 - agreement.abs()).quantile(0.9) < 1e-4


def scan(snr, rows=96):
    """K-space (1, 4, rows, 64) of noise of standard deviation 1 per component, and a peak."""
    k = noise(1, 4, rows, 64, dtype=torch.complex64)
    k[..., rows // 2 - 4 : rows // 2 + 4, 28:36] += snr * noise(1, 4, 8, 8, seed=1, dtype=torch.complex64)
    return k


def test_the_threshold_is_what_noise_reaches():
    rows, columns = slice(36, 60), slice(20, 44)
    k = scan(30)
    found = kernels.noise_level(k, rows, columns, 6)
    of_noise = kernels.row_space(kernels.windows(noise(1, 4, 24, 24, seed=5), 6))[0][:, 0]
    assert 0.9 < found / of_noise < 1.1


def test_a_dead_coil_changes_nothing():
    rows, columns = slice(36, 60), slice(20, 44)
    k = scan(30)
    dead = torch.cat([k, torch.zeros_like(k[:, :1])], 1)
    without, found = (kernels.noise_level(part, rows, columns, 6) for part in (k, dead))
    assert without > 0
    assert torch.allclose(found, without)


@pytest.mark.parametrize("case", ["signal", "holes", "near", "nothing"])
def test_ends_that_tell_nothing_about_noise(case):
    rows, columns = slice(36, 60), slice(20, 44)
    k = scan(30)
    if case == "signal":
        k[..., :24, :] += 1000
        k[..., -24:, :] += 1000
    if case == "holes":
        k[..., ::7, 30] = 0
    if case == "near":
        k, rows = scan(30, 60), slice(18, 42)
    if case == "nothing":
        k = torch.zeros_like(k)
    assert kernels.noise_level(k, rows, columns, 6) == 0


def test_where_everything_is_noise_nothing_is_an_eigenvector():
    """Not an error of a transform of nothing: eigenvalues are zero, and whoever asks for maps says that there is no signal."""
    block = noise(2, 3, 8, 8)
    _, values = kernels.coil_eigenvectors(block, (16, 16), 3, 0.02, torch.full((2,), 1e6))
    assert values.shape == (2, 1, 16, 16) and not values.any()
