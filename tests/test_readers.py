"""Reading k-space: what fastMRI files hold, and a message for everything that is wrong with one."""

import re

import h5py
import numpy as np
import pytest
import torch

from rsdmri.errors import UserError
from rsdmri.mri.fastmri_file import write_fastmri
from rsdmri.mri.fourier import crop, ifft2c, rss
from rsdmri.mri.readers import find_files, read

SHAPE = (2, 3, 20, 12)


def noise(shape=SHAPE):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def save(folder, name="scan.h5", **contents):
    """An HDF5 file of these datasets; names that begin with "at_" are attributes."""
    path = folder / name
    with h5py.File(path, "w") as file:
        for key, value in contents.items():
            if key.startswith("at_"):
                file.attrs[key[3:]] = value
            else:
                file[key] = np.asarray(value) if not isinstance(value, str | bytes) else value
    return path


def header(encoded=(20, 12), recon=(10, 8), center=6, maximum=11, namespace=' xmlns="http://www.ismrm.org/ISMRMRD"'):
    def space(name, size):
        return f"<{name}><matrixSize><x>{size[0]}</x><y>{size[1]}</y></matrixSize></{name}>"

    step = f"<kspace_encoding_step_1><minimum>0</minimum><maximum>{maximum}</maximum><center>{center}</center></kspace_encoding_step_1>"
    return (
        f'<?xml version="1.0" encoding="utf-8"?><ismrmrdHeader{namespace}><encoding>{space("encodedSpace", encoded)}'
        f"{space('reconSpace', recon)}<encodingLimits>{step}</encodingLimits></encoding></ismrmrdHeader>"
    ).encode()


# ------------------------------------------------------------------ what is read


def test_a_bare_file(tmp_path):
    k = noise()
    scan = read(save(tmp_path, "a.b.h5", kspace=k))
    assert torch.equal(scan.kspace, k)
    assert (scan.name, scan.contrast, scan.recon_size, scan.noise_std, scan.notes) == ("a.b", "", (20, 12), None, ())
    assert scan.mask.tolist() == [True] * 12
    assert scan.fully_sampled


@pytest.mark.parametrize("namespace", ['xmlns="http://www.ismrm.org/ISMRMRD"', ""])
def test_header_and_attributes(tmp_path, namespace):
    text = header(center=4, maximum=7, namespace=f" {namespace}")
    scan = read(save(tmp_path, kspace=noise(), ismrmrd_header=text, at_acquisition="AXT2", at_patient_id="secret"))
    assert scan.recon_size == (10, 8)
    assert scan.contrast == "AXT2"
    # padding_left = 12 // 2 - 4, padding_right = padding_left + 7 + 1
    assert scan.encoded.tolist() == scan.mask.tolist() == [False] * 2 + [True] * 8 + [False] * 2
    assert not scan.kspace[..., ~scan.encoded].any()
    assert scan.fully_sampled
    assert "secret" not in repr(scan)


@pytest.mark.parametrize(
    "text", [b"no xml", b"<a/>", b"", header(encoded=(20, 99)), header(recon=(0, 0)), header(recon=("²", "²"))]
)
def test_a_header_that_says_nothing_is_tolerated(tmp_path, text):
    scan = read(save(tmp_path, kspace=noise(), ismrmrd_header=text))
    assert scan.fully_sampled
    assert scan.encoded.all()


def test_target_size_wins_and_a_narrow_scan_has_a_narrow_image(tmp_path):
    assert read(save(tmp_path, kspace=noise(), reconstruction_rss=np.zeros((2, 6, 6)), ismrmrd_header=header())).recon_size == (
        6,
        6,
    )
    # fastMRI's "FLAIR 203": the image is wider than the matrix
    assert read(save(tmp_path, kspace=noise(), ismrmrd_header=header(recon=(14, 14)))).recon_size == (12, 12)


@pytest.mark.parametrize("kind", [bool, np.uint8, np.float32])
def test_mask_of_the_file(tmp_path, kind):
    mask = np.arange(12) % 3 == 0
    k = noise()
    scan = read(save(tmp_path, kspace=k, mask=mask.astype(kind), ismrmrd_header=header(center=4, maximum=7)))
    expected = torch.from_numpy(mask) & scan.encoded
    assert torch.equal(scan.mask, expected)
    assert torch.equal(scan.kspace, torch.where(expected, k, 0))
    assert not scan.fully_sampled


def test_mask_from_zeros(tmp_path):
    mask = torch.arange(12) % 3 == 0
    k = torch.where(mask, noise(), -0.0)  # fastMRI's first test set has negative zeros
    scan = read(save(tmp_path, kspace=k))
    assert torch.equal(scan.mask, mask)
    assert not torch.signbit(scan.kspace[..., ~mask].real).any()
    assert not scan.fully_sampled


def test_zero_filling_without_a_header_is_no_undersampling(tmp_path):
    mask = torch.zeros(12, dtype=torch.bool)
    mask[2:10] = True
    assert read(save(tmp_path, kspace=torch.where(mask, noise(), 0))).fully_sampled
    mask[2:6] = False  # partial Fourier
    assert not read(save(tmp_path, kspace=torch.where(mask, noise(), 0))).fully_sampled


