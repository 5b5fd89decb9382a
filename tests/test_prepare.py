"""What becomes of scans that are not as the demo's: broken, padded, undersampled, of several sizes and coils."""

import h5py
import numpy as np
import pytest
import torch
from commands import run_command

from rsdmri.mri import phantoms
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.mri.domain import MRI
from rsdmri.mri.readers import write_fastmri
from rsdmri.settings import load_experiment
from rsdmri.tensors import make_generator


def run(*arguments):
    return run_command(APPLICATION, *arguments)


def scan(folder, name, coils=4, size=(16, 16), mask=None, noise_std=0.01):
    kspace = phantoms.draw(0, len(name), 2, coils, size)
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.h5"
    write_fastmri(path, kspace, acquisition="AXT2", noise_std=noise_std)
    if mask is not None:
        with h5py.File(path, "r+") as file:
            file["kspace"][...] = np.where(mask, file["kspace"][()], 0)
            file["mask"] = mask
    return path


def prepare(tmp_path, *extra, espirit=True):
    if espirit:
        code = run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "12")
        assert code == 0
    where = ["--data.kspace", tmp_path / "kspace", "--data.maps", tmp_path / "maps", "--runs", tmp_path / "runs", "--name", "x"]
    return run("prepare", *where, *extra)


def opened(tmp_path):
    experiment = load_experiment(type(APPLICATION.experiment()), [])
    return MRI().observations(tmp_path / "runs/x/prepare/observations.h5", experiment)


def test_scans_with_fewer_coils_are_filled_with_zero_maps(tmp_path):
    scan(tmp_path / "kspace", "four", coils=4)
    scan(tmp_path / "kspace", "sixsix", coils=6)
    assert prepare(tmp_path) == 0
    data = opened(tmp_path)
    obs = data.batch(range(4))
    assert obs.y.shape == (4, 6, 16, 16)
    x = obs.operator.to_image(obs.y)
    alone = obs.operator.maps[:2, :4], obs.y[:2, :4]
    from rsdmri.mri.fourier import ifft2c

    assert torch.allclose(x[:2, 0], (alone[0].conj() * ifft2c(alone[1])).sum(1), atol=1e-6)


def test_the_same_scan_in_other_units_is_the_same_data(tmp_path):
    """fastMRI's values are about 1e-5: nothing may depend on that."""
    first = scan(tmp_path / "kspace", "scan")
    assert prepare(tmp_path) == 0
    one = opened(tmp_path)
    with h5py.File(first, "r+") as file:
        file["kspace"][...] = file["kspace"][()] * np.float32(1e-5)
        file.attrs["noise_std"] = file.attrs["noise_std"] * 1e-5
    assert prepare(tmp_path) == 0
    other = opened(tmp_path)
    assert torch.allclose(one.kspace, other.kspace, atol=1e-4)
    assert torch.allclose(one.noise_std, other.noise_std, rtol=1e-4)


def test_undersampled_scans_keep_their_masks_and_have_no_reference(tmp_path):
    mask = np.zeros(16, bool)
    mask[[1, 4, 6, 7, 8, 9, 10, 13]] = True
    scan(tmp_path / "kspace", "under", mask=mask)
    code = run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "5", "--kernel", "3")
    assert code == 0
    assert prepare(tmp_path, "--data.acs", "4", espirit=False) == 0
    data = opened(tmp_path)
    assert (data.mask.numpy() == mask).all()
    assert not (tmp_path / "runs/x/prepare/references.h5").exists()
    operator, _ = data.law().draw(5, make_generator(0))
    assert (operator.mask[:, 0, 0].numpy() == mask).all()


def test_noise_is_read_off_the_edges_where_the_file_does_not_say(tmp_path, generator):
    path = scan(tmp_path / "kspace", "scan", size=(64, 16))
    std = 0.3
    with h5py.File(path, "r+") as file:
        k = torch.from_numpy(file["kspace"][()])
        noise = torch.randn(*k.shape, 2, generator=generator, dtype=torch.float32)
        file["kspace"][...] = (k + std * torch.view_as_complex(noise)).numpy()
        del file.attrs["noise_std"]
    assert prepare(tmp_path, "--data.acs", "2") == 0
    with h5py.File(tmp_path / "runs/x/prepare/observations.h5") as file:
        found = file["coils_4/noise_std"][()] * file["coils_4/scale"][()]
    assert found == pytest.approx([std, std], rel=0.2)


def test_sizes_that_differ_are_refused_with_the_way_out(tmp_path, capsys):
    scan(tmp_path / "kspace", "small")
    scan(tmp_path / "kspace", "large", size=(20, 24))
    assert prepare(tmp_path) == 1
    assert "data.size" in capsys.readouterr().err
    assert prepare(tmp_path, "--data.size", "16", "16", espirit=False) == 0
    assert opened(tmp_path).size == (16, 16)


def test_a_broken_file_among_good_ones(tmp_path, capsys):
    scan(tmp_path / "kspace", "good")
    (tmp_path / "kspace" / "broken.h5").write_text("<html>404</html>")
    assert run("espirit", tmp_path / "kspace", "--out", tmp_path / "maps", "--workers", "1", "--calib", "12") == 1
    err = capsys.readouterr().err
    assert "broken.h5" in err
    assert "HTML" in err
    assert "Traceback" not in err
    assert (tmp_path / "maps" / "good.maps.h5").exists()
    assert not list((tmp_path / "maps").glob("*broken*"))
    assert prepare(tmp_path, espirit=False) == 1
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").rglob("*.h5"))


def test_missing_maps_say_which_command_makes_them(tmp_path, capsys):
    scan(tmp_path / "kspace", "scan")
    assert prepare(tmp_path, espirit=False) == 1
    assert "rsdmri-espirit" in capsys.readouterr().err
