"""rsdmri-check: what it says of good files, of files that cannot be used, and that it reads little of them."""

import json
import os

import h5py
import numpy as np
import pytest
import torch
from commands import run_command

from rsdmri.mri import phantoms
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.mri.fastmri_file import write_fastmri
from rsdmri.mri.masks import volume_columns


def run(*arguments):
    return run_command(APPLICATION, "check", *arguments)


@pytest.fixture
def scans(tmp_path):
    """A full scan, an undersampled one, one whose centre is off, and three that cannot be used."""
    k = phantoms.draw(0, 0, 3, 4, (32, 64))
    write_fastmri(tmp_path / "full.h5", k, acquisition="AXT2", noise_std=0.01)
    mask = volume_columns("x", 64, 4, 8)
    write_fastmri(tmp_path / "fast name ü.h5", k, acquisition="AXT1", noise_std=0.01, mask=mask)
    off = k.roll(7, dims=-1)
    off[:, 2] = 0
    write_fastmri(tmp_path / "off.h5", off, acquisition="AXT1", noise_std=0.01)
    broken = k.clone()
    broken[0, 0, 0, 0] = torch.nan
    (tmp_path / "bad").mkdir()
    with h5py.File(tmp_path / "bad" / "nan.h5", "w") as file:
        file["kspace"] = broken.numpy()
    (tmp_path / "bad" / "page.h5").write_bytes(b"<html>")
    two = torch.zeros(64, dtype=torch.bool)
    two[[3, 20, 31, 32, 50]] = True
    write_fastmri(tmp_path / "bad" / "two.h5", k, acquisition="", noise_std=0.0, mask=two)
    write_fastmri(tmp_path / "bad" / "rim.h5", k, acquisition="", noise_std=0.0, mask=torch.arange(64) < 12)
    return tmp_path


def test_good_files(scans, capsys):
    assert run(scans, "--workers", "1") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["file", "format", "slices", "coils", "matrix", "sampled", "R", "ACS", "scale"]
    assert next(line for line in lines if line.startswith("full")).split()[:-1] == (
        ["full.h5", "fastMRI", "3", "4", "32x64", "100.0%", "1.00", "64"]
    )
    assert "25.0%" in next(line for line in lines if line.startswith("fast name ü"))
    assert any("8 ACS lines: too few" in line for line in lines)
    assert any("coil 2 without signal" in line for line in lines)
    assert "+0, +7 samples beside the middle and was moved there" in " ".join(" ".join(lines).split())


def test_files_that_cannot_be_used(scans, capsys):
    assert run(scans / "bad", scans / "full.h5", "--json", "--workers", "2") == 1
    printed = capsys.readouterr()
    assert "4 of 5 files cannot be used" in printed.err
    rows = {row["file"].rpartition(os.sep)[2]: row for row in json.loads(printed.out)}
    assert "NaN or infinity in slice 0" in rows["nan.h5"]["problem"]
    assert "an HTML page" in rows["page.h5"]["problem"]
    assert "no sampled line in the ACS" in rows["rim.h5"]["problem"]
    assert "2 ACS lines: no coil maps" in rows["two.h5"]["problem"]
    full = rows["full.h5"]
    assert (full["problem"], full["acs"], full["matrix"], full["contrast"]) == ("", 64, [32, 64], "AXT2")
    assert full["scale"] > 0


def test_single_coil(tmp_path, capsys):
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["kspace"] = phantoms.draw(0, 0, 2, 1, (16, 16))[:, 0].numpy()
    assert run(tmp_path, "--workers", "1") == 1
    assert "--singlecoil" in capsys.readouterr().out
    assert run(tmp_path, "--workers", "1", "--singlecoil") == 0


def test_two_slices_are_read_and_not_the_whole(tmp_path, capsys):
    """NaN in a slice that is not looked at is not seen: the price of a check that takes a minute for a thousand files."""
    k = phantoms.draw(0, 0, 6, 2, (16, 16)).numpy()
    k[1] = np.nan
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["kspace"] = k
    assert run(tmp_path, "--workers", "1") == 0
    k[3] = np.nan
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["kspace"] = k
    assert run(tmp_path, "--workers", "1") == 1
    assert "slice 3" in capsys.readouterr().out


def test_a_folder_of_other_things(tmp_path, capsys):
    for number in range(2000):
        (tmp_path / f"{number}.txt").touch()
    assert run(tmp_path) == 1
    assert "no k-space in this folder" in capsys.readouterr().err
    os.symlink(tmp_path / "loop.h5", tmp_path / "loop.h5")
    assert run(tmp_path, "--workers", "1") == 1
    assert "symbolic links" in capsys.readouterr().out
