"""L1-EDM and EM-Diffusion as their users run them: verbs that go on where they stopped, and what they refuse."""

import dataclasses
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from commands import run_command
from test_natural import pictures

from rsdmri import baselines, pipeline
from rsdmri.checkpoints import load_description
from rsdmri.config import EMConfig
from rsdmri.errors import UserError
from rsdmri.logs import read_log
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.mri.config import MRIExperiment
from rsdmri.mri.domain import MRI
from rsdmri.mri.reconstruction import default_lam, l1_wavelet
from rsdmri.operators import Identity
from rsdmri.restoring import about, read_images
from rsdmri.settings import load_experiment, named_configs
from rsdmri_natural.__main__ import APPLICATION as NATURAL
from rsdmri_natural.domain import Natural

pytestmark = pytest.mark.xdist_group("baselines")

SMALL = """
data: {accel: 2, acs: 4}
network: {channels: 8, multipliers: [1, 2], blocks: 1}
objective: {kind: standard}
pretrain: {images: 96, batch: 8, log: 8, save: 48, warmup: 16, ema: 100}
em: {count: 6, first: 2400, lap: 48, laps: 2, steps: 10}
sample: {n: 16, batch: 6, steps: 4, sigma_min: 0.02}
"""


def run(*arguments, code=0):
    assert run_command(APPLICATION, *arguments) == code


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Prepared data of ten phantom volumes, and of two others, fully sampled."""
    folder = tmp_path_factory.mktemp("baselines")
    (folder / "small.yaml").write_text(SMALL)
    for name, seed, count in (("kspace", 0, 10), ("clean", 1, 2)):
        run(
            "simulate", "--phantoms", count, "--slices", 4, "--size", 16, 16, "--coils", 4, "--seed", seed, "--out", folder / name
        )
        for scan in sorted((folder / name).iterdir()) if name == "clean" else []:
            scan.rename(scan.with_name(f"clean_{scan.name}"))  # volumes are known by their names
        run("espirit", folder / name, "--out", folder / f"{name}_maps", "--workers", 1, "--calib", 12)
    run("prepare", *flags(folder))
    run("prepare", *flags(folder, "clean"), "--name", "clean", "--data.accel", 1)
    return folder


def flags(folder, scans="kspace"):
    where = ["--config", folder / "small.yaml", "--runs", folder / "runs"]
    return [*where, "--data.kspace", folder / scans, "--data.maps", folder / f"{scans}_maps"]


def experiment_of(folder, **fields):
    experiment = load_experiment(MRIExperiment, [str(folder / "small.yaml")])
    return dataclasses.replace(experiment, runs=folder / "runs", **fields)


def prepared_data(folder):
    data = experiment_of(folder).data
    return dataclasses.replace(data, kspace=(folder / "kspace",), maps=folder / "kspace_maps")


# L1-EDM


def test_restored_images_are_those_of_the_method(place):
    run("restore", *flags(place))
    path = place / "runs/small/restore/images.h5"
    experiment = experiment_of(place)
    data = MRI().observations(place / "runs/small/prepare/observations.h5", experiment)
    images = read_images(path, data, {"lam": default_lam(2)})
    assert len(images) == len(data) == 40 and images.names == data.names and list(images.buckets) == [(16, 16)]
    torch.set_default_dtype(torch.float32)
    for i in (0, 33):  # of the first part and of the last
        obs = data.batch([i])
        expected = l1_wavelet(obs.operator, obs.y, default_lam(2)) * obs.operator.support()
        found = images.batch([i])
        assert torch.allclose(found.y, expected, atol=1e-5) and isinstance(found.operator, Identity)
        assert not found.noise_std.any()
    assert not (path.parent / "parts").exists()


def test_a_restoration_goes_on_where_it_was_stopped(place, tmp_path, monkeypatch):
    """Killed after its first part: that is there, whole, and is not made again."""
    experiment, calls = experiment_of(place), []

    def broken(obs, samples):
        calls.append(list(samples))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return obs.operator.adjoint(obs.y)

    shutil.copytree(place / "runs/small/prepare", tmp_path / "small/prepare")
    experiment = dataclasses.replace(experiment, runs=tmp_path)
    out = tmp_path / "small/restore"
    monkeypatch.setattr(MRI, "restorer", lambda self, data, asked, device: (broken, {}))
    with pytest.raises(KeyboardInterrupt):
        baselines.restore(experiment, MRI())
    assert [path.name for path in (out / "parts").iterdir()] == ["part_00000.h5"] and not (out / "images.h5").exists()
    baselines.restore(experiment, MRI())
    assert len(calls) == 3 and calls[1] == calls[2] and (out / "images.h5").exists()
    baselines.restore(experiment, MRI())
    assert len(calls) == 3  # it is there
    pipeline.prepare(dataclasses.replace(experiment, seed=1, data=prepared_data(place)), MRI(), tmp_path / "small/prepare")
    baselines.restore(experiment, MRI())
    assert len(calls) == 5  # of other observations


def test_a_teacher_of_restored_images(place, capsys):
    if not (place / "runs/small/restore/images.h5").exists():
        run("restore", *flags(place))
    restored = [*flags(place), "--objective.learns-from", "restored"]
    run("pretrain", *restored, "--out", place / "runs/small/l1")
    assert not load_description(place / "runs/small/l1").masked
    run("sample", *restored, "--run", place / "runs/small/l1")
    with h5py.File(place / "runs/small/l1/samples.h5") as file:
        assert file["images"].shape == (16, 16, 16) and np.isfinite(file["images"][()]).all()
    run("distill", *restored, "--teacher", place / "runs/small/l1", code=1)
    assert "a teacher of restored images has no corruption" in capsys.readouterr().err


def test_images_of_other_data_are_refused(place, tmp_path, capsys):
    other = tmp_path / "runs"
    shutil.copytree(place / "runs/small/prepare", other / "small/prepare")
    where = [*flags(place), "--runs", other, "--objective.learns-from", "restored"]
    run("pretrain", *where, code=1)
    assert "no such file. Make it by the verb restore" in capsys.readouterr().err
    run("restore", *flags(place), "--runs", other)
    run("prepare", *flags(place), "--runs", other, "--seed", 5)  # other masks
    run("pretrain", *where, "--seed", 5, code=1)
    said = capsys.readouterr().err
    assert "made of other observations or with other options (observations" in said and "Restore them again" in said


def test_other_options_of_restoring_are_noticed(place, capsys):
    """The images were made by the default; a training that says otherwise would record what is not true."""
    if not (place / "runs/small/restore/images.h5").exists():
        run("restore", *flags(place))
    restored = [*flags(place), "--objective.learns-from", "restored", "--out", place / "runs/small/other"]
    run("pretrain", *restored, "--l1.lam", 0.3, code=1)
    assert "lam 0.0005 then, 0.3 now" in capsys.readouterr().err
    run("restore", *flags(place), "--out", place / "elsewhere", code=2)
    assert "unknown flag '--out'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run("restore", "--help")
    assert "--out" not in capsys.readouterr().out


def test_the_same_images_are_the_same_file(place, tmp_path):
    """Images that are made again, by weights that were tried in between: a teacher of them goes on. The weight that was chosen is told."""
    shutil.copytree(place / "runs/small/prepare", tmp_path / "small/prepare")
    where = [*flags(place), "--runs", tmp_path]
    path, found = tmp_path / "small/restore/images.h5", {}
    for lam in ("auto", 0.01, "auto"):
        run("restore", *where, "--l1.lam", lam)
        found.setdefault(lam, []).append(path.read_bytes())
        assert 0 < about(path)["lam"] < 1 and (lam == "auto" or about(path)["lam"] == lam)
    assert found["auto"][0] == found["auto"][1] != found[0.01][0]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_restores_nothing(place, tmp_path, capsys):
    shutil.copytree(place / "runs/small/prepare", tmp_path / "small/prepare")
    run("restore", *flags(place), "--runs", tmp_path, "--device", "cuda", code=1)
    assert "cuda" in capsys.readouterr().err and not (tmp_path / "small/restore/images.h5").exists()


def test_photographs_have_nothing_to_be_restored_by():
    with pytest.raises(UserError, match="photographs are not restored"):
        Natural().restorer(None, None, torch.device("cpu"))


def test_images_too_many_for_memory_are_read_from_the_file(place, monkeypatch):
    if not (place / "runs/small/restore/images.h5").exists():
        run("restore", *flags(place))
    data = MRI().observations(place / "runs/small/prepare/observations.h5", experiment_of(place))
    path = place / "runs/small/restore/images.h5"
    held = read_images(path, data, {}).batch([3, 35, 0]).y
    monkeypatch.setattr("rsdmri.restoring.fits", lambda size: False)
    assert torch.equal(read_images(path, data, {}).batch([3, 35, 0]).y, held)


@pytest.mark.parametrize("name", [name for name in named_configs() if name.startswith("mri/l1_r")])
def test_recipes_of_l1_edm(name):
    """The network and training of the fully sampled EDM, on restored images."""
    recipe, full = (load_experiment(MRIExperiment, [one]) for one in (name, "mri/full"))
    assert recipe.data.accel == float(name.removeprefix("mri/l1_r")) and recipe.objective.learns_from == "restored"
    assert (recipe.network, recipe.pretrain, recipe.sample) == (full.network, full.pretrain, full.sample)


def test_there_is_a_recipe_for_each_acceleration():
    assert {name for name in named_configs() if name.startswith("mri/l1_")} == {f"mri/l1_r{accel}" for accel in (2, 4, 6, 8)}


# EM-Diffusion


@pytest.fixture(scope="module")
def laps(place):
    run("em", *flags(place), "--em.clean", place / "runs/clean/prepare/references.h5")
    return place / "runs/small/em"


def test_every_lap_is_a_run(laps, place):
    for name in ("first", "lap_1", "lap_2"):
        images = 2400 if name == "first" else 48
        assert load_description(laps / name).images == images
        assert [line["images"] for line in read_log(laps / name / "metrics.jsonl")] == list(range(8, images + 1, 8))
    run("sample", *flags(place), "--run", laps / "lap_2")
    assert not list(laps.rglob("*.tmp"))
    starts = [json.loads((laps / name / "provenance.json").read_text())["inputs"] for name in ("first", "lap_1", "lap_2")]
    assert ["start" in inputs for inputs in starts] == [False, True, True]


def test_images_of_a_lap_fit_their_observations(laps, place):
    """Nearer than those of the lap's prior would be: what is drawn is drawn given y."""
    experiment = experiment_of(place)
    data = MRI().observations(place / "runs/small/prepare/observations.h5", experiment)
    images = read_images(laps / "lap_1" / "images.h5", data, {})
    torch.set_default_dtype(torch.float32)
    obs, drawn = data.batch(range(40)), images.batch(range(40)).y
    left = (obs.y - obs.operator.forward(drawn)).norm() / obs.y.norm()
    prior = pipeline.load(laps / "first", MRI(), experiment).sample(range(40))
    assert left < 0.3 and left < 0.5 * (obs.y - obs.operator.forward(prior)).norm() / obs.y.norm()


