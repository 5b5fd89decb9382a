"""Simulated scans: k = F(S x) + noise, with the numbers that were asked for."""

import dataclasses

import h5py
import numpy as np
import pytest
import torch

from rsdmri.errors import UserError
from rsdmri.mri import phantoms
from rsdmri.mri.coils import combine
from rsdmri.mri.config import SimulateConfig
from rsdmri.mri.fourier import ifft2c, resized, rss
from rsdmri.mri.magnitudes import read_volumes
from rsdmri.mri.readers import find_files, read
from rsdmri.mri.simulate import load_coil_maps, simulate

DRAWN = SimulateConfig(phantoms=2, slices=2, size=(32, 32), coils=4, seed=3)
SEEN = SimulateConfig(size=(32, 32), coils=4, split="train")


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """Seven magnitude images of three subjects, with contrasts, and one of a test subject."""
    path = tmp_path_factory.mktemp("npz") / "images.npz"
    stack = np.concatenate([phantoms.head(np.random.default_rng(i), 2, (48, 40)) for i in range(4)])
    np.savez(
        path,
        train=(stack[:7] * 255).astype(np.uint8),
        train_subject=np.array(["MARIA-7", "MARIA-7", "ANNA-1", "ZOE-3", "ZOE-3", "ZOE-3", "ANNA-1"]),
        train_contrast=np.array(["T1", "T1", "T2", "T1", "T2", "T2", "T2"]),
        test=(stack[7:] * 300).astype(np.float32),
        pictures=np.zeros((2, 3, 40, 40)),
        small=np.zeros((2, 16, 16)),
        negative=np.full((1, 40, 40), -1.0),
        wrong=stack,
        wrong_subject=np.array(["a", "b"]),
    )
    return path


@pytest.fixture(scope="module")
def coils(tmp_path_factory):
    """Maps whose coils have different, correlated noise."""
    path = tmp_path_factory.mktemp("coils") / "maps.npz"
    root = np.random.default_rng(0).normal(size=(4, 4)) + 2 * np.diag([1.0, 2.0, 3.0, 4.0])
    maps = phantoms.coil_maps(np.random.default_rng(5), 4, (40, 40))
    np.savez(
        path, head_4_40=maps, head_4_noise_cov=root @ root.T, plain=maps, flat=maps[0], plain2=maps, plain2_noise_cov=-np.eye(4)
    )
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# ------------------------------------------------------------------ phantoms


def test_phantoms(tmp_path):
    simulate(DRAWN, None, tmp_path)
    assert names(tmp_path) == ["phantom_0000.h5", "phantom_0001.h5"]
    for index, path in enumerate(find_files([tmp_path])):
        scan = read(path)
        clean = phantoms.draw(3, index, 2, 4, (32, 32))
        noise = scan.kspace - clean
        assert scan.fully_sampled
        assert scan.noise_std == pytest.approx(float(rss(ifft2c(clean), 1).quantile(0.99)) / 50, rel=1e-6)
        for part in (noise.real, noise.imag):
            assert part.std().item() == pytest.approx(scan.noise_std, rel=0.05)


def test_the_wanted_ratio_of_signal_to_noise(tmp_path):
    simulate(dataclasses.replace(DRAWN, snr=5.0), None, tmp_path / "5")
    simulate(dataclasses.replace(DRAWN, snr=500.0), None, tmp_path / "500")
    low, high = (read(tmp_path / snr / "phantom_0000.h5").noise_std for snr in ("5", "500"))
    assert low == pytest.approx(100 * high, rel=1e-5)


def test_a_file_depends_on_its_name_and_the_options_alone(tmp_path):
    simulate(DRAWN, None, tmp_path / "two")
    simulate(dataclasses.replace(DRAWN, phantoms=1), None, tmp_path / "one")
    simulate(dataclasses.replace(DRAWN, seed=4), None, tmp_path / "other")
    two, one, other = (read(tmp_path / folder / "phantom_0000.h5").kspace for folder in ("two", "one", "other"))
    assert torch.equal(two, one)
    assert not torch.allclose(two, other, atol=0.1)
    assert not torch.allclose(two, read(tmp_path / "two" / "phantom_0001.h5").kspace, atol=0.1)


