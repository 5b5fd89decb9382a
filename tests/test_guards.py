"""A training that goes wrong stops with its cause and keeps its last good state; one broken batch does not stop it."""

import json

import pytest
import torch

from rsdmri.config import PretrainConfig
from rsdmri.errors import UserError
from rsdmri.logs import gone_wrong
from rsdmri.steps import spread
from rsdmri.training import adam_state, descend, load_adam_state, train

OPTIONS = PretrainConfig(images=64, batch=4, log=16, save=16)


class Regression:
    """Steps on one weight, of which ``broken(images)`` says what the batch is multiplied by."""

    def __init__(self, broken=lambda images: 1.0, more=lambda images: {}):
        torch.manual_seed(0)
        self.model = torch.nn.Linear(3, 1)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=0.01, fused=True)
        self.broken, self.more = broken, more

    def __call__(self, images, generators):
        def loss(generator):
            value = self.model(self.broken(images) * torch.randn(4, 3, generator=generator)).square().mean()
            return value, {"loss": value}

        return {**descend(self.optimizer, loss, generators, 1.0, "gradient"), **self.more(images)}

    def state_dict(self):
        return {"model": self.model.state_dict(), "adam": adam_state(self.optimizer)}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        load_adam_state(self.optimizer, state["adam"])


def run(step, folder):
    return train(step, OPTIONS, folder, seed=0, device=torch.device("cpu"), stage="test")


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_broken_batch_is_dropped_and_counted(tmp_path, value, capsys):
    step = Regression(lambda images: value if images == 24 else 1.0)
    weights, images = run(step, tmp_path)
    assert images == 64
    assert all(w.isfinite().all() for w in (*weights.values(), *step.model.parameters()))
    found = lines(tmp_path)
    assert [line.get("dropped") for line in found] == [None, 1, None, None]
    assert all(torch.tensor(line["loss"]).isfinite() for line in found)


def test_what_stays_broken_stops_and_keeps_the_last_good_state(tmp_path):
    with pytest.raises(UserError, match=r"stopped at 48 images: loss, gradient: not finite in 4 of 4 steps.*resume"):
        run(Regression(lambda images: float("nan") if images >= 32 else 1.0), tmp_path)
    assert len(lines(tmp_path)) == 2
    assert sorted(kept.name for kept in (tmp_path / "resume").iterdir()) == ["step_000000000016", "step_000000000032"]
    weights, images = run(Regression(), tmp_path)  # goes on where all was well
    assert images == 64
    assert all(w.isfinite().all() for w in weights.values())


def test_a_generator_that_collapses_stops(tmp_path):
    shrinking = Regression(more=lambda images: {"spread": torch.tensor(1.0 if images < 32 else 1e-3)})
    with pytest.raises(UserError, match=r"stopped at 48 images: the generator has collapsed: its images differ by 0.001"):
        run(shrinking, tmp_path)
    assert (tmp_path / "resume/step_000000000032").exists()
    with pytest.raises(UserError, match="has collapsed"):  # it is remembered what the images were before
        run(shrinking, tmp_path)


def test_a_gradient_that_explodes():
    before = {"gradient_fake": [1.0 + i for i in range(6)]}
    assert gone_wrong(before, {"gradient_fake": 1e3}) is None
    assert gone_wrong({"gradient_fake": before["gradient_fake"][:3]}, {"gradient_fake": 1e6}) is None  # too early to say
    assert "gradient_fake has exploded: its norm is 1e+06, and usually is 4" in gone_wrong(before, {"gradient_fake": 1e6})
    assert gone_wrong({}, {"spread": 0.0}) is None


def test_spread_is_the_deviation_of_images_from_each_other(generator):
    x = torch.randn(5000, 1, 2, 3, dtype=torch.complex128, generator=generator) * (0.3 * 2**0.5) + 7
    assert spread(x).item() == pytest.approx(0.3, rel=0.02)
    assert spread(x[:1].expand(8, -1, -1, -1)).item() == pytest.approx(0, abs=1e-12)
