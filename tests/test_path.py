"""The whole path, as its users run it: scans -> maps -> data set -> teacher -> generator -> images -> numbers -> report."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from commands import run_command

import rsdmri
from rsdmri.errors import UserError
from rsdmri.logs import read_log
from rsdmri.mri.__main__ import APPLICATION

pytestmark = pytest.mark.xdist_group("path")

SMALL = """
data: {accel: 4}
network: {channels: 8, multipliers: [1, 2], blocks: 1}
pretrain: {images: 160, batch: 8, log: 8, save: 48, warmup: 16, ema: 100, snapshots: 2}
distill: {images: 32, batch: 8, log: 8, save: 16, sigma_min: 0.02, ema: 100}
sample: {n: 16, batch: 6, steps: 4}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the prepared data of eight small phantom volumes, and the flags that name it."""
    folder = tmp_path_factory.mktemp("path")
    (folder / "small.yaml").write_text(SMALL)
    run("simulate", "--phantoms", "8", "--slices", "4", "--size", "16", "16", "--coils", "4", "--out", folder / "kspace")
    run("espirit", folder / "kspace", "--out", folder / "maps", "--workers", "1", "--calib", "12")
    run("prepare", *flags(folder))
    return folder


@pytest.fixture(scope="module")
def trained(place):
    for verb in ("pretrain", "distill"):
        run(verb, *flags(place))
    for phase in ("pretrain", "distill"):
        run("sample", *flags(place), "--run", place / "runs" / "small" / phase)
    run("evaluate", *flags(place))
    run("report", *flags(place))
    return place / "runs" / "small"


def flags(folder, runs="runs"):
    where = ["--config", folder / "small.yaml", "--runs", folder / runs]
    return [*where, "--data.kspace", folder / "kspace", "--data.maps", folder / "maps"]


def run(*arguments, code=0):
    assert run_command(APPLICATION, *arguments) == code


def test_data_set_is_as_documented(place):
    with h5py.File(place / "runs/small/prepare/observations.h5") as file:
        group = file["coils_4_16x16"]
        kspace, mask, maps = group["kspace"][()], group["mask"][()], group["maps"][()]
        assert kspace.shape == maps.shape == (32, 4, 16, 16)
        assert (mask.sum(1) == 4).all()  # floor(16 / 4)
        assert not kspace[np.broadcast_to(~mask[:, None, None, :], kspace.shape)].any()
        assert file.attrs["maps"] == "full"  # one ACS line cannot give maps
        names = [name.decode() for name in group["name"][()]]
        for volume in range(8):  # all slices of a volume share its mask
            of_volume = [i for i, name in enumerate(names) if name.startswith(f"phantom_{volume:04d}/")]
            assert len(of_volume) == 4
            assert (mask[of_volume] == mask[of_volume[0]]).all()
    with h5py.File(place / "runs/small/prepare/references.h5") as file:
        assert file["16x16/images"].shape == (32, 16, 16)
        assert file["16x16/images"].dtype == np.complex64


def test_every_artefact_is_there(trained):
    for phase in ("pretrain", "distill"):
        for name in (
            "config.yaml",
            "provenance.json",
            "metrics.jsonl",
            "model.safetensors",
            "model.json",
            "operators.h5",
            "samples.h5",
        ):
            assert (trained / phase / name).exists(), name
    assert len(list((trained / "pretrain" / "snapshots").iterdir())) == 2
    leftovers = [p for p in trained.rglob("*") if ".tmp" in p.name]
    assert leftovers == []


def test_report_has_the_rows(trained):
    rows = json.loads((trained / "report.json").read_text())["rows"]
    assert [row["name"] for row in rows] == ["observation", "teacher", "rsd"]
    for row in rows:
        for group in (row["metrics"], row["proximal"]):
            for metric in ("swd", "psd"):
                assert set(group[metric]) >= {"value", "floor", "n"}
                assert np.isfinite(group[metric]["value"])
    assert rows[0]["seconds_per_image"] is None
    assert (rows[1]["network_calls"], rows[2]["network_calls"]) == (7, 1)
    assert "<html" in (trained / "report.html").read_text()


def test_a_finished_run_is_left_alone(trained, place):
    before = (trained / "pretrain" / "model.safetensors").stat().st_mtime_ns
    run("pretrain", *flags(place))
    assert (trained / "pretrain" / "model.safetensors").stat().st_mtime_ns == before


def test_other_settings_in_the_same_folder_are_refused(trained, place, capsys):
    run("pretrain", *flags(place), "--pretrain.lr", "0.1", "--pretrain.images", "200", code=1)
    assert "pretrain.lr: 0.001 then, 0.1 now" in capsys.readouterr().err


def test_other_data_or_settings_are_refused_even_when_finished(trained, place, capsys):
    run("pretrain", *flags(place), "--pretrain.lr", "0.1", code=1)
    assert "pretrain.lr" in capsys.readouterr().err
    run("distill", *flags(place), "--data.accel", "3", code=1)
    assert "made at R = 4" in capsys.readouterr().err
    run("distill", *flags(place), "--objective.lowest", "0.3", code=1)
    assert "its teacher's own objective" in capsys.readouterr().err


def test_a_training_whose_learning_rate_falls_to_its_end_is_not_lengthened(place, tmp_path, capsys):
    out = ["--out", tmp_path / "falling", "--pretrain.decay"]
    run("pretrain", *flags(place), *out, "--pretrain.images", "32")
    run("pretrain", *flags(place), *out, "--pretrain.images", "64", code=1)
    assert "pretrain.decay fixes: 32 then, 64 now" in capsys.readouterr().err


def test_dropout_is_a_function_of_the_step(place, tmp_path):
    for name in ("one", "two"):
        run("pretrain", *flags(place), "--network.dropout", "0.2", "--pretrain.images", "32", "--out", tmp_path / name)
        torch.manual_seed(len(name) + 5)
        torch.rand(3)
    assert losses(tmp_path / "one") == losses(tmp_path / "two")


def test_sample_i_depends_on_seed_i_alone(trained):
    model = rsdmri.load(trained / "distill")
    together = model.sample([3, 5, 8])
    assert together.shape == (3, 1, 16, 16)
    assert together.is_complex()
    assert torch.allclose(model.sample([5])[0], together[1], atol=1e-6)
    with h5py.File(trained / "distill" / "samples.h5") as file:
        assert np.allclose(file["images"][5], together[1, 0].numpy(), atol=1e-5)
        assert file["seeds"][5] == 5


def test_generator_is_zero_outside_its_support(trained):
    model = rsdmri.load(trained / "distill")
    from rsdmri.sampling import sample_generator

    operator, _ = model.law.draw(1, (16, 16), sample_generator(4))
    assert not model.sample([4])[0][~operator.support()[0].bool()].any()


def test_snapshots_load(trained):
    from rsdmri.checkpoints import snapshots

    found = snapshots(trained / "pretrain")
    assert sorted(found) == [80, 160]
    assert rsdmri.load(trained / "pretrain", found[80]).sample([0]).shape == (1, 1, 16, 16)


def test_the_path_needs_no_clean_image(trained, place, tmp_path):
    """Everything after prepare, with the references deleted: proximal numbers, and no others."""
    runs = tmp_path / "runs"
    shutil.copytree(trained, runs / "small", ignore=shutil.ignore_patterns("pretrain", "distill", "evaluate", "report*"))
    (runs / "small" / "prepare" / "references.h5").unlink()
    shutil.copytree(place / "maps", tmp_path / "maps")
    shutil.copy(place / "small.yaml", tmp_path)
    shutil.copytree(place / "kspace", tmp_path / "kspace")
    for verb in ("pretrain", "distill", "sample", "evaluate", "report"):
        run(verb, *flags(tmp_path))
    (rsd,) = [row for row in json.loads((runs / "small" / "report.json").read_text())["rows"] if row["name"] == "rsd"]
    assert rsd["metrics"] == {}
    assert np.isfinite(rsd["proximal"]["swd"]["value"])
    # Without a clean image the networks are the same: none was used.
    assert read_log(runs / "small" / "distill" / "metrics.jsonl")[-1]["loss_generator"] == pytest.approx(
        read_log(trained / "distill" / "metrics.jsonl")[-1]["loss_generator"]
    )


def losses(folder):
    return [{k: v for k, v in line.items() if k != "seconds"} for line in read_log(folder / "metrics.jsonl")]


@pytest.mark.parametrize("verb", ["pretrain", "distill"])
def test_same_seed_same_losses(trained, place, tmp_path, verb):
    extra = ["--teacher", trained / "pretrain"] if verb == "distill" else []
    run(verb, *flags(place), "--out", tmp_path / "again", *extra)
    assert losses(tmp_path / "again") == losses(trained / verb)


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["pretrain", "distill"])
def test_a_killed_run_goes_on_with_the_losses_of_one_that_was_not(trained, place, tmp_path, verb):
    """SIGKILL in the middle, then the same command."""
    out = tmp_path / "killed"
    images = {"pretrain": 1600, "distill": 480}[verb]
    extra = ["--teacher", trained / "pretrain"] if verb == "distill" else []
    command = [
        sys.executable,
        "-m",
        "rsdmri.mri",
        verb,
        *map(str, flags(place)),
        *map(str, extra),
        f"--{verb}.images",
        str(images),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*command, "--out", str(tmp_path / "whole")], check=True, env=environment, capture_output=True)
    process = subprocess.Popen(
        [*command, "--out", str(out)], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while len(list((out / "resume").glob("step_*"))) == 0 or len(read_log(out / "metrics.jsonl")) < 10:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "model.safetensors").exists()
    subprocess.run([*command, "--out", str(out)], check=True, env=environment, capture_output=True)
    assert losses(out) == losses(tmp_path / "whole")


def test_only_our_own_network_computes_activations_again(place, capsys):
    network = ["--network.kind", "monai", "--network.channels", "32"]
    where = flags(place, runs="monai")
    run("prepare", *where)
    run("pretrain", *where, *network, "--pretrain.images", "8")
    run("distill", *where, *network, "--distill.checkpointing", code=1)
    assert "distill.checkpointing exists for network.kind 'song' only, and the teacher's is 'monai'" in capsys.readouterr().err


def test_the_law_of_an_imported_teacher_belongs_to_the_run(trained, place, capsys):
    """It is that of the prepared data, which then must be the same when the run goes on."""
    runs = place / "imported"
    shutil.copytree(trained / "prepare", runs / "small/prepare")
    shutil.copytree(trained / "pretrain", runs / "small/teacher", ignore=shutil.ignore_patterns("operators.h5", "resume"))
    (runs / "small/teacher/import.json").write_text("{}")
    words = ["distill", *flags(place, runs="imported"), "--teacher", runs / "small/teacher"]
    run(*words, "--distill.images", "16")
    run(*words, "--distill.images", "24")
    before = (runs / "small/distill/operators.h5").read_bytes()
    with h5py.File(runs / "small/prepare/observations.h5", "r+") as file:
        file["coils_4_16x16/maps"][...] *= 1j
    run(*words, "--distill.images", "32", code=1)
    assert "inputs.observations" in capsys.readouterr().err
    assert (runs / "small/distill/operators.h5").read_bytes() == before


def test_distill_without_a_teacher_says_how_to_make_one(place, tmp_path, capsys):
    run("distill", *flags(place, runs=str(tmp_path / "nothing")), code=2)
    assert "rsdmri-pretrain" in capsys.readouterr().err


def test_a_broken_checkpoint_is_named(trained, tmp_path):
    shutil.copytree(trained / "distill", tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UserError, match=r"model.safetensors: not a complete safetensors file"):
        rsdmri.load(tmp_path / "broken")


def test_example_script_runs(trained):
    script = Path(__file__).parent.parent / "scripts" / "example.py"
    assert len([line for line in script.read_text().splitlines() if line.strip()]) <= 20
    scan = next((trained.parent.parent / "kspace").glob("*.h5"))
    done = subprocess.run([sys.executable, script, scan, trained / "distill"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "residual" in done.stdout


@pytest.mark.parametrize(
    ("name", "text", "verb", "message"),
    [
        ("evaluate/metrics.json", "{}", "report", "not the results of an evaluation"),
        ("distill/model.json", "[]", "sample", "not a description of a model"),
        ("pretrain/provenance.json", "{}", "pretrain", "not the record of a run"),
        ("pretrain/metrics.jsonl", '{"loss": 1}\n', "pretrain", "not the log of a training"),
    ],
)
def test_files_that_were_written_over_are_named(trained, place, tmp_path, name, text, verb, message, capsys):
    folder = tmp_path / "runs" / "small"
    shutil.copytree(trained, folder)
    (folder / name).write_text(text)
    longer = ["--pretrain.images", "240"] if verb == "pretrain" else []
    where = ["--data.kspace", place / "kspace", "--data.maps", place / "maps"]
    run(verb, "--config", place / "small.yaml", "--runs", tmp_path / "runs", *where, *longer, code=1)
    error = capsys.readouterr().err
    assert message in error
    assert str(folder / name) in error


def test_samples_are_measured_by_the_operators_of_their_run(trained, place, tmp_path):
    """Another --data.bank at evaluation would choose other coils for the same seeds."""
    flag = ["--data.bank", "3"]
    run("evaluate", *flags(place), *flag, "--out", tmp_path / "evaluate")
    found, before = (json.loads((f / "metrics.json").read_text()) for f in (tmp_path / "evaluate", trained / "evaluate"))
    assert found["rows"][2]["proximal"] == before["rows"][2]["proximal"]


def test_the_row_of_the_observations_cannot_be_taken(trained, place, capsys):
    run("evaluate", *flags(place), "--samples", f"observation={trained}/distill/samples.h5", code=2)
    assert "'observation'" in capsys.readouterr().err


def test_a_generator_has_its_teacher_s_network_in_its_record(trained, place, tmp_path, capsys):
    run("distill", *flags(place), "--network.channels", "64", "--teacher", trained / "pretrain", "--out", tmp_path / "g")
    assert "the networks are the teacher's" in capsys.readouterr().err
    assert "channels: 8" in (tmp_path / "g" / "config.yaml").read_text()
    run("distill", *flags(place), "--data.thinning", "fixed", "--teacher", trained / "pretrain", "--out", tmp_path / "h", code=1)
    assert "'redrawn'" in capsys.readouterr().err