def test_goes_on_where_it_stopped(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    simulate(dataclasses.replace(DRAWN, phantoms=1), None, tmp_path)
    first = (tmp_path / "phantom_0000.h5").stat().st_mtime_ns
    with monkeypatch.context() as patch:
        patch.setattr(h5py.AttributeManager, "update", interrupted)  # in the middle of the second file
        with pytest.raises(KeyboardInterrupt):
            simulate(DRAWN, None, tmp_path)
    assert names(tmp_path) == ["phantom_0000.h5"]
    simulate(DRAWN, None, tmp_path)
    assert names(tmp_path) == ["phantom_0000.h5", "phantom_0001.h5"]
    assert (tmp_path / "phantom_0000.h5").stat().st_mtime_ns == first


def test_files_made_otherwise_are_not_taken_for_these(tmp_path):
    simulate(DRAWN, None, tmp_path)
    before = (tmp_path / "phantom_0000.h5").read_bytes()
    with pytest.raises(
        UserError, match=r"phantom_0000.h5: .*made otherwise: seed 3 \(not 9\), snr 50.0 \(not 7\).* another --out"
    ):
        simulate(dataclasses.replace(DRAWN, snr=7, seed=9), None, tmp_path)
    assert (tmp_path / "phantom_0000.h5").read_bytes() == before
    (tmp_path / "phantom_0001.h5").write_bytes(b"")
    with pytest.raises(UserError, match=r"phantom_0001.h5: is there and cannot be read"):
        simulate(DRAWN, None, tmp_path)


# ------------------------------------------------------------------ magnitude images


def test_one_file_a_subject_without_the_subjects_names(npz, tmp_path):
    simulate(SEEN, npz, tmp_path)
    assert names(tmp_path) == ["train_0000.h5", "train_0001.h5", "train_0002.h5"]
    scans = [read(path) for path in find_files([tmp_path])]
    assert [len(scan.kspace) for scan in scans] == [2, 2, 3]  # ANNA, MARIA, ZOE
    assert [scan.contrast for scan in scans] == ["T2", "T1", "T1+T2"]
    for path in tmp_path.iterdir():
        assert not any(name in path.read_bytes() for name in (b"ANNA", b"MARIA", b"ZOE"))


def test_images_without_subjects_are_grouped_by_number(npz, tmp_path):
    config = dataclasses.replace(SEEN, split="test", slices=1)
    simulate(config, npz, tmp_path)
    assert names(tmp_path) == ["test_0000.h5"]
    assert read(tmp_path / "test_0000.h5").contrast == "SEMISYNTHETIC"


def test_a_limit_is_spread_and_keeps_the_numbers(npz):
    volumes = read_volumes(npz, dataclasses.replace(SEEN, limit=2))
    assert sorted(volumes) == ["train_0000", "train_0002"]  # ANNA's first image and ZOE's last: volume by volume
    assert sum(len(stack) for stack, _ in volumes.values()) == 2


def test_seen_images_are_the_given_magnitudes_with_a_phase(npz, coils, tmp_path):
    config = dataclasses.replace(SEEN, size=(48, 40), coil_maps=coils, coil_maps_key="plain", snr=1e6)
    simulate(config, npz, tmp_path)
    given = np.load(npz)["train"][[2, 6]] / 255  # ANNA's
    coil_images = ifft2c(read(tmp_path / "train_0000.h5").kspace)
    assert np.allclose(rss(coil_images, 1), given, atol=1e-4)
    maps = np.load(coils)["plain"]
    stretched = resized(torch.from_numpy(maps), (48, 40))
    x = combine(stretched / rss(stretched, 0), coil_images)[:, 0]
    inside = torch.from_numpy(given) > 0.2
    assert torch.allclose(x.abs()[inside].float(), torch.from_numpy(given).float()[inside], atol=1e-3)
    steps = (x[:, 1:] * x[:, :-1].conj()).angle()[inside[:, 1:] & inside[:, :-1]]
    assert steps.abs().max() < 0.6  # smooth
    assert x.angle()[inside].std() > 0.2  # and there


def test_a_smaller_matrix_keeps_the_field_of_view_and_the_brightness(npz, tmp_path):
    simulate(dataclasses.replace(SEEN, snr=1e6), npz, tmp_path)
    x = rss(ifft2c(read(tmp_path / "train_0001.h5").kspace), 1)
    given = torch.from_numpy(np.load(npz)["train"][:2] / 255)
    small = torch.nn.functional.interpolate(given[None], size=(32, 32), mode="area")[0]
    assert ((x - small).norm() / small.norm()) < 0.25
    assert x.mean().item() == pytest.approx(small.mean().item(), rel=0.1)


def test_maps_are_prewhitened(coils):
    """S' = L^-1 S / |L^-1 S|: the combination conj(S') L^-1 k of real scans has white noise, and the simulated one too."""
    arrays = np.load(coils)
    maps = load_coil_maps(SimulateConfig(coil_maps=coils, coil_maps_key="head_4_40"))
    white = np.einsum("kj,jhw->khw", np.linalg.inv(np.linalg.cholesky(arrays["head_4_noise_cov"])), arrays["head_4_40"])
    assert np.allclose((np.abs(maps) ** 2).sum(0), 1)
    assert np.allclose(maps * np.sqrt((np.abs(white) ** 2).sum(0)), white)
    assert np.allclose(load_coil_maps(SimulateConfig(coil_maps=coils, coil_maps_key="plain")), arrays["plain"])


# ------------------------------------------------------------------ what is refused


def refused(message, config, images, out):
    with pytest.raises(UserError, match=message):
        simulate(config, images, out)
    assert not out.exists()


@pytest.mark.parametrize(
    ("split", "message"),
    [
        ("val", "no array 'val'; found train, train_subject, .* --split"),
        ("", "several arrays; found train"),
        ("pictures", "'pictures' is float64 2 x 3 x 40 x 40; expected real magnitudes"),
        ("train_subject", "expected real magnitudes"),
        ("small", r"2 x 16 x 16, smaller than --size 32 32"),
        ("negative", "negative values"),
        ("wrong", r"'wrong_subject' has the shape \(2,\); expected \(8,\)"),
    ],
)
def test_images_that_cannot_be_used(npz, tmp_path, split, message):
    refused(rf"images.npz: .*{message}", dataclasses.replace(SEEN, split=split), npz, tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "no array ''; found head_4_40, .*--coil-maps-key"),
        ("flat", r"'flat' is complex128 \(40, 40\)"),
        ("head_4_noise_cov", "expected complex maps"),
        ("plain2", r"'plain2_noise_cov' \(4, 4\) is no covariance of 4 coils"),
    ],
)
def test_maps_that_cannot_be_used(npz, coils, tmp_path, key, message):
    config = dataclasses.replace(SEEN, coil_maps=coils, coil_maps_key=key)
    refused(rf"maps.npz: .*{message}", config, npz, tmp_path / "out")


