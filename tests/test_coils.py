"""ESPIRiT against coils that are known, phase included, against sigpy itself, and on inputs that break other libraries."""

import math

import h5py
import numpy as np
import pytest
import torch

from rsdmri.errors import UserError
from rsdmri.mri import phantoms
from rsdmri.mri.coils import SMALLEST_CALIB, calibration_block, default_calib, default_kernel, espirit, residual
from rsdmri.mri.fourier import fft2c, ifft2c
from rsdmri.mri.operators import combine
from rsdmri.mri.readers import read
from rsdmri.tensors import make_generator, randn_like

SIZE = (48, 40)
ALL = torch.ones(SIZE[1], dtype=torch.bool)


def world(seed=0, slices=2, size=SIZE, coils=6, noise_std=0.002):
    """Known maps (coils, H, W), images (B, 1, H, W) and k-space (B, coils, H, W) = F S x + noise."""
    rng = np.random.default_rng(seed)
    maps = torch.from_numpy(phantoms.coil_maps(rng, coils, size))
    x = phantoms.head(rng, slices, size) * np.exp(1j * phantoms.smooth_phase(rng, slices, size))
    x = torch.from_numpy(x)[:, None]
    k = fft2c(maps * x)
    return maps, x, (k + noise_std * randn_like(k, make_generator(seed))).to(torch.complex64)


@pytest.fixture(scope="module")
def known():
    return world()


@pytest.fixture(scope="module")
def estimated(known):
    return espirit(known[2], calib=20)


def test_shapes_and_types(known, estimated):
    maps, eigenvalues, valid = estimated
    assert (maps.shape, maps.dtype) == (known[2].shape, torch.complex64)
    assert (eigenvalues.shape, eigenvalues.dtype) == ((2, *SIZE), torch.float32)
    assert valid.tolist() == [True, True]


def test_unit_norm_on_the_support_and_zero_outside(estimated):
    maps, eigenvalues, _ = estimated
    norm = maps.abs().square().sum(1)
    assert ((norm == 0) == (eigenvalues <= 0.95)).all()
    assert torch.allclose(norm[norm > 0], torch.tensor(1.0, dtype=torch.float32), atol=1e-6)


def test_maps_explain_the_coil_images_with_their_phase(known, estimated):
    """||x_c - S S^H x_c|| is the noise: maps without a phase, as those of |S|, leave almost everything."""
    coil_images = known[0] * known[1]
    assert (residual(estimated[0], coil_images) < 0.03).all()
    assert (residual(estimated[0].abs(), coil_images) > 0.5).all()


def test_maps_are_the_known_ones_up_to_one_phase_a_pixel(known, estimated):
    truth, x, _ = known
    agreement = (truth.conj() * estimated[0]).sum(1).abs()
    inside = (x[:, 0].abs() > 0.1) & (estimated[1] > 0.95)
    assert inside.sum() > 0.9 * (x[:, 0].abs() > 0.1).sum()
    assert agreement[inside].quantile(0.05) > 0.995
    assert agreement[inside].median() > 0.9995


def test_the_combined_image_is_the_known_one_up_to_a_smooth_phase(known, estimated):
    truth, x, _ = known
    combined = combine(estimated[0], truth * x)
    inside = (x.abs() > 0.1) & (estimated[0].abs().sum(1, keepdim=True) > 0)
    assert torch.allclose(combined[inside].abs(), x[inside].abs(), atol=0.02)


def test_the_first_virtual_coil_is_real_and_positive(known, estimated):
    block = calibration_block(known[2], ALL, 20)
    for maps, k in zip(estimated[0], known[2], strict=True):
        samples = k[:, block[0], block[1]].flatten(1)
        _, vectors = torch.linalg.eigh(samples @ samples.mH)
        signal = vectors[:, -1].conj() @ samples
        peak = signal[signal.abs().argmax()]
        virtual = torch.einsum("k,khw->hw", (vectors[:, -1] * peak / peak.abs()).conj(), maps)
        virtual = virtual[virtual.abs() > 1e-3]
        assert len(virtual) > 500
        assert virtual.angle().abs().max() < 1e-2


