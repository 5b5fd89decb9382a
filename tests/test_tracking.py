"""Dashboards are told what metrics.jsonl says; one that is not installed is said before anything is trained."""

import sys
import types

import pytest
import torch

from rsdmri.config import Experiment, PretrainConfig
from rsdmri.errors import UserError
from rsdmri.logs import read_log
from rsdmri.tracking import followers
from rsdmri.training import train


class Counting:
    """A step without a network to speak of."""

    def __init__(self):
        self.model = torch.nn.Linear(1, 1)

    def __call__(self, images, generators):
        return {"loss": torch.tensor(float(images)), "gradient": torch.tensor(1.0)}

    def state_dict(self):
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])


def trained(folder, follow, images=40):
    options = PretrainConfig(images=images, batch=10, log=10, save=20)
    return train(Counting(), options, folder, seed=0, device=torch.device("cpu"), stage="test", follow=follow)


def test_every_line_is_told_with_the_images_it_was_seen_at(tmp_path):
    told, starts = [], []

    def follow(start):
        starts.append(start)
        return [lambda images, values: told.append((images, dict(values)))]

    trained(tmp_path, follow, 20)
    trained(tmp_path, follow)
    lines = read_log(tmp_path / "metrics.jsonl")
    assert [images for images, _ in told] == [line["images"] for line in lines] == [10, 20, 30, 40]
    assert [values["loss"] for _, values in told] == [line["loss"] for line in lines]
    assert starts == [0, 20]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_package_that_is_not_there_is_named(name, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(UserError, match=rf"pip install 'rsdmri\[{name}\]'"):
        followers(Experiment(track=(name,)), tmp_path, 0)


def test_wandb_stays_offline_unless_told_otherwise(tmp_path, monkeypatch):
    calls = []
    run = types.SimpleNamespace(log=lambda values, step: calls.append((values, step)))
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **options: calls.append(options) or run))
    monkeypatch.delenv("WANDB_MODE", raising=False)
    (follow,) = followers(Experiment(name="x", track=("wandb",)), tmp_path / "pretrain", 0)
    follow(10, {"loss": 2.0})
    assert calls[0]["mode"] == "offline" and calls[0]["dir"] == str(tmp_path / "pretrain") and calls[0]["name"] == "x-pretrain"
    assert calls[1] == ({"images": 10, "loss": 2.0}, 10)


def test_tensorboard_reads_what_was_told(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trained(tmp_path, lambda start: followers(Experiment(track=("tensorboard",)), tmp_path, start), 20)
    trained(tmp_path, lambda start: followers(Experiment(track=("tensorboard",)), tmp_path, start))
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(10, 0.0), (20, 10.0), (30, 20.0), (40, 30.0)]