def test_files_that_are_no_npz(npz, tmp_path):
    refused("none.npz: no such file", SEEN, tmp_path / "none.npz", tmp_path / "out")
    (tmp_path / "page.npz").write_text("<html>")
    refused("page.npz: not a readable .npz file", SEEN, tmp_path / "page.npz", tmp_path / "out")
    np.save(tmp_path / "one.npy", np.zeros((2, 40, 40)))
    refused("one.npy: .npy found; expected .npz, .nii", SEEN, tmp_path / "one.npy", tmp_path / "out")
    broken = tmp_path / "broken.npz"
    content = bytearray(npz.read_bytes())
    content[300:400] = bytes(100)  # a flipped byte inside an array
    broken.write_bytes(bytes(content))
    refused("broken.npz: 'train' cannot be read", SEEN, broken, tmp_path / "out")


def test_images_or_phantoms(npz, tmp_path):
    for config, images in ((DRAWN, npz), (SEEN, None)):
        refused(r"either magnitude images .* or --phantoms N, and not both", config, images, tmp_path / "out")


def test_real_images_and_measured_maps(real_data, tmp_path):
    config = SimulateConfig(
        size=(64, 64), split="val", limit=4, coil_maps=real_data / "mri" / "coil_maps.npz", coil_maps_key="pvdamp_8_128"
    )
    simulate(config, real_data / "mri_images" / "ixi_hh_t1_axial_2mm_128.npz", tmp_path)
    scans = [read(path) for path in find_files([tmp_path])]
    assert sum(len(scan.kspace) for scan in scans) == 4
    assert scans[0].kspace.shape[1:] == (8, 64, 64)
    assert scans[0].noise_std > 0


