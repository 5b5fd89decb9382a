"""Files of coil maps: what they hold, and a command that goes on where it stopped."""

import dataclasses
import json
import shutil
import sys
import time

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from rsdmri.errors import UserError
from rsdmri.files import sha256
from rsdmri.jobs import default_shard
from rsdmri.mri import phantoms
from rsdmri.mri.bart import write_cfl
from rsdmri.mri.coils import espirit
from rsdmri.mri.config import EspiritConfig
from rsdmri.mri.estimate import _submit, estimate_file, estimate_files, is_done
from rsdmri.mri.fastmri_file import write_fastmri
from rsdmri.mri.maps import maps_path, read_maps
from rsdmri.mri.readers import find_files, read
from rsdmri.tensors import make_generator, randn_like

CONFIG = EspiritConfig(workers=1, calib=16)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    for number in range(3):
        k = phantoms.draw(0, number, 2, 4, (32, 32))
        k[1] *= number != 2  # the last slice of the last scan is empty
        write_fastmri(
            folder / f"{number}.h5",
            k + 0.005 * randn_like(k, make_generator(number)) * (k != 0),
            acquisition="T",
            noise_std=0.005,
        )
    return folder


@pytest.fixture
def estimated(scans, tmp_path):
    estimate_files([scans], tmp_path / "maps", CONFIG)
    return tmp_path / "maps"


def stamps(folder):
    return {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}


def test_what_is_written(scans, estimated):
    assert sorted(path.name for path in estimated.iterdir()) == ["0.maps.h5", "1.maps.h5", "2.maps.h5"]
    for scan in scans.iterdir():
        maps = read_maps(estimated, scan)
        expected = espirit(read(scan).kspace, calib=16)
        for found, made in zip((maps.maps, maps.eigenvalues, maps.valid), expected, strict=True):
            assert torch.equal(found, made)
        assert maps.calib == 16
        assert maps.attributes["source_sha256"] == sha256(scan)
        assert maps.attributes["source_size"] == scan.stat().st_size
        assert (maps.attributes["acs_first"], maps.attributes["acs_lines"]) == (0, 32)
        assert maps.attributes["residual"] < 0.1
        for name in ("backend", "kernel", "threshold", "crop", "iterations"):
            value = getattr(CONFIG, name)
            assert maps.attributes[name] == (-1 if value is None else value)
        assert maps.attributes["rsdmri"]
    assert maps_path(estimated, scans / "1.h5") == estimated / "1.maps.h5"
    assert read_maps(estimated, scans / "2.h5").valid.tolist() == [True, False]


def test_done_files_are_left_alone(scans, estimated):
    before = stamps(estimated)
    estimate_files([scans], estimated, CONFIG)
    assert stamps(estimated) == before


def test_other_parameters_are_estimated_again(scans, estimated):
    other = dataclasses.replace(CONFIG, crop=0.8)
    assert not is_done(scans / "0.h5", estimated, other)
    assert is_done(scans / "0.h5", estimated, dataclasses.replace(CONFIG, workers=5, shard="1/2"))
    estimate_files([scans / "0.h5"], estimated, other)
    assert read_maps(estimated, scans / "0.h5").attributes["crop"] == 0.8


def test_a_scan_that_changed_is_estimated_again(scans, estimated, tmp_path):
    scan = tmp_path / "0.h5"
    shutil.copy(scans / "0.h5", scan)
    assert is_done(scan, estimated, CONFIG)
    with h5py.File(scan, "r+") as file:
        file["kspace"][0, 0, 0, 0] += 1  # the same size
    assert not is_done(scan, estimated, CONFIG)


def test_half_a_file_is_made_again(scans, estimated):
    path = estimated / "0.maps.h5"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert not is_done(scans / "0.h5", estimated, CONFIG)
    with pytest.raises(UserError, match=r"0.maps.h5: not a file of coil maps .* rsdmri-espirit again"):
        read_maps(estimated, scans / "0.h5")
    estimate_files([scans], estimated, CONFIG)
    assert read_maps(estimated, scans / "0.h5").valid.all()