def test_laps_are_not_done_again(laps, place):
    before = {path: path.stat().st_mtime_ns for path in laps.rglob("*.safetensors")}
    run("em", *flags(place), "--em.clean", place / "runs/clean/prepare/references.h5")
    assert {path: path.stat().st_mtime_ns for path in laps.rglob("*.safetensors")} == before
    run("em", *flags(place), "--em.clean", place / "runs/clean/prepare/references.h5", "--em.laps", 3)
    assert (laps / "lap_3" / "model.json").exists()
    shutil.rmtree(laps / "lap_3")


def test_laps_of_other_options_are_not_mixed(laps, place, capsys):
    """Said before anything is trained: the laps that are there stay as they are."""

    def files():
        kept = [path for path in laps.rglob("*") if path.is_file() and path.name not in ("config.yaml", "lock")]
        return {path: path.stat().st_mtime_ns for path in kept}

    before = files()
    clean = ["--em.clean", place / "runs/clean/prepare/references.h5"]
    for flag, value in (("--em.count", 5), ("--em.first", 4800), ("--em.steps", 11), ("--sample.rho", 6)):
        run("em", *flags(place), *clean, flag, value, code=1)
        assert "holds a run with other settings" in capsys.readouterr().err
    assert files() == before


@pytest.mark.parametrize(
    ("name", "domain", "volume"), [("scan/3", MRI, "scan"), ("x/y/12", MRI, "x/y"), ("train/3", Natural, "train/3")]
)
def test_whose_an_image_is(name, domain, volume):
    assert domain().volume_of(name) == volume


