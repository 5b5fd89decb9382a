"""L1-wavelet and SENSE: as mathematics, against sigpy, and as a command on files."""

import errno
import os
import shutil
import sys

import h5py
import numpy as np
import pytest
import torch
from commands import run_command

from rsdmri.errors import UserError
from rsdmri.files import atomic
from rsdmri.mri import phantoms, volume_files
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.mri.coils import espirit
from rsdmri.mri.config import EspiritConfig, ReconstructConfig, SimulateConfig
from rsdmri.mri.estimate import estimate_files
from rsdmri.mri.fastmri_file import write_fastmri
from rsdmri.mri.fourier import fft2c, ifft2c
from rsdmri.mri.magnitudes import read_volumes
from rsdmri.mri.masks import draw_columns
from rsdmri.mri.operators import MultiCoilMRI, combine
from rsdmri.mri.reconstruct import reconstruct_files
from rsdmri.mri.reconstruction import _fista, choose_lam, default_lam, l1_wavelet, sense, sigpy_l1_wavelet
from rsdmri.mri.wavelets import Wavelet
from rsdmri.solvers import conjugate_gradients
from rsdmri.tensors import make_generator, per_sample, randn, randn_like, squared


def problem(size=(64, 64), accel=4.0, n=2, noise=0.002, dtype=torch.complex128):
    """Drawn heads of unit brightness through their own maps; the operator, y, and the images."""
    k = phantoms.draw(0, 0, n, 6, size)
    k = k / ifft2c(k).abs().max()
    maps = espirit(k, calib=16)[0].to(dtype)
    x = combine(maps, ifft2c(k.to(dtype)))
    operator = MultiCoilMRI(maps, draw_columns(n, size[1], accel, 8, make_generator(3)))
    y = operator.forward(x)
    return operator, operator.restrict(y + noise * randn_like(y, make_generator(4))), x


def psnr(x, image):
    return float(10 * torch.log10(squared(image).max() / squared(x - image).mean()))


def test_conjugate_gradients_solve_each_sample_by_itself():
    a = randn((3, 6, 6), torch.complex128, make_generator(0))
    a = a @ a.mH + torch.eye(6)
    b = randn((3, 6, 1), torch.complex128, make_generator(1))
    b[1] = 0  # a sample without anything to solve
    x = conjugate_gradients(lambda v: a @ v, b, iterations=12)
    assert torch.allclose(x, torch.linalg.solve(a, b), atol=1e-9)
    alone = conjugate_gradients(lambda v: a[2:] @ v, b[2:], iterations=12)
    assert torch.allclose(x[2:], alone, atol=1e-12)
    exact = conjugate_gradients(lambda v: a @ v, b, iterations=200, tolerance=1e-8)
    assert (a @ exact - b).norm() < 1e-7 * b.norm()


def test_conjugate_gradients_survive_what_is_not_positive():
    """Of an indefinite or an unsymmetric matrix no residual is larger than that of zero."""
    b = randn((2, 8, 1), torch.float64, make_generator(1))
    unsymmetric = randn((2, 8, 8), torch.float64, make_generator(2))
    indefinite = torch.diag_embed(torch.linspace(-1, 3, 8)).expand(2, -1, -1)
    for a in (unsymmetric, indefinite):
        for iterations in (1, 3, 50):
            x = conjugate_gradients(lambda v, a=a: a @ v, b, iterations)
            assert ((a @ x - b).flatten(1).norm(dim=1) <= b.flatten(1).norm(dim=1) * (1 + 1e-12)).all()


def test_sense_solves_the_normal_equations():
    operator, y, _ = problem()
    x = sense(operator, y, lam=0.05, iterations=200, tolerance=1e-10)
    assert torch.allclose(operator.gram(x) + 0.05 * x, operator.adjoint(y), atol=1e-8)


def test_l1_of_everything_is_the_image_shrunk():
    """Where nothing is missing and maps are everywhere, the problem is the proximal map itself."""
    maps = torch.ones(2, 1, 32, 32, dtype=torch.complex128)
    operator = MultiCoilMRI(maps, torch.ones(2, 1, 1, 32, dtype=torch.bool))
    x = randn((2, 1, 32, 32), torch.complex128, make_generator(5))
    found = l1_wavelet(operator, fft2c(x), 0.1, tolerance=0, iterations=80, shifts=False)
    threshold = 0.1 * x.abs().amax((1, 2, 3))
    assert torch.allclose(found, Wavelet().shrink(x, threshold), atol=1e-6)