def compare_with_sigpy(kspace, calib):
    """Largest differences from sigpy, converged: of the eigenvalues, and of the maps but for a phase a pixel, where the first two
    eigenvalues differ by more than 0.05."""
    from sigpy.mri.app import EspiritCalib

    maps, eigenvalues, _ = espirit(kspace[None], calib=calib, threshold=0.02, crop=0)
    second = espirit(kspace[None], calib=calib, threshold=0.02, sets=2)[1][0, 1]
    centred = torch.zeros_like(kspace)
    rows, columns = calibration_block(kspace[None], torch.ones(kspace.shape[-1], dtype=torch.bool), calib)
    top, left = (n // 2 - calib // 2 for n in kspace.shape[1:])
    centred[:, top : top + calib, left : left + calib] = kspace[:, rows, columns] / kspace.abs().max()
    app = EspiritCalib(centred.numpy(), calib_width=calib, crop=0, max_iter=1000, output_eigenvalue=True, show_pbar=False)
    reference, values = (torch.from_numpy(np.ascontiguousarray(part)) for part in app.run())
    phase = (reference.conj() * maps[0]).sum(0)
    difference = (maps[0] * (phase.conj() / phase.abs()) - reference).norm(dim=0)
    apart = (eigenvalues[0] - second) > 0.05
    assert apart.float().mean() > 0.5
    return float((values.abs().reshape(apart.shape) - eigenvalues[0])[apart].abs().max()), float(difference[apart].max())


def test_agrees_with_sigpy_up_to_the_phase(known):
    for k in known[2]:
        of_eigenvalues, of_maps = compare_with_sigpy(k, 20)
        assert of_eigenvalues < 1e-4
        assert of_maps < 1e-4


def test_the_backends_agree(known, estimated):
    maps, eigenvalues, valid = espirit(known[2], calib=20, backend="sigpy", iterations=300)
    assert valid.all()
    assert torch.allclose(eigenvalues, estimated[1], atol=1e-3)
    both = (maps.abs().sum(1) > 0) & (estimated[0].abs().sum(1) > 0)
    assert ((maps.abs().sum(1) > 0) == (estimated[0].abs().sum(1) > 0)).float().mean() > 0.995
    assert (maps - estimated[0]).norm(dim=1)[both].quantile(0.99) < 1e-3  # phase included


def test_two_sets_explain_a_field_of_view_smaller_than_the_object():
    """Half the field of view: two places, with coils of their own, lie in one pixel."""
    truth, x, _ = world(3, 1, (64, 96))
    folded = (truth * x)[..., :48] + (truth * x)[..., 48:]
    k = fft2c(folded).to(torch.complex64)
    one, _, _ = espirit(k)
    two, eigenvalues, valid = espirit(k, sets=2)
    assert (two.shape, eigenvalues.shape, valid.tolist()) == ((1, 2, 6, 64, 48), (1, 2, 64, 48), [True])
    assert float(residual(two, folded)) < 0.02 < 0.2 < float(residual(one, folded))
    assert combine(two, folded).shape == (1, 2, 64, 48)
    overlap = (two[:, 0].conj() * two[:, 1]).sum(1).abs()
    assert overlap.max() < 1e-3  # orthogonal at every pixel, which ||A|| <= 1 rests on


@pytest.mark.parametrize(("lines", "limit"), [(3, 0.45), (5, 0.3), (12, 0.12)])
def test_walsh_maps_of_few_lines(known, lines, limit):
    """Rough maps where ESPIRiT has none."""
    start = SIZE[1] // 2 - lines // 2
    mask = torch.zeros(SIZE[1], dtype=torch.bool)
    mask[[2, 7, *range(start, start + lines), 33]] = True
    kspace = torch.where(mask, known[2], 0)
    if lines < 4:
        with pytest.raises(UserError, match="--backend walsh"):
            espirit(kspace, mask=mask)
    maps, values, valid = espirit(kspace, mask=mask, backend="walsh")
    assert valid.all()
    norm = maps.norm(dim=1)
    assert torch.allclose(norm[norm > 0], torch.ones(1, dtype=torch.float32), atol=1e-6)
    inside = (known[1][:, 0].abs() > 0.2) & (values > 0.5)
    assert inside.sum() > 0.8 * (known[1][:, 0].abs() > 0.2).sum()
    phase = (known[0].conj() * maps).sum(1, keepdim=True)
    error = (maps * (phase.conj() / phase.abs().clamp(min=1e-9)) - known[0]).norm(dim=1)
    assert error[inside].median() < limit


@pytest.mark.parametrize(("snr", "limit"), [(1, 0.13), (2, 0.075)])
def test_noisy_scans(snr, limit):
    """RSS over the standard deviation of complex noise, 8 coils that are known; the median error of the maps in the head."""
    size = (160, 160)
    truth, x, _ = world(4, 1, size, coils=8)
    inside = x[0, 0].abs() > 0.1
    std = float(x.abs()[0, 0][inside].mean()) / snr / math.sqrt(2)
    k = fft2c(truth * x)
    k = (k + std * randn_like(k, make_generator(1))).to(torch.complex64)

    def error(threshold):
        maps, _, _ = espirit(k, calib=24, threshold=threshold, crop=0)
        phase = (truth.conj() * maps[0]).sum(0)
        return float((maps[0] * phase.conj() / phase.abs() - truth).norm(dim=0)[inside].median())

    assert error(None) < limit < error(0.02)


def test_a_batch_is_a_loop(known, estimated):
    for number in range(2):
        maps, eigenvalues, _ = espirit(known[2][number : number + 1], calib=20)
        assert torch.equal(maps[0], estimated[0][number])
        assert torch.equal(eigenvalues[0], estimated[1][number])


def test_nothing_outside_the_block_matters(known):
    rows, columns = calibration_block(known[2], ALL, 20)
    assert (rows, columns) == (slice(14, 34), slice(10, 30))
    outside = torch.ones(SIZE, dtype=torch.bool)
    outside[rows, columns] = False
    other = torch.where(outside, 3 - 2j, known[2])
    fixed = espirit(known[2], calib=20, threshold=0.02)[0]
    assert torch.equal(espirit(other, calib=20, threshold=0.02, mask=ALL)[0], fixed)


def test_nothing_in_other_columns_matters(known, estimated):
    """The threshold, too, is taken from columns that an accelerated scan has."""
    other = known[2].clone()
    other[..., :10], other[..., 30:] = 3 - 2j, 5
    assert torch.equal(espirit(other, calib=20)[0], estimated[0])


def test_an_accelerated_scan_gives_the_maps_of_the_full_one(known, estimated):
    mask = torch.zeros(SIZE[1], dtype=torch.bool)
    mask[[1, 5, *range(10, 30), 33]] = True
    for given in (None, mask):
        maps, _, _ = espirit(torch.where(mask, known[2], 0), calib=20, mask=given)
        assert torch.equal(maps, estimated[0])


@pytest.mark.parametrize("scale", [1e-7, 1e5])
def test_the_unit_of_the_file_does_not_matter(known, estimated, scale):
    maps, _, valid = espirit(known[2] * scale, calib=20)
    assert valid.all()
    assert torch.allclose(maps, estimated[0], atol=1e-3)


@pytest.mark.parametrize("dead", [[0], [0, 3, 5]])
def test_dead_coils_break_nothing(known, dead):
    k = known[2].clone()
    k[:, dead] = 0
    maps, _, valid = espirit(k, calib=20)
    assert valid.all()
    assert not maps[:, dead].any()
    alive = [c for c in range(6) if c not in dead]
    alone, _, _ = espirit(k[:, alive], calib=20)
    assert torch.allclose((maps[:, alive].conj() * alone).sum(1), (alone.abs() > 0).any(1).to(maps.dtype), atol=1e-4)
    # As smooth as without: neighbours differ by little phase where there is signal.
    inside = (known[1].abs() > 0.2) & (maps.abs() > 0.2)
    both = inside[..., 1:] & inside[..., :-1]
    assert (maps[..., 1:] * maps[..., :-1].conj())[both].angle().abs().median() < 0.1


def test_slices_without_signal_are_not_valid(known):
    k = known[2].clone()
    k[0] = 0
    maps, eigenvalues, valid = espirit(k, calib=20)
    assert valid.tolist() == [False, True]
    assert not maps[0].any()
    assert not eigenvalues[0].any()
    assert torch.isfinite(torch.view_as_real(maps)).all()
    maps, _, valid = espirit(torch.zeros_like(k))
    assert not valid.any()
    assert not maps.any()


@pytest.mark.parametrize("size", [(33, 37), (37, 32)])
def test_odd_sizes(size):
    truth, x, k = world(1, 1, size)
    maps, _, _ = espirit(k)
    assert residual(maps, truth * x) < 0.06


def test_one_coil():
    _, x, k = world(2, 1, coils=1)
    maps, _, valid = espirit(k, calib=20)
    assert valid.all()
    support = maps.abs() > 0
    assert support[x.abs() > 0.1].all()
    assert torch.allclose(maps[support].abs(), torch.ones(1, dtype=torch.float32), atol=1e-5)


def test_a_centre_that_is_off_the_middle(known, estimated):
    """A shift of k-space is a phase of the image that all coils share."""
    k = known[2].roll((7, -6), dims=(-2, -1))
    rows, columns = calibration_block(k, ALL, 16)
    assert rows.start <= 24 + 7 < rows.stop
    assert columns.start <= 20 - 6 < columns.stop
    maps, _, _ = espirit(k, calib=16)
    reference, _, _ = espirit(known[2], calib=16)
    both = (maps.abs().sum(1) > 0) & (reference.abs().sum(1) > 0)
    assert (maps.conj() * reference).sum(1).abs()[both].quantile(0.05) > 0.995


def test_too_few_lines(known):
    mask = torch.zeros(SIZE[1], dtype=torch.bool)
    mask[[3, 19, 20, 21, 30]] = True
    with pytest.raises(UserError, match=r"3 fully sampled ACS lines found, and kernels of width 4 need at least 4"):
        espirit(torch.where(mask, known[2], 0))
    with pytest.raises(UserError, match=r"3 fully sampled ACS lines found, and kernels of width 6 need at least 6"):
        espirit(torch.where(mask, known[2], 0), kernel=6)
    with pytest.raises(UserError, match=r"calibration block of 5 lines is narrower than the kernel of 6"):
        espirit(known[2], calib=5, kernel=6)
    with pytest.raises(UserError, match="no sampled line in the ACS"):
        espirit(known[2], mask=torch.arange(SIZE[1]) < 8)


def test_wrong_inputs(known):
    with pytest.raises(ValueError, match="complex k-space"):
        espirit(known[2][0])
    with pytest.raises(ValueError, match="complex k-space"):
        espirit(known[2].real)
    with pytest.raises(UserError, match="unknown backend 'bart' for coil maps"):
        espirit(known[2], backend="bart")
    for sets, backend in ((3, "torch"), (2, "sigpy"), (2, "walsh")):
        with pytest.raises(UserError, match=f"{sets} sets of maps asked for"):
            espirit(known[2], sets=sets, backend=backend)
    broken = known[2].clone()
    broken[0, 0, 0, 0] = math.nan
    with pytest.raises(UserError, match="NaN"):
        espirit(broken)


def test_default_width_of_the_block():
    assert [default_calib(width) for width in (32, 64, 180, 192, 320, 384)] == [24, 24, 24, SMALLEST_CALIB, 20, 24]
    k = torch.ones(1, 1, 400, 320, dtype=torch.complex64)
    k[..., 203, 158] = 9  # the centre itself may be a little off
    rows, columns = calibration_block(k, torch.ones(320, dtype=torch.bool))
    assert (columns, rows) == (slice(150, 170), slice(190, 210))  # the ACS lines of every mask of that width


REFERENCE = {  # residual of the published maps (24 lines, threshold 0.9 of the eigenvalue), and how far above it ours may lie
    "autoespirit_brain_t1_8ch_clean": (0.0046, 0.001),
    "espirit_brain_alias_8ch": (0.343, 0.05),
    "loraks_mprage_4ch": (0.071, 0.005),
    "pvdamp_brain_t2_8ch": (0.037, 0.005),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", REFERENCE)
def test_real_scans(real_data, name):
    check_real_scan(real_data, name)


def test_one_real_scan(real_data):
    check_real_scan(real_data, "loraks_mprage_4ch")


def check_real_scan(folder, name):
    """The reference maps of a scan, up to a phase a pixel, weighted with the signal."""
    path = folder / "mri" / f"{name}.h5"
    scan = read(path)
    maps, _, valid = espirit(scan.kspace, mask=scan.mask)
    assert valid.all()
    coil_images = ifft2c(scan.kspace)
    expected, slack = REFERENCE[name]
    assert float(residual(maps, coil_images)) < expected + slack
    with h5py.File(path) as file:
        reference = torch.from_numpy(file["sens_maps"][()])
    # Where the first two eigenvalues are equal, any mixture of their vectors is as good.
    _, eigenvalues, _ = espirit(scan.kspace, mask=scan.mask, sets=2)
    both = (maps.abs().sum(1) > 0) & (reference.abs().sum(1) > 0) & (eigenvalues[:, 0] - eigenvalues[:, 1] > 0.05)
    weight = coil_images.abs().square().sum(1) * both
    agreement = (maps.conj() * reference).sum(1).abs()
    assert (agreement * weight).sum() / weight.sum() > 0.99


def test_kernels_are_narrower_for_few_lines():
    assert [default_kernel(lines) for lines in (4, 8, 12, 14, 15, 17, 18, 24, 40)] == [4, 4, 4, 4, 5, 5, 6, 6, 6]


@pytest.mark.parametrize("lines", [8, 10, 12, 14])
def test_few_lines_of_a_real_scan(real_data, lines):
    """The default is at least as good as the usual width, by the residual of the coil images."""
    kspace = read(real_data / "mri" / "loraks_mprage_4ch.h5").kspace
    usual, chosen = (espirit(kspace, calib=lines, kernel=kernel, crop=0)[0] for kernel in (6, None))
    coil_images = ifft2c(kspace)
    assert float(residual(chosen, coil_images)) < float(residual(usual, coil_images)) + 1e-3
