"""Formats other than fastMRI's: ISMRMRD and BART, single coils, and layouts that are recognised and refused."""

import re

import h5py
import numpy as np
import pytest
import torch
from commands import run_command

from rsdmri.errors import UserError
from rsdmri.mri import phantoms
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.mri.bart import read_cfl, write_cfl, write_maps
from rsdmri.mri.readers import find_files, glance, read

SLICES, COILS, HEIGHT, WIDTH = 2, 3, 16, 12


def noise(*shape):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))


def refused(path, *parts, **options):
    with pytest.raises(UserError) as error:
        read(path, **options)
    text = str(error.value)
    assert text.startswith(f"{path}")
    for part in parts:
        assert re.search(part, text), (part, text)


# ------------------------------------------------------------------ BART


def save_cfl(path, kspace):
    """(slices, coils, H, W) in BART's dimensions."""
    data = np.zeros((*kspace.shape[2:], 1, kspace.shape[1], *[1] * 9, kspace.shape[0]), np.complex64)
    data[..., 0, :, 0, 0, 0, 0, 0, 0, 0, 0, 0, :] = kspace.numpy().transpose(2, 3, 1, 0)
    write_cfl(path, data)
    return path.with_suffix(".cfl")


def test_bart_files_are_read(tmp_path):
    k = noise(SLICES, COILS, HEIGHT, WIDTH)
    mask = torch.arange(WIDTH) % 3 == 0
    scan = read(save_cfl(tmp_path / "k", torch.where(mask, k, 0)))
    assert torch.equal(scan.kspace, torch.where(mask, k, 0))
    assert torch.equal(scan.mask, mask)
    assert (scan.format, scan.name) == ("BART", "k")
    assert find_files([tmp_path]) == find_files([tmp_path / "k.hdr"]) == [tmp_path / "k.cfl"]


def test_bart_files_are_column_major_little_endian_and_described_in_words(tmp_path):
    write_cfl(tmp_path / "a", np.arange(6).reshape(2, 3) * (1 + 0.5j))
    assert np.fromfile(tmp_path / "a.cfl", "<f4").reshape(-1, 2)[:, 0].tolist() == [0, 3, 1, 4, 2, 5]
    assert (tmp_path / "a.hdr").read_text().splitlines()[:2] == ["# Dimensions", "2 3 " + "1 " * 14]
    assert read_cfl(tmp_path / "a").shape == (2, 3, *[1] * 14)


def test_maps_for_bart(tmp_path):
    maps = noise(SLICES, 2, COILS, HEIGHT, WIDTH).numpy()
    write_maps(tmp_path / "m", maps)
    found = read_cfl(tmp_path / "m.cfl")
    assert found.shape == (HEIGHT, WIDTH, 1, COILS, 2, *[1] * 8, SLICES, 1, 1)
    assert np.array_equal(found[:, :, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0], maps[1, 1, 1])
    write_maps(tmp_path / "one", maps[:, 0])
    assert read_cfl(tmp_path / "one.cfl").shape[4] == 1


def test_bart_files_that_cannot_be_used(tmp_path):
    path = save_cfl(tmp_path / "k", noise(SLICES, COILS, HEIGHT, WIDTH))
    path.write_bytes(path.read_bytes()[:-8])
    refused(path, "bytes found", "Copy both again")
    (tmp_path / "k.hdr").write_text("nothing\n")
    refused(tmp_path / "k.hdr", "no line of numbers")
    (tmp_path / "k.hdr").unlink()
    refused(path, "come in pairs", "k.hdr is missing")
    write_cfl(tmp_path / "volume", np.ones((8, 8, 4, 3), np.complex64))
    refused(tmp_path / "volume.cfl", "dimensions 2 of 8 x 8 x 4 x 3", "transpose 2 13")
    write_cfl(tmp_path / "one", np.ones((8, 8), np.complex64))
    refused(tmp_path / "one.cfl", "one coil found")


# ------------------------------------------------------------------ ISMRMRD