def test_l1_ends_where_its_step_changes_nothing():
    operator, y, _ = problem()
    lam = 0.01
    x = l1_wavelet(operator, y, lam, iterations=1000, tolerance=0, shifts=False)
    b = operator.adjoint(y)
    step = Wavelet().shrink(x + b - operator.gram(x), lam * b.abs().amax((1, 2, 3)))
    assert (step - x).norm() < 1e-4 * x.norm()


def test_an_image_does_not_depend_on_the_others():
    operator, y, _ = problem()
    whole = l1_wavelet(operator, y, 1e-3, iterations=20)
    alone = l1_wavelet(operator[1:2], y[1:2], 1e-3, iterations=20)
    assert torch.equal(whole[1:], alone)


def test_the_batch_is_what_its_images_are_by_themselves():
    """What a GPU does: all images at once, each finished when it is."""
    operator, y, _ = problem()
    y[0] *= 0.01  # brightness does not matter, nor when the other is finished
    alone = l1_wavelet(operator, y, 1e-2, iterations=400, tolerance=3e-3, shifts=False)
    at_once = _fista(operator, y, 1e-2, Wavelet(), 400, 3e-3, False)
    assert torch.allclose(alone, at_once, atol=1e-10)


def test_an_image_is_not_finished_before_it_began():
    """With little weight the first steps from SENSE are small: they are no sign of the end."""
    operator, y, _ = problem(accel=2.0)
    few = l1_wavelet(operator, y, 1e-5, iterations=11, tolerance=1.0)
    assert torch.equal(
        few, l1_wavelet(operator, y, 1e-5, iterations=50, tolerance=1.0)
    )  # finished after the eleventh, and not before
    assert not torch.allclose(few, l1_wavelet(operator, y, 1e-5, iterations=1, tolerance=1.0), atol=1e-6)


def test_random_shifts_end_where_changes_fall_no_more():
    """They keep moving the image by more than any tolerance that is worth asking for."""
    operator, y, _ = problem(noise=0.01, n=1)
    calls = []

    class Counted(Wavelet):
        def shrink(self, x, threshold, shift):
            calls.append(shift)
            return super().shrink(x, threshold, shift)

    settled = l1_wavelet(operator, y, 2e-3, Counted(), iterations=400, tolerance=1e-12)
    assert 30 < len(calls) < 200 and len(calls) % 10 == 0
    assert torch.equal(settled, l1_wavelet(operator, y, 2e-3, iterations=len(calls), tolerance=0))
    calls.clear()
    l1_wavelet(operator, y, 2e-3, Counted(), iterations=250, tolerance=0)
    assert len(calls) == 250


def test_threads_change_nothing():
    operator, y, _ = problem(n=3)
    alone = l1_wavelet(operator, y, 1e-3, iterations=10)
    torch.set_num_threads(2)
    try:
        assert torch.equal(l1_wavelet(operator, y, 1e-3, iterations=10), alone)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_bright_and_dark_scans_are_treated_alike():
    operator, y, _ = problem()
    assert torch.allclose(l1_wavelet(operator, 1000 * y, 1e-3), 1000 * l1_wavelet(operator, y, 1e-3), atol=1e-8)


def test_l1_is_better_than_sense_and_than_sigpy():
    operator, y, x = problem(dtype=torch.complex64)
    lam = 1e-3
    ours, theirs = l1_wavelet(operator, y, lam), sigpy_l1_wavelet(operator, y, lam)
    plain = l1_wavelet(operator, y, lam, shifts=False)
    assert psnr(ours, x) > psnr(sense(operator, y), x) + 1
    assert psnr(ours, x) > psnr(theirs, x) - 0.1
    assert psnr(plain, x) > psnr(theirs, x) - 0.1  # not by the shifts alone


@pytest.mark.parametrize("size", [(45, 50), (64, 40)])
def test_any_matrix_is_padded_and_cropped_back(size):
    operator, y, x = problem(size, accel=3.0)
    found = l1_wavelet(operator, y, 1e-3)
    assert found.shape == x.shape and psnr(found, x) > psnr(operator.adjoint(y), x) + 3


