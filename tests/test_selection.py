"""Choosing a checkpoint by a proximal distance: what is kept, when it ends, and that it goes on where it was stopped."""

import json

import h5py
import pytest
import torch
from commands import run_command

from rsdmri.checkpoints import load_tensors
from rsdmri.config import DistillConfig, PretrainConfig
from rsdmri.files import read_json
from rsdmri.logs import read_log
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.selection import Selection
from rsdmri.training import train

pytestmark = pytest.mark.xdist_group("selection")

SMALL = """
data: {accel: 4}
network: {channels: 8, multipliers: [1, 2], blocks: 1}
pretrain: {images: 80, batch: 8, log: 8, save: 48, ema: 100}
distill: {images: 64, batch: 8, log: 8, save: 1000, sigma_min: 0.02, ema: 100, select: swd, select_every: 16, select_n: 16}
sample: {n: 16, batch: 6, steps: 4}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with the prepared data of eight small phantom volumes, a teacher, and a distillation that was watched."""
    folder = tmp_path_factory.mktemp("selection")
    (folder / "small.yaml").write_text(SMALL)
    run("simulate", "--phantoms", "8", "--slices", "4", "--size", "16", "16", "--coils", "4", "--out", folder / "kspace")
    run("espirit", folder / "kspace", "--out", folder / "maps", "--workers", "1", "--calib", "12")
    for verb in ("prepare", "pretrain", "distill"):
        run(verb, *flags(folder))
    return folder


def flags(folder, *more):
    where = ["--config", folder / "small.yaml", "--runs", folder / "runs"]
    return [*where, "--data.kspace", folder / "kspace", "--data.maps", folder / "maps", *more]


def run(*arguments, code=0):
    assert run_command(APPLICATION, *arguments) == code


def lines_of(folder):
    return [json.loads(line) for line in (folder / "selection.jsonl").read_text().splitlines()]


def test_the_teacher_comes_first_and_every_average_after_it(place):
    lines = lines_of(place / "runs/small/distill")
    assert [(line["row"], line["images"]) for line in lines] == [("teacher", 0), *[("rsd", n) for n in (16, 32, 48, 64)]]
    assert all(line["n"] == 16 and {"swd", "psd"} == line["proximal"].keys() == line["true"].keys() for line in lines)
    clock = [line["seconds"] for line in lines]
    assert clock == sorted(clock)


def test_the_best_average_is_the_result(place):
    folder = place / "runs/small/distill"
    best = min((line for line in lines_of(folder) if line["row"] == "rsd"), key=lambda line: line["proximal"]["swd"])
    chosen = read_json(folder / "selection.json")
    assert chosen["images"] == best["images"] and chosen["value"] == best["proximal"]["swd"] and not chosen["stopped"]
    model, selected = (
        load_tensors(folder / "model.safetensors"),
        load_tensors(folder / f"selected_{best['images']:012d}.safetensors"),
    )
    assert all(torch.equal(model[name], selected[name]) for name in model)
    assert read_json(folder / "model.json")["images"] == 64


def test_its_distance_is_that_of_its_samples(place):
    """The verb evaluate, with as many images, finds the number by which the average was chosen."""
    run("sample", *flags(place))
    run("evaluate", *flags(place), "--evaluate.bootstrap", 0, "--evaluate.n", 16)
    rows = read_json(place / "runs/small/evaluate/metrics.json")["rows"]
    found = next(row for row in rows if row["name"] == "rsd")
    assert found["proximal"]["swd"]["value"] == pytest.approx(
        read_json(place / "runs/small/distill/selection.json")["value"], rel=1e-5
    )


def test_watching_changes_nothing(place, tmp_path):
    run("distill", *flags(place), "--distill.select", "", "--out", tmp_path / "plain")
    keys = ("loss_fake", "loss_generator")
    plain, watched = (read_log(path / "metrics.jsonl") for path in (tmp_path / "plain", place / "runs/small/distill"))
    assert [[line[key] for key in keys] for line in plain] == [[line[key] for key in keys] for line in watched]


def test_a_longer_run_goes_on_with_the_scores_it_has(place, tmp_path):
    out = tmp_path / "short"
    run("distill", *flags(place), "--distill.images", 32, "--out", out)
    before = (out / "selection.jsonl").read_text()
    run("distill", *flags(place), "--out", out)
    assert (out / "selection.jsonl").read_text().startswith(before)
    scores = [line["proximal"] for line in lines_of(out)]
    assert scores == [line["proximal"] for line in lines_of(place / "runs/small/distill")]


def test_patience_ends_a_run_and_more_of_it_goes_on(place, tmp_path, capsys):
    out = tmp_path / "patient"
    options = [*flags(place), "--out", out, "--distill.images", 4000, "--distill.lr-generator", 0.05, "--distill.patience"]
    run("distill", *options, 2)
    chosen = read_json(out / "selection.json")
    assert chosen["stopped"] and chosen["at"] - chosen["images"] == 32 and chosen["at"] < 4000
    log = (out / "metrics.jsonl").read_text()
    run("distill", *options, 2)  # there is nothing to do
    assert (out / "metrics.jsonl").read_text() == log
    run("distill", *options, 3)
    assert read_json(out / "selection.json")["at"] > chosen["at"]


def test_without_clean_images_it_is_the_same_choice(place, tmp_path):
    references = place / "runs/small/prepare/references.h5"
    hidden = references.rename(references.with_suffix(".hidden"))
    try:
        run("distill", *flags(place), "--out", tmp_path / "blind")
    finally:
        hidden.rename(references)
    blind, seeing = lines_of(tmp_path / "blind"), lines_of(place / "runs/small/distill")
    assert not any(line["true"] for line in blind)
    chosen = [read_json(folder / "selection.json") for folder in (tmp_path / "blind", place / "runs/small/distill")]
    assert [line["proximal"] for line in blind] == [line["proximal"] for line in seeing]
    assert chosen[0] == chosen[1]