def test_an_interrupt_leaves_whole_files_only(scans, tmp_path, monkeypatch):
    out = tmp_path / "maps"
    calls = []

    def interrupted(self, *arguments):
        calls.append(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(h5py.AttributeManager, "update", interrupted)  # in the middle of the writing
        with pytest.raises(KeyboardInterrupt):
            estimate_files([scans], out, CONFIG)
    assert len(calls) == 1
    assert list(out.iterdir()) == []
    estimate_files([scans], out, CONFIG)
    assert len(list(out.iterdir())) == 3


def test_what_fails_is_named_and_the_others_are_done(scans, tmp_path):
    folder = tmp_path / "in"
    shutil.copytree(scans, folder)
    (folder / "bad.h5").write_bytes(b"<html>")
    few = torch.zeros(32, dtype=torch.bool)
    few[[2, 15, 16, 17, 30]] = True
    write_fastmri(folder / "few.h5", phantoms.draw(0, 0, 1, 4, (32, 32)), acquisition="T", noise_std=0.0, mask=few)
    with pytest.raises(UserError) as error:
        estimate_files([folder], tmp_path / "maps", CONFIG)
    lines = str(error.value).splitlines()
    assert lines[0].startswith("2 of 5 files failed")
    assert lines[1].startswith(f"{folder / 'bad.h5'}: not HDF5, but an HTML page")
    assert lines[2].startswith(f"{folder / 'few.h5'}: 3 fully sampled ACS lines found")
    assert len(list((tmp_path / "maps").glob("*.maps.h5"))) == 3


def test_maps_of_an_undersampled_scan_have_no_residual(tmp_path):
    mask = torch.zeros(32, dtype=torch.bool)
    mask[[2, *range(8, 24), 30]] = True
    write_fastmri(tmp_path / "a.h5", phantoms.draw(0, 0, 1, 4, (32, 32)), acquisition="T", noise_std=0.0, mask=mask)
    estimate_file(tmp_path / "a.h5", tmp_path, EspiritConfig(workers=1))
    maps = read_maps(tmp_path, tmp_path / "a.h5")
    assert "residual" not in maps.attributes
    assert (maps.attributes["acs_first"], maps.attributes["acs_lines"], maps.calib) == (8, 16, 16)
    assert maps.attributes["asked_calib"] == -1


def test_two_scans_of_one_name(scans, tmp_path):
    shutil.copytree(scans, tmp_path / "other")
    with pytest.raises(UserError, match="have the same name, and what is made of them would overwrite each other"):
        estimate_files([scans, tmp_path / "other"], tmp_path / "maps", CONFIG)
    assert not (tmp_path / "maps").exists()


def test_shards_are_the_whole(scans, tmp_path):
    for number in range(2):
        estimate_files([scans], tmp_path / "maps", dataclasses.replace(CONFIG, shard=f"{number}/2"))
        assert len(list((tmp_path / "maps").iterdir())) == (2, 3)[number]


def test_missing_maps_say_how_to_make_them(scans, tmp_path):
    with pytest.raises(UserError, match=rf"no coil maps for .*0\.h5. Make them: rsdmri-espirit {scans} --out {tmp_path}"):
        read_maps(tmp_path, scans / "0.h5")


@pytest.mark.slow
def test_several_processes_make_the_same_maps(scans, estimated, tmp_path):
    estimate_files([scans], tmp_path / "parallel", dataclasses.replace(CONFIG, workers=2))
    for scan in scans.iterdir():
        assert torch.allclose(read_maps(tmp_path / "parallel", scan).maps, read_maps(estimated, scan).maps, atol=1e-5)


def test_failures_are_kept_and_tried_again_when_asked_or_changed(scans, tmp_path):
    folder, out = tmp_path / "in", tmp_path / "maps"
    shutil.copytree(scans, folder)
    bad = folder / "bad.h5"
    bad.write_bytes(b"<html>")
    with pytest.raises(UserError, match="1 of 4 files failed"):
        estimate_files([folder], out, CONFIG)
    (line,) = (out / "failures.jsonl").read_text().splitlines()
    assert json.loads(line)["file"] == str(bad)
    assert "HTML" in json.loads(line)["error"]
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rsdmri.mri.estimate.read", lambda path, **options: seen.append(path) or read(path, **options))
        with pytest.raises(UserError, match="failed before; --retry-failed tries it again"):
            estimate_files([folder], out, CONFIG)
        assert seen == []
        with pytest.raises(UserError, match="1 of 4 files failed"):
            estimate_files([folder], out, dataclasses.replace(CONFIG, retry_failed=True))
        assert seen == [bad]
        with pytest.raises(UserError, match="1 of 4 files failed"):  # other parameters are another attempt
            estimate_files([folder], out, dataclasses.replace(CONFIG, crop=0.5))
    with open(out / "failures.jsonl", "a") as file:
        file.write("{torn\n")
    estimate_files([scans], out, CONFIG)  # others have nothing to say about it
    assert str(bad) in (out / "failures.jsonl").read_text()
    shutil.copy(folder / "0.h5", bad)
    estimate_files([folder], out, CONFIG)
    assert not (out / "failures.jsonl").exists()
    assert read_maps(out, bad).valid.all()


def test_the_shard_of_a_slurm_array(scans, tmp_path, monkeypatch):
    for name, value in (("ID", 7), ("MIN", 5), ("MAX", 7), ("COUNT", 3)):
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    estimate_files([scans], tmp_path, CONFIG)
    assert [path.name for path in tmp_path.iterdir()] == ["2.maps.h5"]
    estimate_files([scans], tmp_path, dataclasses.replace(CONFIG, shard="0/3"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.maps.h5", "2.maps.h5"]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "0/1"),
        ({"ID": "4"}, "0/1"),
        ({"ID": "4", "COUNT": "8"}, "4/8"),
        ({"ID": "21", "MIN": "1", "STEP": "10", "COUNT": "3"}, "2/3"),
        ({"ID": "x", "COUNT": "3"}, "0/1"),
        ({"ID": "7", "MIN": "3", "COUNT": "2"}, None),  # --array=3,7
    ],
)
def test_shards_from_the_environment(environment, expected):
    named = {f"SLURM_ARRAY_TASK_{name}": value for name, value in environment.items()}
    if expected is None:
        with pytest.raises(UserError, match="give --shard"):
            default_shard(named)
        return
    assert default_shard(named) == expected


def test_a_sheet_of_the_maps(scans, tmp_path):
    estimate_files([scans], tmp_path, dataclasses.replace(CONFIG, report=True))
    with Image.open(tmp_path / "0.maps.png") as sheet:
        assert sheet.size == (8 * 33 - 1, 3 * 33 - 1)  # magnitudes, phases, the rest
        pixels = np.asarray(sheet)
    assert pixels[:32].max() > 100
    assert np.ptp(pixels[33:65].astype(int), axis=-1).max() > 100  # phases have colours


def test_slurm_without_submitit_says_what_to_install(scans, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"pip install 'rsdmri\[slurm\]'"):
        estimate_files([scans], tmp_path, dataclasses.replace(CONFIG, slurm=2))


def test_slurm_where_there_is_none(scans, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no SLURM here"):
        estimate_files([scans], tmp_path / "maps", dataclasses.replace(CONFIG, slurm=2))


def test_a_crop_of_zero_is_not_the_default(scans, estimated, tmp_path):
    shutil.copytree(estimated, tmp_path / "copy")
    assert not is_done(scans / "0.h5", tmp_path / "copy", dataclasses.replace(CONFIG, crop=0.0))
    estimate_files([scans / "0.h5"], tmp_path / "copy", dataclasses.replace(CONFIG, crop=0.0))
    assert (read_maps(tmp_path / "copy", scans / "0.h5").maps.abs().sum(1) > 0).all()


def test_a_sheet_that_is_asked_for_later(scans, estimated, tmp_path):
    shutil.copytree(estimated, tmp_path / "copy")
    estimate_files([scans / "0.h5"], tmp_path / "copy", dataclasses.replace(CONFIG, report=True))
    assert (tmp_path / "copy" / "0.maps.png").exists()


def test_the_header_of_a_bart_file_is_part_of_it(scans, tmp_path):
    k = read(scans / "0.h5").kspace[0].permute(1, 2, 0)[:, :, None].numpy()
    write_cfl(tmp_path / "k", k)
    estimate_files([tmp_path / "k.cfl"], tmp_path / "maps", CONFIG)
    assert is_done(tmp_path / "k.cfl", tmp_path / "maps", CONFIG)
    header = (tmp_path / "k.hdr").read_text()
    (tmp_path / "k.hdr").write_text(header + "# again\n")
    assert not is_done(tmp_path / "k.cfl", tmp_path / "maps", CONFIG)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_array_of_tasks(scans, tmp_path, capsys):
    """By submitit's executor for machines without SLURM, which runs the same pickled calls in processes."""
    pytest.importorskip("submitit")
    config = dataclasses.replace(CONFIG, slurm=2, slurm_options=("timeout_min=5",))
    _submit(find_files([scans]), tmp_path / "maps", config, cluster="local")
    assert "2 tasks sent" in capsys.readouterr().out
    for _ in range(120):
        if len(list((tmp_path / "maps").glob("*.maps.h5"))) == 3:
            break
        time.sleep(0.5)
    assert len(list((tmp_path / "maps").glob("*.maps.h5"))) == 3