def test_patterns_in_two_directions(tmp_path):
    points = torch.rand(20, 12, generator=torch.Generator().manual_seed(1)) < 0.5
    k = torch.where(points, noise(), 0)
    for extra in ({}, {"sampling_mask": points.numpy().astype(np.uint8)}):
        scan = read(save(tmp_path, kspace=k, **extra))
        assert torch.equal(scan.mask, points)
        assert not scan.fully_sampled


def test_swapped_axes_are_turned_back(tmp_path):
    k = noise()
    scan = read(save(tmp_path, kspace=k.swapaxes(-1, -2), reconstruction_rss=np.zeros((2, 8, 10)), ismrmrd_header=header()))
    assert torch.equal(scan.kspace, k)
    assert scan.recon_size == (10, 8)
    assert scan.notes == ("readout and phase encoding were swapped",)
    mask = np.arange(12) % 2 == 0
    zeroed = np.where(mask, k.numpy(), 0)
    scan = read(save(tmp_path, kspace=zeroed.swapaxes(-1, -2), mask=mask, ismrmrd_header=header()))
    assert scan.mask.tolist() == mask.tolist()
    assert np.array_equal(scan.kspace, zeroed)


def test_other_ways_to_write_complex_numbers(tmp_path):
    k = noise()
    pairs = torch.view_as_real(k).numpy()
    named = np.empty(SHAPE, [("real", "f4"), ("imag", "f4")])
    named["real"], named["imag"] = pairs[..., 0], pairs[..., 1]
    for stored in (pairs, pairs.astype(np.float64), named, k.to(torch.complex128)):
        scan = read(save(tmp_path, kspace=stored))
        assert scan.kspace.dtype == torch.complex64
        assert torch.equal(scan.kspace, k)


def test_noise_std_is_an_attribute_or_a_dataset(tmp_path):
    assert read(save(tmp_path, kspace=noise(), at_noise_std=0.25)).noise_std == 0.25
    assert read(save(tmp_path, kspace=noise(), noise_std=[0.5])).noise_std == 0.5


# ------------------------------------------------------------------ what is refused