# ------------------------------------------------------------------ coloured noise


@pytest.mark.parametrize("measured", [True, False])
def test_coloured_noise_has_the_covariance_that_is_written(npz, coils, tmp_path, measured):
    from_coils = {"coil_maps": coils, "coil_maps_key": "head_4_40"} if measured else {}
    config = dataclasses.replace(SEEN, noise="coloured", snr=10.0, size=(40, 40), **from_coils)
    simulate(config, npz, tmp_path / "a")
    simulate(dataclasses.replace(config, snr=1e7), npz, tmp_path / "clean")
    noisy, clean = (read(tmp_path / folder / "train_0002.h5") for folder in ("a", "clean"))
    samples = (noisy.kspace - clean.kspace).movedim(1, 0).flatten(1).to(torch.complex128)
    found = samples @ samples.mH / samples.shape[1]
    scale = noisy.noise_covariance.diagonal().real.mean()
    assert (found - noisy.noise_covariance).abs().max() < 0.1 * scale
    off = noisy.noise_covariance - torch.diag(noisy.noise_covariance.diagonal())
    assert off.abs().max() > 0.05 * scale
    assert noisy.noise_std == pytest.approx(float((scale / 2).sqrt()), rel=1e-5)
    if measured:
        root = np.random.default_rng(0).normal(size=(4, 4)) + 2 * np.diag([1.0, 2.0, 3.0, 4.0])
        shape = torch.from_numpy(root @ root.T)
        assert torch.allclose(noisy.noise_covariance.real / scale, shape / shape.diagonal().mean(), atol=1e-6)


def test_coils_that_do_not_fit(npz, coils, tmp_path):
    asked = dataclasses.replace(SEEN, coil_maps=coils, coil_maps_key="plain2", noise="coloured")
    refused("not positive definite", asked, npz, tmp_path / "a")
    refused("phantoms have coils of their own", dataclasses.replace(DRAWN, coil_maps=coils), None, tmp_path / "b")
    five = tmp_path / "five.npz"
    np.savez(five, sh=phantoms.coil_maps(np.random.default_rng(0), 5, (40, 40)), sh_noise_cov=np.eye(4))
    refused(r"expected \(5, 5\)", dataclasses.replace(asked, coil_maps=five, coil_maps_key="sh"), npz, tmp_path / "c")


def test_a_file_that_was_made_by_something_else(npz, tmp_path):
    simulate(SEEN, npz, tmp_path)
    with h5py.File(tmp_path / "train_0000.h5", "r+") as file:
        file.attrs["simulated"] = "hello"
    with pytest.raises(UserError, match="is there and was made otherwise"):
        simulate(SEEN, npz, tmp_path)


# ------------------------------------------------------------------ other kinds of images