@pytest.mark.parametrize("method", ["mmps", "dps"])
def test_em_on_photographs(method, tmp_path, capsys):
    np.savez(tmp_path / "pictures.npz", train=pictures(8), test=pictures(30)[8:])
    where = ["--data.images", tmp_path / "pictures.npz", "--data.size", 16, "--runs", tmp_path / "runs"]
    small = ["--network.channels", 8, "--network.multipliers", 1, 2, "--pretrain.batch", 4, "--objective.kind", "standard"]
    assert run_command(NATURAL, "prepare", *where, "--name", "clean", "--data.split", "test", "--data.missing", 0) == 0
    assert run_command(NATURAL, "prepare", *where, "--name", "x", *small) == 0
    options = ["--em.clean", tmp_path / "runs/clean/prepare/references.h5", "--em.count", 10, "--em.method", method]
    short = ["--em.first", 8, "--em.lap", 8, "--em.laps", 1, "--em.steps", 3]
    assert run_command(NATURAL, "em", *where, "--name", "x", *small, *options, *short) == 0
    assert load_description(tmp_path / "runs/x/em/lap_1").images == 8
    other = ["--data.size", 8, "--name", "other", "--data.split", "test", "--data.missing", 0]
    assert run_command(NATURAL, "prepare", *where, *other) == 0
    options[1] = tmp_path / "runs/other/prepare/references.h5"
    assert run_command(NATURAL, "em", *where, "--name", "x", *small, *options, *short, "--out", tmp_path / "em") == 1
    assert "0 clean images of 16 x 16, the size of the data" in " ".join(capsys.readouterr().err.split())