def refused(path, *parts):
    with pytest.raises(UserError) as error:
        read(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    for part in parts:
        assert re.search(part, text), (part, text)


BYTES = {
    "empty": (b"", "an empty file"),
    "page": (b"\n<!DOCTYPE html><html>403", "an HTML page"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "Git LFS pointer"),
    "other": (b"PK\x03\x04 a zip", r"begins with b'PK"),
}


@pytest.mark.parametrize("kind", BYTES)
def test_not_hdf5(tmp_path, kind):
    content, message = BYTES[kind]
    path = tmp_path / "scan.h5"
    path.write_bytes(content)
    refused(path, "not HDF5", message, "Expected", "Download or convert it again")


def test_truncated(tmp_path):
    path = save(tmp_path, kspace=noise())
    path.write_bytes(path.read_bytes()[:-2000])
    refused(path, "damaged or truncated file", "Download or copy it again")


def test_no_such_file(tmp_path):
    refused(tmp_path / "none.h5", "cannot be read")


SHAPES = {
    (2, 20, 12): r"3 axes \(2 x 20 x 12\): a single-coil file.* With --singlecoil",
    (2, 2, 3, 20, 12): "5 axes .* prostate files: .* Combine them",
    (20, 12): r"2 axes \(20 x 12\)",
    (1, 2, 2, 3, 20, 12): "6 axes",
    (0, 3, 20, 12): r"4 axes \(0 x 3 x 20 x 12\): it is empty",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_axes(tmp_path, shape):
    refused(save(tmp_path, kspace=noise(shape)), SHAPES[shape], r"\(slices, coils, H, W\)")


def test_single_coil_in_pairs_of_numbers(tmp_path):
    refused(save(tmp_path, kspace=np.ones((2, 20, 12, 2))), "3 axes .* single-coil")


def test_no_kspace(tmp_path):
    refused(save(tmp_path, reconstruction_rss=[1], mask=[1]), "no dataset 'kspace'; found mask, reconstruction_rss")
    refused(save(tmp_path), "found nothing")
    refused(save(tmp_path, **{"kspace/data": [1]}), "no dataset 'kspace'; found kspace")


def test_not_complex(tmp_path):
    refused(save(tmp_path, kspace=np.ones(SHAPE)), "float64, not complex")


@pytest.mark.parametrize("value", [np.nan, np.inf, complex(0, -np.inf)])
def test_not_finite(tmp_path, value):
    k = noise().numpy()
    k[1, 2, 3, 4] = value
    refused(save(tmp_path, kspace=k), "NaN or infinity in slice 1")


@pytest.mark.parametrize("name", ["mask", "sampling_mask", "noise_std"])
def test_what_is_no_array_of_numbers_is_named(tmp_path, name):
    path = save(tmp_path, kspace=noise())
    with h5py.File(path, "r+") as file:
        file.create_group(name)["inside"] = [1.0]
    refused(path, f"'{name}' is a group of 1; expected an array of numbers")
    refused(save(tmp_path, kspace=noise(), **{name: [b"one", b"two"]}), f"'{name}' is .*; expected numbers")


def test_noise_std_that_is_text(tmp_path):
    refused(save(tmp_path, kspace=noise(), at_noise_std="loud"), "'noise_std' is .*; expected numbers")


def test_a_target_that_is_none_is_passed_over(tmp_path):
    path = save(tmp_path, kspace=noise(), reconstruction_rss=3.0)
    assert read(path).recon_size == (20, 12)


def test_mask_of_another_length(tmp_path):
    refused(save(tmp_path, kspace=noise(), mask=np.ones(11)), "'mask' has the shape 11; expected 12")
    refused(save(tmp_path, kspace=noise(), sampling_mask=np.ones((12, 20))), "'sampling_mask' has the shape 12 x 20")


def test_nothing_measured(tmp_path):
    refused(save(tmp_path, kspace=np.zeros(SHAPE, np.complex64)), "nothing was measured")
    refused(save(tmp_path, kspace=noise(), mask=np.zeros(12)), "nothing was measured")


@pytest.mark.parametrize("value", [-1.0, np.nan, [1.0, 2.0]])
def test_noise_that_is_none(tmp_path, value):
    refused(save(tmp_path, kspace=noise(), at_noise_std=value), "'noise_std' is")


# ------------------------------------------------------------------ files and folders


def test_find_files(tmp_path):
    for name in ("b.h5", "a.h5", "a.maps.h5", ".hidden.h5", "note.txt"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    assert find_files([tmp_path, tmp_path / "b.h5"]) == [tmp_path / "a.h5", tmp_path / "b.h5"]
    assert find_files([tmp_path / "note.txt"]) == [tmp_path / "note.txt"]
    for wrong, message in (
        ([tmp_path / "none.h5"], "none.h5: no such file or folder"),
        ([tmp_path / "empty"], "empty: no k-space in this folder"),
        ([tmp_path / "a.maps.h5"], "a.maps.h5.*: name files"),
        ([], "nothing"),
    ):
        with pytest.raises(UserError, match=message):
            find_files(wrong)


# ------------------------------------------------------------------ writing


def test_written_files_are_read_back(tmp_path):
    k = noise()
    path = tmp_path / "new" / "scan.h5"
    write_fastmri(path, k, acquisition="AXT1", noise_std=0.1, recon_size=(10, 8), attributes={"note": "x"})
    scan = read(path)
    assert torch.equal(scan.kspace, k)
    assert (scan.contrast, scan.noise_std, scan.recon_size, scan.fully_sampled) == ("AXT1", 0.1, (10, 8), True)
    with h5py.File(path) as file:
        target = file["reconstruction_rss"][()]
        assert np.allclose(target, rss(crop(ifft2c(k), (10, 8)), 1), atol=1e-6)
        assert file.attrs["max"] == target.max()
        assert file.attrs["norm"] == pytest.approx(np.linalg.norm(target))
        assert file.attrs["patient_id"] == ""
        assert file.attrs["note"] == "x"
        assert isinstance(file["ismrmrd_header"][()], bytes)


@pytest.mark.parametrize("shape", [(12,), (20, 12)])
def test_written_masks_are_read_back(tmp_path, shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.5
    write_fastmri(tmp_path / "scan.h5", noise(), acquisition="", noise_std=0.0, mask=mask)
    scan = read(tmp_path / "scan.h5")
    assert torch.equal(scan.mask, mask)
    assert torch.equal(scan.kspace, torch.where(mask, noise(), 0))
    with h5py.File(tmp_path / "scan.h5") as file:
        assert "reconstruction_rss" not in file  # a target would be no fully sampled one


def test_nothing_is_left_of_a_write_that_fails(tmp_path):
    with pytest.raises(TypeError):
        write_fastmri(tmp_path / "scan.h5", noise(), acquisition="", noise_std=0.1, attributes={"bad": object()})
    assert list(tmp_path.iterdir()) == []


# ------------------------------------------------------------------ real scans

SCANS = {
    "autoespirit_brain_t1_8ch_clean": ((1, 8, 230, 180), True),
    "espirit_brain_alias_8ch": ((1, 8, 320, 168), True),
    "loraks_mprage_4ch": ((1, 4, 256, 256), True),
    "loraks_t2_singlecoil": ((1, 1, 256, 340), True),
    "pvdamp_brain_t2_8ch": ((1, 8, 256, 256), True),
    "sigpy_brain_8ch_poisson_r8": ((1, 8, 230, 180), False),
}


@pytest.mark.parametrize("name", SCANS)
def test_real_scans(real_data, name):
    path = real_data / "mri" / f"{name}.h5"
    scan = read(path)
    assert (tuple(scan.kspace.shape), scan.fully_sampled) == SCANS[name]
    with h5py.File(path) as file:
        if not scan.fully_sampled:
            assert np.array_equal(scan.mask.numpy(), file["sampling_mask"][()].astype(bool))
        else:
            target = file["reconstruction_rss"][()]
            assert np.allclose(rss(ifft2c(scan.kspace), 1), target, atol=1e-4 * target.max())