def test_two_sets_of_maps():
    basis = torch.linalg.qr(randn((1, 32, 32, 4, 2), torch.complex128, make_generator(6)))[0].permute(0, 4, 3, 1, 2)
    operator = MultiCoilMRI(basis, torch.ones(1, 1, 1, 32, dtype=torch.bool))
    x = randn((1, 2, 32, 32), torch.complex128, make_generator(7))
    assert torch.allclose(l1_wavelet(operator, operator.forward(x), 1e-6, iterations=30), x, atol=1e-3)


@pytest.mark.parametrize("lam", [0.0, -1.0, float("nan")])
def test_a_weight_that_is_none_is_refused(lam):
    operator, y, _ = problem()
    with pytest.raises(UserError, match="needs a weight above 0"):
        l1_wavelet(operator, y, lam)


def test_the_weight_that_is_chosen_is_nearly_the_best():
    """Without the image; the same again the next time."""
    operator, y, x = problem(noise=0.01)
    candidates = (1e-4, 1e-3, 1e-2, 1e-1)
    chosen = choose_lam(operator, y, candidates=candidates)
    scores = {lam: psnr(l1_wavelet(operator, y, lam), x) for lam in candidates}
    assert scores[chosen] > max(scores.values()) - 0.5 and chosen == choose_lam(operator, y, candidates=candidates)
    assert max(scores.values()) > min(scores.values()) + 2  # it matters


def test_a_mask_without_outer_columns_has_no_choice():
    operator, y, _ = problem()
    central = torch.zeros(2, 1, 1, 64, dtype=torch.bool)
    central[..., 30:34] = True
    with pytest.raises(UserError, match="no column outside the centre"):
        choose_lam(operator.with_mask(central), y)