BAD = {
    "no clean images": ({}, 2, "name the references.h5 of other data with --em.clean"),
    "not there": ({"--em.clean": "nowhere.h5"}, 1, "nowhere.h5: no such file"),
    "too few": ({"--em.count": 50}, 1, "8 clean images of 16 x 16, the size of the data, and em.count asks for 50"),
    "overlap": ({"--em.clean": "small"}, 1, "have the names of what is learned from"),
    "masked": ({"--objective.kind": "ambient"}, 2, "objective.kind must be 'standard'"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_work_is_said(case, place, capsys):
    given, code, message = BAD[case]
    options = {"--em.clean": place / "runs/clean/prepare/references.h5", **given}
    if case == "no clean images":
        options = {}
    if options.get("--em.clean") == "small":
        options["--em.clean"] = place / "runs/small/prepare/references.h5"
    out = ["--out", place / "bad"]
    run("em", *flags(place), *out, *(part for pair in options.items() for part in pair), code=code)
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (place / "bad").exists()


def test_clean_images_of_another_brightness_are_refused(place, tmp_path, capsys):
    """K-space is divided by what its ACS lines hold: of other lines, other images."""
    shutil.copytree(place / "runs/clean/prepare", tmp_path / "clean")
    path = tmp_path / "clean/references.h5"
    with h5py.File(path, "r+") as file:
        file["16x16"].attrs["acs"] += 1
    run("em", *flags(place), "--em.clean", path, "--out", tmp_path / "em", code=1)
    assert "not equally bright" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "em").exists()


def test_images_are_drawn_in_batches_of_any_size(place, laps, tmp_path):
    """And a part says how long it took, which is what a comparison of methods needs."""
    clean = ["--em.clean", place / "runs/clean/prepare/references.h5"]
    run("em", *flags(place), *clean, "--em.at-once", 5, "--em.laps", 1, "--out", tmp_path)
    with h5py.File(tmp_path / "lap_1/images.h5") as fives, h5py.File(laps / "lap_1/images.h5") as all:
        assert np.allclose(fives["16x16/images"][()], all["16x16/images"][()], atol=1e-4)
    assert about(tmp_path / "lap_1/images.h5")["seconds"] > 0


def test_fewer_than_fifty_are_not_used_by_default():
    assert EMConfig().count == 50


def test_broken_draws_are_named(place, tmp_path, monkeypatch):
    def nowhere(self, data, asked, device):
        return lambda obs, samples: torch.full_like(obs.operator.adjoint(obs.y), float("nan")), {}

    shutil.copytree(place / "runs/small/prepare", tmp_path / "small/prepare")
    monkeypatch.setattr(MRI, "restorer", nowhere)
    with pytest.raises(UserError, match="NaN or infinity in the image of phantom_0000/0"):
        baselines.restore(dataclasses.replace(experiment_of(place), runs=tmp_path), MRI())
