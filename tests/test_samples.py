"""Sampling that was stopped goes on, does not hold what it makes in memory, and uses nothing that another model made."""

import dataclasses
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
import torch

from rsdmri import samples
from rsdmri.config import Experiment, SampleConfig
from rsdmri.errors import UserError
from rsdmri.samples import read_samples, write_samples


class Drawing:
    """A model whose images are functions of their seeds; it counts what it makes and stops after ``last`` images."""

    calls = 1
    description = SimpleNamespace(role="generator", complex_images=True)

    def __init__(self, run, n=10, last=None, weight=1.0, complex_images=True, **options):
        self.run, self.last, self.made = run, last, []
        self.complex_images = complex_images
        self.experiment = dataclasses.replace(Experiment(), sample=SampleConfig(n=n, batch=2, **options))
        self.denoiser = torch.nn.Linear(1, 1, bias=False)
        self.denoiser.bf16 = False
        torch.nn.init.constant_(self.denoiser.weight, weight)

    def sample(self, seeds, options=None):
        if self.last is not None and len(self.made) >= self.last:
            raise KeyboardInterrupt
        self.made += seeds
        pixels = torch.stack([torch.full((1, 3, 4), float(seed)) for seed in seeds]) * self.denoiser.weight.item()
        return torch.complex(pixels, -pixels) if self.complex_images else pixels.expand(-1, 3, -1, -1)


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(samples, "PART_SECONDS", -1.0)  # every batch is a part


@pytest.mark.parametrize("complex_images", [True, False])
def test_what_was_made_before_is_not_made_again(complex_images, tmp_path):
    path = tmp_path / "out" / "samples.h5"
    with pytest.raises(KeyboardInterrupt):
        write_samples(Drawing(tmp_path, last=6, complex_images=complex_images), path, "sample")
    assert not path.exists() and len(list((path.parent / ".samples.parts").glob("part_*.h5"))) == 3
    again = Drawing(tmp_path, complex_images=complex_images)
    write_samples(again, path, "sample")
    assert again.made == [0, 6, 7, 8, 9]  # the first call is set-up
    whole = Drawing(tmp_path, complex_images=complex_images)
    write_samples(whole, tmp_path / "whole.h5", "sample")
    (found, about), (expected, _) = read_samples(path), read_samples(tmp_path / "whole.h5")
    assert torch.equal(found, expected) and found[9].real.max() == 9
    assert about["seeds"] == list(range(10)) and about["seconds_per_image"] > 0 and about["batch"] == 2
    assert [file.name for file in path.parent.iterdir()] == ["samples.h5"]
    assert len(read_samples(path, 3)[0]) == len(read_samples(path, 3)[1]["seeds"]) == 3


@pytest.mark.parametrize("other", [{"weight": 2.0}, {"steps": 7}, {"first_seed": 1}], ids=str)
def test_parts_of_another_model_or_way_are_not_used(other, tmp_path):
    path = tmp_path / "samples.h5"
    with pytest.raises(KeyboardInterrupt):
        write_samples(Drawing(tmp_path, last=6), path, "sample")
    again = Drawing(tmp_path, **other)
    write_samples(again, path, "sample")
    assert len(again.made) == 11
    assert read_samples(path)[0][0].real.max() == other.get("first_seed", 0) * other.get("weight", 1.0)


def test_parts_of_the_same_weights_described_otherwise_are_not_used(tmp_path):
    """An imported network may be a teacher or a generator, by its model.json alone."""
    path = tmp_path / "out" / "samples.h5"
    (tmp_path / "model.json").write_text('{"role": "teacher"}')
    with pytest.raises(KeyboardInterrupt):
        write_samples(Drawing(tmp_path, last=6), path, "sample")
    (tmp_path / "model.json").write_text('{"role": "generator"}')
    again = Drawing(tmp_path)
    write_samples(again, path, "sample")
    assert len(again.made) == 11


def test_more_images_than_were_asked_for_before(tmp_path):
    path = tmp_path / "samples.h5"
    with pytest.raises(KeyboardInterrupt):
        write_samples(Drawing(tmp_path, n=5, last=5), path, "sample")
    with h5py.File(path.parent / ".samples.parts/part_000000000004.h5", "w") as file:  # the last, incomplete batch of five
        file["images"] = np.zeros((1, 3, 4), np.complex64)
        with h5py.File(path.parent / ".samples.parts/part_000000000002.h5") as part:
            file.attrs.update(part.attrs)
    again = Drawing(tmp_path, n=8)
    write_samples(again, path, "sample")
    assert again.made[1:] == [4, 5, 6, 7] and read_samples(path)[0][4].real.max() == 4


def test_broken_parts_are_made_again(tmp_path):
    path = tmp_path / "samples.h5"
    with pytest.raises(KeyboardInterrupt):
        write_samples(Drawing(tmp_path, last=6), path, "sample")
    (tmp_path / ".samples.parts/part_000000000002.h5").write_bytes(b"broken")
    again = Drawing(tmp_path)
    write_samples(again, path, "sample")
    assert again.made[1:] == list(range(2, 10)) and read_samples(path)[0][2].real.max() == 2


def test_a_model_that_has_diverged_is_named_at_once(tmp_path):
    model = Drawing(tmp_path, weight=float("nan"))
    with pytest.raises(UserError, match="NaN or infinity"):
        write_samples(model, tmp_path / "samples.h5", "sample")
    assert model.made == [0, 0, 1]