# The command.


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Two fully sampled scans and one with a mask; 80 rows of a readout of which 40 are shown; the last slice of one is empty."""
    folder = tmp_path_factory.mktemp("scans")
    for number in range(3):
        k = phantoms.draw(0, number, 2, 4, (80, 40))
        k[1] *= number != 1
        mask = draw_columns(1, 40, 2, 8, make_generator(number))[0, 0, 0] if number == 2 else None
        noisy = k + 0.001 * randn_like(k, make_generator(number)) * (k != 0)
        write_fastmri(folder / f"{number}.h5", noisy, acquisition="T", noise_std=0.001, mask=mask, recon_size=(40, 40))
    estimate_files([folder], folder / "maps", EspiritConfig(workers=1, calib=8))
    return folder


def config(scans, **fields):
    return ReconstructConfig(**{"maps": scans / "maps", "workers": 1, **fields})


def images_of(path):
    with h5py.File(path, "r") as file:
        return file["reconstruction"][()], dict(file.attrs)


def test_what_is_written(scans, tmp_path):
    reconstruct_files([scans], tmp_path, config(scans))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.h5", "1.h5", "2.h5"]
    for number, acceleration in enumerate((1.0, 1.0, 2.0)):
        volume, attributes = images_of(tmp_path / f"{number}.h5")
        assert volume.shape == (2, 40, 40) and volume.dtype == np.float32
        assert attributes["acceleration"] == acceleration and attributes["lam"] == default_lam(acceleration)
        assert (not volume[1].any()) == (number == 1)
    with h5py.File(scans / "0.h5", "r") as file:
        target = file["reconstruction_rss"][()]
    found, _ = images_of(tmp_path / "0.h5")
    inside = found > 0.1 * found.max()
    assert np.abs(found - target)[inside].mean() < 0.02 * target.max()


def test_methods_differ_and_all_of_them_work(scans, tmp_path):
    choices = {
        "l1": {},
        "sense": {"method": "sense"},
        "sigpy": {"backend": "sigpy", "iterations": 20},
        "auto": {"lam": "auto"},
    }
    found = {}
    for name, fields in choices.items():
        reconstruct_files([scans / "2.h5"], tmp_path / name, config(scans, **fields))
        found[name], attributes = images_of(tmp_path / name / "2.h5")
        assert found[name].max() > 0 and (attributes["lam"] > 0) == (name != "sense")
        assert 0 < attributes["residual"] < 0.5
    assert not np.array_equal(found["l1"], found["sense"]) and not np.array_equal(found["l1"], found["sigpy"])
    assert np.abs(found["l1"] - found["sigpy"]).mean() < 0.05 * found["l1"].max()


def test_accelerations_are_tried_out_on_full_scans(scans, tmp_path, capsys):
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, accel=4.0, acs=6))
    volume, attributes = images_of(tmp_path / "0.h5")
    assert attributes["acceleration"] == 4.0
    with pytest.raises(UserError, match=r"2\.h5: undersampled already; leave --accel out"):
        reconstruct_files([scans / "2.h5"], tmp_path, config(scans, accel=4.0))
    reconstruct_files([scans / "0.h5"], tmp_path / "seed", config(scans, accel=4.0, acs=6, seed=1))
    assert not np.array_equal(images_of(tmp_path / "seed" / "0.h5")[0], volume)


def test_what_is_done_is_not_done_again(scans, tmp_path):
    reconstruct_files([scans], tmp_path, config(scans))
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    reconstruct_files([scans], tmp_path, config(scans))
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    reconstruct_files([scans], tmp_path, config(scans, lam=0.01))
    assert all(path.stat().st_mtime_ns != before[path.name] for path in tmp_path.iterdir())


def test_other_maps_are_other_images(scans, tmp_path):
    shutil.copytree(scans / "maps", tmp_path / "maps")
    fields = {"maps": tmp_path / "maps"}
    reconstruct_files([scans / "0.h5"], tmp_path / "out", config(scans, **fields))
    before = images_of(tmp_path / "out" / "0.h5")[0]
    estimate_files([scans / "0.h5"], tmp_path / "maps", EspiritConfig(workers=1, calib=8, crop=0.5))
    reconstruct_files([scans / "0.h5"], tmp_path / "out", config(scans, **fields))
    assert not np.array_equal(images_of(tmp_path / "out" / "0.h5")[0], before)


def test_options_of_masks_alone_change_nothing(scans, tmp_path):
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans))
    before = (tmp_path / "0.h5").stat().st_mtime_ns
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, seed=3, acs=4))
    assert (tmp_path / "0.h5").stat().st_mtime_ns == before


def test_files_for_viewers_are_never_of_an_earlier_reconstruction(scans, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    pydicom = pytest.importorskip("pydicom")

    def shown():
        return np.asarray(nibabel.load(tmp_path / "0.nii.gz").dataobj).transpose(2, 1, 0)[:, ::-1]

    def uid():
        return pydicom.dcmread(tmp_path / "0.dicom" / "0001.dcm").SOPInstanceUID

    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, lam=0.1, nifti=True, dicom=True))
    first, number = shown(), uid()
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, lam=0.001))
    assert not (tmp_path / "0.nii.gz").exists() and not (tmp_path / "0.dicom").exists()
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, lam=0.001, nifti=True, dicom=True))
    assert np.array_equal(shown(), images_of(tmp_path / "0.h5")[0]) and not np.array_equal(shown(), first)
    assert uid() != number  # other pixels, another identity


def test_a_folder_of_something_else_is_left_alone(scans, tmp_path):
    pytest.importorskip("pydicom")
    (tmp_path / "0.dicom").mkdir()
    (tmp_path / "0.dicom" / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match=r"0\.dicom: not of an earlier reconstruction"):
        reconstruct_files([scans / "0.h5"], tmp_path, config(scans, dicom=True))
    assert (tmp_path / "0.dicom" / "precious.txt").read_text() == "mine"


@pytest.mark.parametrize("name", ["0.h5", "0.nii.gz"])
def test_a_file_of_something_else_is_left_alone(name, scans, tmp_path):
    """A scan or a segmentation that has the name of what would be written; the other scans are reconstructed."""
    pytest.importorskip("nibabel")
    precious = (scans / "0.h5").read_bytes()
    (tmp_path / name).write_bytes(precious)
    with pytest.raises(UserError, match=f"(?s)1 of 3 files failed.*{name}: not of an earlier reconstruction, and it would be"):
        reconstruct_files([scans], tmp_path, config(scans, nifti=True))
    assert (tmp_path / name).read_bytes() == precious and (tmp_path / "1.h5").exists() and (tmp_path / "2.nii.gz").exists()


@pytest.mark.parametrize("way", ["broken", "folder", "link"])
def test_what_is_no_file_of_ours_is_one_failure(way, scans, tmp_path):
    place = tmp_path / "0.h5"
    if way == "broken":
        place.write_bytes(b"half")
    elif way == "folder":
        place.mkdir()
    else:
        place.symlink_to(scans / "0.h5")
    with pytest.raises(UserError, match=r"(?s)1 of 3 files failed.*0\.h5: (there, and cannot be read|not of an earlier)"):
        reconstruct_files([scans], tmp_path, config(scans))
    assert place.exists() and (tmp_path / "1.h5").exists()


def test_what_the_volume_does_not_know_of_stays(scans, tmp_path):
    """A segmentation saved with the header of our image says our name."""
    nibabel = pytest.importorskip("nibabel")
    reconstruct_files([scans / "0.h5"], tmp_path / "other", config(scans, nifti=True))
    image = nibabel.load(tmp_path / "other" / "0.nii.gz")
    inside = (np.asarray(image.dataobj) > 0.1).astype(np.uint8)
    nibabel.save(nibabel.Nifti1Image(inside, None, image.header), tmp_path / "0.nii.gz")
    before = (tmp_path / "0.nii.gz").read_bytes()
    for lam in (0.1, 0.01):
        reconstruct_files([scans / "0.h5"], tmp_path, config(scans, lam=lam))
    assert (tmp_path / "0.nii.gz").read_bytes() == before


def test_another_form_of_the_same_images_costs_no_reconstruction(scans, tmp_path, monkeypatch):
    pytest.importorskip("nibabel")
    pytest.importorskip("pydicom")
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, nifti=True))
    before = (tmp_path / "0.nii.gz").read_bytes(), images_of(tmp_path / "0.h5")[0]
    monkeypatch.setattr("rsdmri.mri.reconstruct._images", None)
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, dicom=True))
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, nifti=True, dicom=True))
    assert (tmp_path / "0.nii.gz").read_bytes() == before[0] and np.array_equal(images_of(tmp_path / "0.h5")[0], before[1])
    assert len(list((tmp_path / "0.dicom").iterdir())) == len(before[1])


@pytest.mark.parametrize("at", ["write_nifti", "write_reconstruction"])
def test_a_run_that_was_stopped_leaves_no_two_reconstructions_side_by_side(at, scans, tmp_path, monkeypatch):
    """Killed before the picture is written, or between it and the record: the next run does not take what is there for done."""
    nibabel = pytest.importorskip("nibabel")
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, lam=0.1, nifti=True))
    wanted = (tmp_path / "0.nii.gz").read_bytes()
    calls, function = [], getattr(volume_files, at)

    def killed(*arguments):
        calls.append(at)
        if at == "write_nifti" or len(calls) == 2:
            raise KeyboardInterrupt
        function(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(volume_files, at, killed)
        with pytest.raises(KeyboardInterrupt):
            reconstruct_files([scans / "0.h5"], tmp_path, config(scans, lam=0.001, nifti=True))
    assert images_of(tmp_path / "0.h5")[1]["asked_lam"] == 0.001  # the volume is there, and says that its picture may not be
    for lam in (0.001, 0.1):
        reconstruct_files([scans / "0.h5"], tmp_path, config(scans, lam=lam, nifti=True))
        found = np.asarray(nibabel.load(tmp_path / "0.nii.gz").dataobj).transpose(2, 1, 0)[:, ::-1]
        assert np.array_equal(found, images_of(tmp_path / "0.h5")[0])
    assert (tmp_path / "0.nii.gz").read_bytes() == wanted


def test_what_cannot_be_written_loses_nothing(scans, tmp_path, monkeypatch):
    pytest.importorskip("nibabel")
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, lam=0.1, nifti=True))
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(path, *_):
        with atomic(path):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(volume_files, "write_reconstruction", full)
    with pytest.raises(UserError, match="No space left"):
        reconstruct_files([scans / "0.h5"], tmp_path, config(scans, lam=0.001, nifti=True))
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_another_scan_of_the_same_name_is_told(scans, tmp_path, capsys):
    (tmp_path / "scans").mkdir()
    shutil.copy(scans / "1.h5", tmp_path / "scans" / "0.h5")
    estimate_files([tmp_path / "scans"], tmp_path / "maps", EspiritConfig(workers=1, calib=8))
    reconstruct_files([scans / "0.h5"], tmp_path / "out", config(scans))
    reconstruct_files([tmp_path / "scans"], tmp_path / "out", config(scans, maps=tmp_path / "maps"))
    assert "replaced the images of another file of this name" in capsys.readouterr().err


def test_maps_of_more_lines_than_are_kept_are_told(scans, tmp_path, capsys):
    """Else a baseline that is tried out is better than the scan that it stands for."""
    for accel, acs, seen in ((2.0, 2, "full"), (2.0, 20, "acs"), (1.0, 2, "acs")):
        reconstruct_files([scans / "0.h5"], tmp_path / seen, config(scans, accel=accel, acs=acs))
        assert images_of(tmp_path / seen / "0.h5")[1]["maps"] == seen
        assert ("more than the reconstruction has" in capsys.readouterr().err) == (seen == "full")


def test_a_missing_package_is_said_before_the_work(scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(UserError, match="nibabel is needed to write it: pip install"):
        reconstruct_files([scans], tmp_path / "out", config(scans, nifti=True))
    assert not (tmp_path / "out").exists()


def test_warnings_are_said_although_others_fail(scans, tmp_path, capsys):
    shutil.copytree(scans / "maps", tmp_path / "maps")
    (tmp_path / "maps" / "0.maps.h5").unlink()
    with pytest.raises(UserError, match="1 of 3 files failed"):
        reconstruct_files([scans], tmp_path / "out", config(scans, maps=tmp_path / "maps"))
    assert "1 slices without signal are zero" in capsys.readouterr().err


def test_swapped_scans_come_out_as_their_targets(scans, tmp_path):
    """The phase encoding first, as in some repacked files: the image lies as the file's own."""
    (tmp_path / "scans").mkdir()
    path = tmp_path / "scans" / "0.h5"
    path.write_bytes((scans / "0.h5").read_bytes())
    with h5py.File(path, "a") as file:
        kspace, target = file["kspace"][()], file["reconstruction_rss"][()][:, :30]
        for name, values in (("kspace", kspace.swapaxes(-1, -2)), ("reconstruction_rss", target.swapaxes(-1, -2))):
            del file[name]
            file[name] = values
    estimate_files([path], tmp_path / "maps", EspiritConfig(workers=1, calib=8))
    reconstruct_files([path], tmp_path / "out", config(scans, maps=tmp_path / "maps"))
    assert images_of(tmp_path / "out" / "0.h5")[0].shape == target.swapaxes(-1, -2).shape == (2, 40, 30)