def save_mrd(path, kspace, columns=None, *, change=None, repeat=1, noise_lines=0, slices=True, noise=0.0):
    """An ISMRMRD file made by the library of the format itself."""
    ismrmrd = pytest.importorskip("ismrmrd", reason="the extra [ismrmrd] is not installed")
    count, coils, height, width = kspace.shape
    columns = range(width) if columns is None else columns
    dataset = ismrmrd.Dataset(str(path), "dataset", create_if_needed=True)
    dataset.write_xml_header(
        '<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
        f"<encodedSpace><matrixSize><x>{height}</x><y>{width}</y><z>1</z></matrixSize></encodedSpace>"
        f"<reconSpace><matrixSize><x>{height // 2}</x><y>{width}</y><z>1</z></matrixSize></reconSpace>"
        "<encodingLimits><kspace_encoding_step_1><minimum>0</minimum>"
        f"<maximum>{width - 1}</maximum><center>{width // 2}</center></kspace_encoding_step_1></encodingLimits>"
        "</encoding></ismrmrdHeader>".encode()
    )
    generator = np.random.default_rng(0)
    for _ in range(noise_lines):
        acquisition = ismrmrd.Acquisition.from_array((generator.normal(size=(coils, 256, 2)) @ [2, 2j]).astype(np.complex64))
        acquisition.set_flag(ismrmrd.ACQ_IS_NOISE_MEASUREMENT)
        acquisition.sample_time_us = 5.0
        dataset.append_acquisition(acquisition)
    for _ in range(repeat):
        for number in range(count):
            for column in columns:
                line = kspace[number, :, :, column].numpy()
                line = line + noise * (generator.normal(size=(*line.shape, 2)) @ [1, 1j])
                acquisition = ismrmrd.Acquisition.from_array(line.astype(np.complex64))
                acquisition.center_sample = height // 2
                acquisition.sample_time_us = 5.0
                acquisition.idx.kspace_encode_step_1 = column
                acquisition.idx.slice = number if slices else 0
                if change is not None:
                    change(acquisition, number, column)
                dataset.append_acquisition(acquisition)
    dataset.close()
    return path