def test_nifti_volumes(tmp_path):
    nibabel = pytest.importorskip("nibabel")
    images = np.stack([np.arange(36 * 40).reshape(36, 40) * (s + 1) for s in range(3)]).astype(np.float32)  # (slices, h, w)
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    (tmp_path / "in").mkdir()
    nibabel.save(nibabel.Nifti1Image(images[:, ::-1].transpose(2, 1, 0), affine), tmp_path / "in" / "ANNA.nii.gz")
    volumes = read_volumes(tmp_path / "in", dataclasses.replace(SEEN, size=(32, 32)))
    assert list(volumes) == ["volume_0000"]
    assert np.array_equal(volumes["volume_0000"][0], images)
    flipped = np.diag([-1.0, 1.0, 2.0, 1.0])  # the same head, stored from right to left
    nibabel.save(nibabel.Nifti1Image(images[:, ::-1, ::-1].transpose(2, 1, 0), flipped), tmp_path / "in" / "ANNA.nii.gz")
    assert np.array_equal(read_volumes(tmp_path / "in", SEEN)["volume_0000"][0], images)
    nibabel.save(nibabel.Nifti1Image(np.zeros((40, 40, 3, 2)), affine), tmp_path / "four.nii")
    with pytest.raises(UserError, match="expected one 3-D volume"):
        read_volumes(tmp_path / "four.nii", SEEN)
    (tmp_path / "torn.nii.gz").write_bytes(b"x")
    with pytest.raises(UserError, match=r"torn\.nii\.gz: nibabel cannot read it"):
        read_volumes(tmp_path / "torn.nii.gz", SEEN)


def save_dicom(path, pixels, place, series):
    pydicom = pytest.importorskip("pydicom")
    from pydicom.dataset import FileDataset, FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.4"
    meta.MediaStorageSOPInstanceUID = generate_uid()
    data = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    data.PatientName, data.PatientID = "ANNA", "secret"
    data.SeriesInstanceUID = series
    data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, place], [1, 0, 0, 0, 1, 0]
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.RescaleSlope, data.RescaleIntercept = 2, 1
    data.PixelData = pixels.astype(np.uint16).tobytes()
    data.save_as(path)
    return pydicom


def test_dicom_series_are_ordered_by_place_and_carry_no_names(tmp_path):
    images = [np.full((40, 40), value) for value in (1, 2, 3)]
    (tmp_path / "in" / "deep").mkdir(parents=True)
    for number, (place, pixels) in enumerate(zip((5.0, -3.0, 1.0), images, strict=True)):
        save_dicom(tmp_path / "in" / "deep" / f"{number}.dcm", pixels, place, "1.2.3")
    save_dicom(tmp_path / "in" / "other.dcm", images[0], 0.0, "1.2.4")
    volumes = read_volumes(tmp_path / "in", SEEN)
    assert {name: len(stack) for name, (stack, _) in volumes.items()} == {"series_0000": 3, "series_0001": 1}
    assert volumes["series_0000"][0][:, 0, 0].tolist() == [2 * 2 + 1, 2 * 3 + 1, 2 * 1 + 1]
    simulate(SEEN, tmp_path / "in", tmp_path / "out")
    assert names(tmp_path / "out") == ["series_0000.h5", "series_0001.h5"]
    assert not any(word in path.read_bytes() for path in (tmp_path / "out").iterdir() for word in (b"ANNA", b"secret"))
    (tmp_path / "x.dcm").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"x\.dcm: pydicom cannot read it"):
        read_volumes(tmp_path / "x.dcm", SEEN)


def test_pictures(tmp_path):
    from PIL import Image

    (tmp_path / "in").mkdir()
    for number in range(3):
        Image.fromarray(np.full((40, 36), 50 * number, np.uint8)).save(tmp_path / "in" / f"{number}.png")
    volumes = read_volumes(tmp_path / "in", dataclasses.replace(SEEN, slices=2))
    assert [(name, len(stack)) for name, (stack, _) in volumes.items()] == [("image_0000", 2), ("image_0001", 1)]
    assert volumes["image_0001"][0][0, 0, 0] == 100
    Image.fromarray(np.zeros((20, 20), np.uint8)).save(tmp_path / "in" / "9.png")
    with pytest.raises(UserError, match="images of several sizes"):
        read_volumes(tmp_path / "in", SEEN)
    with pytest.raises(UserError, match="no such file or folder"):
        read_volumes(tmp_path / "none", SEEN)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="nothing found; expected"):
        read_volumes(tmp_path / "empty", SEEN)