def test_maps_that_are_too_strong_are_refused():
    operator, y, _ = problem()
    with pytest.raises(UserError, match="maps of a power of up to 4"):
        l1_wavelet(MultiCoilMRI(2 * operator.maps, operator.mask), y, 1e-3)
    assert len(l1_wavelet(operator[:0], y[:0], 1e-3)) == 0


def test_nifti_and_dicom_are_the_same_images(scans, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    pydicom = pytest.importorskip("pydicom")
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans))
    reconstruct_files([scans / "0.h5"], tmp_path, config(scans, nifti=True, dicom=True))  # they were missing: made now
    volume, _ = images_of(tmp_path / "0.h5")
    asked = SimulateConfig(size=(40, 40))
    (stack, _), *others = read_volumes(tmp_path / "0.dicom", asked).values()
    assert not others and np.allclose(stack, volume, atol=volume.max() / 60000)
    # As viewers show a file without orientation: the first axis to the right of the screen, the second upwards.
    assert np.array_equal(np.asarray(nibabel.load(tmp_path / "0.nii.gz").dataobj).transpose(2, 1, 0)[:, ::-1], volume)
    slices = [pydicom.dcmread(path) for path in sorted((tmp_path / "0.dicom").iterdir())]
    assert (
        len({data.SOPInstanceUID for data in slices}) == 2 == len(slices)
        and len({data.SeriesInstanceUID for data in slices}) == 1
    )
    assert all(data.PatientName == "" and data.PatientID == "" for data in slices)