class Judge:
    """Scores that are given."""

    n = 2

    def __init__(self, values):
        self.values = iter(values)

    def proximal(self, images, seeds):
        return {"swd": {"value": next(self.values)}}

    def true(self, images):
        return {}


def selection(folder, values, patience=0):
    config = DistillConfig(select="swd", select_every=10, patience=patience)
    return Selection(folder, config, Judge(values), lambda average: torch.zeros(2), {})


def average(value):
    return {"w": torch.full((1,), float(value))}


def test_the_first_of_equal_ones_is_kept_and_patience_counts_from_the_best(tmp_path):
    watch = selection(tmp_path, [5.0, 3.0, 3.0, 4.0, 2.0], patience=3)
    watch.begin(0)
    assert [watch(10 * k, k, average(k))[0] for k in (1, 2, 3, 4)] == [False] * 4
    assert watch.selected()["w"].item() == 2
    assert not watch(50, 5, average(5))[0]  # a better one: patience begins anew
    assert watch.selected()["w"].item() == 5
    assert watch.lines[-1]["images"] == 50


def test_scores_behind_the_checkpoint_are_made_again(tmp_path):
    first = selection(tmp_path, [5.0, 4.0, 3.0])
    first.begin(0)
    for k in (1, 2, 3):
        first(10 * k, k, average(k))
    again = selection(tmp_path, [6.0])
    again.begin(20)
    assert [line["images"] for line in again.lines] == [10, 20]


def test_weights_are_those_of_the_chosen_line_whenever_it_is_killed(tmp_path):
    """Killed behind a look and before its checkpoint: the look is made again, and what it was better than is still there."""
    first = selection(tmp_path, [5.0, 4.0, 3.0])
    first.begin(0)
    for k in (1, 2, 3):
        first(10 * k, k, average(k))
    again = selection(tmp_path, [6.0])  # scored otherwise than before, as on another machine
    assert again.begin(20) == 20
    again(30, 3, average(7))
    assert read_json(tmp_path / "selection.json")["images"] == 20 and again.selected()["w"].item() == 2


def test_only_weights_that_may_be_chosen_are_kept(tmp_path):
    watch = selection(tmp_path, [5.0, 4.0, 6.0, 3.0, 7.0])
    watch.begin(0)
    for k in range(1, 6):
        watch(10 * k, k, average(k))
    assert [path.name for path in tmp_path.glob("selected_*")] == ["selected_000000000040.safetensors"]


class Looking:
    """A watch that notes when it looks, and is over after so many looks."""

    every = 30

    def __init__(self, looks, most=99):
        self.looks, self.most = looks, most

    @property
    def over(self):
        return len(self.looks) >= self.most

    def begin(self, images):
        return max((look for look in self.looks if look <= images), default=0)

    def __call__(self, images, seconds, average):
        self.looks.append(images)
        return self.over, {}


class Still:
    """A step that learns nothing, and calls ``when`` at some images."""

    def __init__(self, when=lambda images: None):
        self.model, self.when = torch.nn.Linear(1, 1), when

    def __call__(self, images, generators):
        self.when(images)
        return {"loss": torch.tensor(1.0)}

    def state_dict(self):
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])


def looked(folder, looks, when=lambda images: None, most=99):
    options = PretrainConfig(images=100, batch=10, log=10, save=10)
    watch = Looking(looks, most)
    return train(Still(when), options, folder, seed=0, device=torch.device("cpu"), stage="test", watch=watch)[1]


def stop_at(number):
    def when(images):
        if images == number:
            raise KeyboardInterrupt

    return when


def test_a_run_that_is_stopped_again_and_again_is_looked_at_as_often(tmp_path):
    looks = []
    for number in (20, 40, 50, 80):
        with pytest.raises(KeyboardInterrupt):
            looked(tmp_path / "stopped", looks, stop_at(number))
    looked(tmp_path / "stopped", looks)
    whole = []
    looked(tmp_path / "whole", whole)
    assert looks == whole == [30, 60, 90, 100]


def test_a_run_that_was_over_does_not_go_on(tmp_path):
    looks = []
    assert looked(tmp_path, looks, most=2) == 60
    assert looked(tmp_path, looks, stop_at(60), most=2) == 60 and looks == [30, 60]


def test_other_scores_than_it_began_with_are_refused(place, tmp_path, capsys):
    out = tmp_path / "run"
    run("distill", *flags(place), "--distill.images", 32, "--out", out)
    for changed in (["--distill.select", "psd"], ["--distill.select-n", 20]):
        run("distill", *flags(place), *changed, "--out", out, code=1)
        assert "holds a run with other settings" in capsys.readouterr().err


def test_by_default_there_are_twenty_looks(tmp_path):
    assert Selection(tmp_path, DistillConfig(select="swd", images=4000), Judge([]), None, {}).every == 200


def test_limits_are_said():
    with pytest.raises(ValueError, match="patience needs"):
        DistillConfig(patience=2)
    with pytest.raises(ValueError, match="select_n at least 16"):
        DistillConfig(select="swd", select_n=4)


def test_too_few_observations_are_said_before_the_training(place, tmp_path):
    path = place / "runs/small/prepare/observations.h5"
    kept = path.read_bytes()
    try:
        with h5py.File(path, "a") as file:
            group = file["coils_4_16x16"]
            for name in list(group):
                data = group[name][:20]
                del group[name]
                group[name] = data
        run("distill", *flags(place), "--out", tmp_path / "few", code=1)
    finally:
        path.write_bytes(kept)
    assert not (tmp_path / "few" / "metrics.jsonl").exists()