def test_ismrmrd_files_are_read(tmp_path):
    k = noise(SLICES, COILS, HEIGHT, WIDTH)
    scan = read(save_mrd(tmp_path / "full.mrd", k, repeat=2))
    assert torch.allclose(scan.kspace, k)
    assert (scan.format, scan.fully_sampled, scan.recon_size) == ("ISMRMRD", True, (HEIGHT // 2, WIDTH))
    columns = [0, 4, 5, 6, 7, 11]
    scan = read(save_mrd(tmp_path / "some.h5", k, columns))
    assert scan.mask.nonzero().flatten().tolist() == columns
    assert torch.allclose(scan.kspace[..., columns], k[..., columns])


def test_noise_scans_give_the_covariance(tmp_path):
    scan = read(save_mrd(tmp_path / "x.mrd", noise(1, COILS, HEIGHT, WIDTH), noise_lines=40))
    assert torch.allclose(scan.noise_covariance, 8 * torch.eye(COILS, dtype=torch.complex128), atol=0.5)


def test_averages_have_less_noise(tmp_path):
    """The covariance is that of k-space as it is read."""
    k = noise(1, COILS, HEIGHT, WIDTH)
    scan = read(save_mrd(tmp_path / "x.mrd", k, noise_lines=40, repeat=4, noise=2.0))
    left = torch.view_as_real(scan.kspace - k).square().sum(-1).mean()
    assert float(scan.noise_covariance.diagonal().real.mean()) == pytest.approx(float(left), rel=0.2)


def test_calibration_lines_fill_the_gaps(tmp_path):
    """Of an accelerated scan with integrated ACS: lines between the image lines, flagged as calibration alone."""
    k = noise(1, COILS, HEIGHT, WIDTH)

    def flagged(acquisition, number, column):
        import ismrmrd

        if column in (5, 7):
            acquisition.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        if column == 6:
            acquisition.set_flag(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING)

    scan = read(save_mrd(tmp_path / "x.mrd", k, [0, 2, 4, 5, 6, 7, 8, 10], change=flagged))
    assert scan.mask.nonzero().flatten().tolist() == [0, 2, 4, 5, 6, 7, 8, 10]
    assert torch.allclose(scan.kspace[..., scan.mask], k[..., scan.mask])

    def stabilisation(acquisition, number, column):
        if column == 3:
            acquisition.flags = 1 << 30  # bit 31
            acquisition.idx.kspace_encode_step_1 = 6

    scan = read(save_mrd(tmp_path / "y.mrd", k, change=stabilisation))
    assert torch.allclose(scan.kspace[..., 6], k[..., 6])
    assert not scan.mask[3]


def test_other_ways_of_acquiring(tmp_path):
    k = noise(1, COILS, HEIGHT, WIDTH)

    def partial_echo(acquisition, number, column):
        """The first four samples of the readout are not measured."""
        line = acquisition.data[:, 4:].copy()
        acquisition.resize(line.shape[1], line.shape[0])
        acquisition.data[:] = line
        acquisition.center_sample = HEIGHT // 2 - 4

    scan = read(save_mrd(tmp_path / "echo.mrd", k, change=partial_echo))
    assert torch.allclose(scan.kspace[..., 4:, :], k[..., 4:, :])
    assert not scan.kspace[..., :4, :].any()

    def reverse(acquisition, number, column):
        import ismrmrd

        if column % 2:
            acquisition.data[:] = acquisition.data[:, ::-1].copy()
            acquisition.set_flag(ismrmrd.ACQ_IS_REVERSE)

    assert torch.allclose(read(save_mrd(tmp_path / "reverse.mrd", k, change=reverse)).kspace, k)

    def second(acquisition, number, column):
        acquisition.idx.repetition = number

    scan = read(save_mrd(tmp_path / "several.mrd", noise(2, COILS, HEIGHT, WIDTH), change=second, slices=False))
    assert scan.notes == ("the first of 2 repetitions is taken",)
    assert torch.allclose(scan.kspace[0], noise(2, COILS, HEIGHT, WIDTH)[0])


def test_ismrmrd_files_that_cannot_be_used(tmp_path):
    k = noise(1, COILS, HEIGHT, WIDTH)

    def volume(acquisition, number, column):
        acquisition.idx.kspace_encode_step_2 = column

    def outside(acquisition, number, column):
        acquisition.idx.kspace_encode_step_1 = column + 5

    refused(save_mrd(tmp_path / "volume.mrd", k, change=volume), "3-D scan")
    refused(save_mrd(tmp_path / "outside.mrd", k, change=outside), "outside of the matrix 16 x 12")
    path = tmp_path / "torn.mrd"
    with h5py.File(path, "w") as file:
        file["dataset/xml"], file["dataset/data"] = "x", [1]
    refused(path, "not a complete ISMRMRD file")


# ------------------------------------------------------------------ single coils, and what is refused


def save(path, **contents):
    with h5py.File(path, "w") as file:
        for name, value in contents.items():
            file[name] = value
    return path


def test_single_coil_files(tmp_path):
    k = phantoms.draw(0, 0, 2, 1, (16, 16))[:, 0]
    path = save(tmp_path / "one.h5", kspace=k.numpy())
    refused(path, "single-coil file", "With --singlecoil")
    scan = read(path, singlecoil=True)
    assert torch.equal(scan.kspace, k[:, None])
    refused(save(tmp_path / "four.h5", kspace=np.ones((1, 2, 8, 8), np.complex64)), "without --singlecoil", singlecoil=True)
    many = save_cfl(tmp_path / "many", noise(SLICES, COILS, HEIGHT, WIDTH))
    refused(many, "3 coils found; --singlecoil is for files of one coil", singlecoil=True)
    one = save_cfl(tmp_path / "one", noise(SLICES, 1, HEIGHT, WIDTH))
    refused(one, "one coil found", "--singlecoil")
    assert read(one, singlecoil=True).kspace.shape == (SLICES, 1, HEIGHT, WIDTH)


def test_the_path_of_single_coil_files(tmp_path, capsys):
    (tmp_path / "k").mkdir()
    for number in range(4):
        save(tmp_path / "k" / f"{number}.h5", kspace=phantoms.draw(0, number, 2, 1, (16, 16))[:, 0].numpy())
    where = ["--data.kspace", tmp_path / "k", "--data.maps", tmp_path / "maps", "--runs", tmp_path / "runs", "--name", "x"]
    assert run_command(APPLICATION, "espirit", tmp_path / "k", "--out", tmp_path / "maps", "--singlecoil", "--workers", "1") == 0
    assert run_command(APPLICATION, "prepare", *where, "--data.singlecoil") == 0
    with h5py.File(tmp_path / "runs/x/prepare/observations.h5") as file:
        assert file["coils_1_16x16/kspace"].shape == (8, 1, 16, 16)
        assert (file["coils_1_16x16/maps"][()] == 1).all()
        assert file.attrs["maps"] == "ones"
    assert run_command(APPLICATION, "espirit", tmp_path / "k", "--out", tmp_path / "other", "--workers", "1") == 1
    assert "--singlecoil" in capsys.readouterr().err


def test_skm_tea_is_recognised(tmp_path):
    path = save(tmp_path / "x.h5", kspace=np.ones((4, 4, 4, 2, 3), np.complex64), maps=[1], target=[1], masks=[1])
    refused(path, "SKM-TEA", "filled in")


def test_radial_scans_are_recognised(tmp_path):
    """Every line of k-space runs through its centre."""
    x = np.arange(256) - 128
    line = np.exp(-np.abs(x) / 4) + 0.002 * np.random.default_rng(0).normal(size=(1, 4, 96, 256))
    for data in (line, line.swapaxes(-1, -2)):
        refused(save(tmp_path / "x.h5", kspace=data.astype(np.complex64)), "looks radial", "breast")


def test_a_glance_reads_one_slice_with_signal(tmp_path):
    k = noise(5, COILS, HEIGHT, WIDTH)
    scan = glance(save(tmp_path / "x.h5", kspace=k.numpy()))
    assert torch.equal(scan.kspace, k[[2]])
    assert scan.slices == 5
    k[1:4] = 0
    assert torch.equal(glance(save(tmp_path / "y.h5", kspace=k.numpy())).kspace, k[[0]])


def test_a_centre_that_is_off_is_moved_to_the_middle(tmp_path):
    """As in M4Raw: then the ACS of masks, of maps and of the scale are the same lines."""
    k = phantoms.draw(0, 0, 2, 4, (32, 64))
    mask = torch.zeros(64, dtype=torch.bool)
    mask[24:60] = True
    off = k.roll((3, 8), dims=(-2, -1))
    scan = read(save(tmp_path / "x.h5", kspace=torch.where(mask, off, 0).numpy(), mask=mask.numpy()))
    assert scan.notes == ("the centre of k-space lay +3, +8 samples beside the middle and was moved there",)
    assert scan.mask.nonzero().flatten().tolist() == list(range(16, 52))
    assert torch.equal(scan.kspace, torch.where(scan.mask, k, 0))
    near = read(save(tmp_path / "y.h5", kspace=k.roll(2, dims=-1).numpy()))
    assert near.notes == ()


def test_a_mask_that_contradicts_the_samples(tmp_path):
    mask = torch.arange(WIDTH) % 3 == 0
    k = torch.where(mask, noise(SLICES, COILS, HEIGHT, WIDTH), 0)
    scan = read(save(tmp_path / "x.h5", kspace=k.numpy(), mask=np.ones(WIDTH)))
    assert torch.equal(scan.mask, mask)
    assert scan.notes == ("the mask has 8 columns that hold no sample: they count as missing",)
    assert not scan.fully_sampled