def test_voxels_are_those_of_the_header(scans, tmp_path):
    nibabel = pytest.importorskip("nibabel")
    text = (
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace><matrixSize><x>80</x><y>40</y><z>1</z></matrixSize>'
        "</encodedSpace><reconSpace><matrixSize><x>40</x><y>40</y><z>1</z></matrixSize><fieldOfView_mm><x>80</x><y>60</y><z>5</z>"
        "</fieldOfView_mm></reconSpace></encoding></ismrmrdHeader>"
    )
    path = tmp_path / "scans" / "0.h5"
    path.parent.mkdir()
    path.write_bytes((scans / "0.h5").read_bytes())
    with h5py.File(path, "a") as file:
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = text
    estimate_files([path], tmp_path / "maps", EspiritConfig(workers=1, calib=8))
    reconstruct_files([path], tmp_path / "out", config(scans, maps=tmp_path / "maps", nifti=True))
    image = nibabel.load(tmp_path / "out" / "0.nii.gz")
    assert np.allclose(image.header.get_zooms(), (1.5, 2, 5)) and image.header["sform_code"] == image.header["qform_code"] == 0


BAD = {
    "no maps": ({"maps": "nowhere"}, "no coil maps for .*0.h5. Make them: rsdmri-espirit"),
    "wavelet": ({"wavelet": "db4x"}, "no wavelet 'db4x'"),
    "levels": ({"levels": 7}, "0.h5: 7 wavelet levels of images of 80 x 40: expected 1 to 5"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_said(case, scans, tmp_path):
    fields, message = BAD[case]
    fields = {name: tmp_path / value if name == "maps" else value for name, value in fields.items()}
    with pytest.raises(UserError, match=message):
        reconstruct_files([scans / "0.h5"], tmp_path / "out", config(scans, **fields))
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_maps_of_another_matrix_are_refused(scans, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "0.maps.h5").write_bytes((scans / "maps" / "0.maps.h5").read_bytes())
    with h5py.File(tmp_path / "maps" / "0.maps.h5", "a") as file:
        maps = file["maps"][()]
        del file["maps"]
        file["maps"] = maps[..., 1:]
    with pytest.raises(UserError, match=r"its maps .* differ; run rsdmri-espirit again"):
        reconstruct_files([scans / "0.h5"], tmp_path / "out", config(scans, maps=tmp_path / "maps"))


def test_maps_with_nan_are_refused(scans, tmp_path):
    (tmp_path / "maps").mkdir()
    (tmp_path / "maps" / "0.maps.h5").write_bytes((scans / "maps" / "0.maps.h5").read_bytes())
    with h5py.File(tmp_path / "maps" / "0.maps.h5", "a") as file:
        file["maps"][0, 0, 3, 4] = np.nan
    with pytest.raises(UserError, match=r"0.maps.h5: coil maps with NaN or infinity"):
        reconstruct_files([scans / "0.h5"], tmp_path / "out", config(scans, maps=tmp_path / "maps"))


def test_scans_are_not_overwritten(scans):
    with pytest.raises(UserError, match="the scans lie there"):
        reconstruct_files([scans], scans, config(scans))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--lam", "0"], "lam must be above 0 for l1"),
        (["--lam", "-1", "--method", "sense"], "lam must not be negative"),
        (["--method", "sense", "--lam", "auto"], "for l1 alone"),
        (["--backend", "sigpy", "--levels", "3"], "levels cannot be chosen with the backend sigpy"),
        (["--backend", "sigpy", "--lam", "auto"], "lam auto is for the backend torch"),
        (["--backend", "sigpy", "--tolerance", "1e-5"], "the backend sigpy has no tolerance"),
        (["--method", "sense", "--wavelet", "haar"], "wavelet and levels are for l1"),
        (["--iterations", "0"], "iterations must be at least 1"),
        (["--accel", "0.5"], "accel must be at least 1"),
    ],
)
def test_wrong_command_lines(flags, message, scans, tmp_path, capsys):
    code = run_command(APPLICATION, "reconstruct", scans, "--maps", scans / "maps", "--out", tmp_path / "out", *flags)
    assert code == 2 and message in " ".join(capsys.readouterr().err.split())


def test_the_command_on_two_processes(scans, tmp_path, capsys):
    code = run_command(APPLICATION, "reconstruct", scans, "--maps", scans / "maps", "--out", tmp_path, "--workers", 2)
    assert code == 0 and "3 scans now, 0 were there" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 3


def test_per_sample_threshold():
    """A weight for each image: the brighter one is shrunk by more."""
    x = randn((2, 1, 16, 16), torch.complex128, make_generator(8))
    shrunk = Wavelet().shrink(x, torch.tensor([0.0, 100.0]))
    assert torch.allclose(shrunk[0], x[0], atol=1e-12)
    assert torch.allclose(shrunk[1], Wavelet().compose(per_sample(torch.ones(2), x)[1:] * _coarse(x[1:]), (16, 16))[0], atol=1e-9)


def _coarse(x):
    c = Wavelet().decompose(x)
    kept = torch.zeros_like(c)
    kept[..., :8, :8] = c[..., :8, :8]
    return kept
