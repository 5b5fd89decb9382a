"""A run that is told to stop saves what it has; the same command goes on as if nothing had happened."""

import os
import signal
import threading
import time

import pytest
import torch
from commands import run_command

from rsdmri import cli, interrupts, pipeline
from rsdmri.checkpoints import load_resume
from rsdmri.config import PretrainConfig
from rsdmri.errors import UserError
from rsdmri.interrupts import Interrupted, stop_requests
from rsdmri.logs import read_log
from rsdmri.mri.__main__ import APPLICATION
from rsdmri.training import train


class Drawing:
    """A step whose weight walks at random, and which calls ``when`` at some images."""

    def __init__(self, when=lambda images: None):
        self.model, self.when = torch.nn.Linear(1, 1, bias=False), when
        with torch.no_grad():
            self.model.weight.zero_()

    def __call__(self, images, generators):
        self.when(images)
        with torch.no_grad():
            self.model.weight += torch.randn(1, generator=generators[0])
        return {"loss": self.model.weight.detach().clone().squeeze()}

    def state_dict(self):
        return {"model": self.model.state_dict()}

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])


def trained(folder, when=lambda images: None, watch=None, **options):
    config = PretrainConfig(**{"images": 100, "batch": 10, "log": 20, "save": 1000, **options})
    return train(Drawing(when), config, folder, seed=0, device=torch.device("cpu"), stage="test", watch=watch)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_at_the_next_line_of_the_log_and_nothing_is_lost(number, tmp_path):
    with pytest.raises(Interrupted, match=rf"{number.name} came; stopped after 60 images"):
        trained(tmp_path / "stopped", lambda images: os.kill(os.getpid(), number) if images == 40 else None)
    assert load_resume(tmp_path / "stopped")[1]["images"] == 60
    again, _ = trained(tmp_path / "stopped")
    whole, _ = trained(tmp_path / "whole")
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    losses = [[line["loss"] for line in read_log(tmp_path / name / "metrics.jsonl")] for name in ("stopped", "whole")]
    assert losses[0] == losses[1]


def test_a_signal_in_the_last_step_changes_nothing(tmp_path):
    _, images = trained(tmp_path, lambda images: os.kill(os.getpid(), signal.SIGUSR1) if images == 90 else None)
    assert images == 100


def test_minutes_are_enough_for_a_checkpoint(tmp_path):
    steps = []

    def stop(images):
        steps.append(images)
        if images == 50:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, stop, save_minutes=1e-9)
    assert load_resume(tmp_path)[1]["images"] == 40


def test_handlers_are_put_back_and_a_second_signal_is_theirs(monkeypatch):
    caught = []
    before = signal.signal(signal.SIGUSR1, lambda *_: caught.append("own"))
    try:
        with stop_requests() as request:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert request.signal == "SIGUSR1" and not caught
            os.kill(os.getpid(), signal.SIGUSR1)
            assert not caught  # the same one, handed on twice
            monkeypatch.setattr(interrupts, "REPEATED", -1.0)
            os.kill(os.getpid(), signal.SIGUSR1)
            assert caught == ["own"]
        os.kill(os.getpid(), signal.SIGUSR1)
        assert caught == ["own", "own"]
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_ends_a_command_wherever_it_is(monkeypatch, capsys, tmp_path):
    """Before, between and after trainings, too: a job is queued again by the code."""

    def waiting(*_):
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            time.sleep(10)
        except Exception:
            pytest.fail("taken for an error of what was at work")

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(pipeline, "sample", waiting)
    assert run_command(APPLICATION, "sample", "--runs", tmp_path) == 75
    assert "SIGTERM came; what was finished is kept" in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) is before


class Looking:
    """A watch that is told how often it looked."""

    every, over = 10, False

    def __init__(self):
        self.looks = []

    def begin(self, images):
        return min(images, 40)  # the last look

    def __call__(self, images, seconds, average):
        self.looks.append(images)
        return False, {}


def test_who_is_told_to_stop_does_not_look_first(tmp_path):
    watch = Looking()
    with pytest.raises(Interrupted):
        trained(tmp_path, lambda images: os.kill(os.getpid(), signal.SIGUSR1) if images == 50 else None, watch=watch)
    assert watch.looks == [20, 40] and load_resume(tmp_path)[1]["images"] == 60
    again = Looking()
    trained(tmp_path, watch=again)
    assert again.looks == [60, 80, 100]  # those of a training that nobody stopped


def test_a_signal_during_a_look_stops_after_it(tmp_path):
    class Long(Looking):
        def __call__(self, images, seconds, average):
            if images == 40:
                os.kill(os.getpid(), signal.SIGUSR1)
            return super().__call__(images, seconds, average)

    watch = Long()
    with pytest.raises(Interrupted, match="stopped after 40 images"):
        trained(tmp_path, watch=watch)
    assert watch.looks == [20, 40] and load_resume(tmp_path)[1]["images"] == 40


def test_a_damaged_checkpoint_is_left_out_and_the_one_before_it_serves(tmp_path, capsys):
    whole, _ = trained(tmp_path / "whole")
    with pytest.raises(Interrupted):
        trained(tmp_path / "x", lambda images: os.kill(os.getpid(), signal.SIGUSR1) if images == 70 else None, save=20)
    resume = tmp_path / "x" / "resume"
    assert [path.name for path in sorted(resume.iterdir())] == ["step_000000000060", "step_000000000080"]
    state = resume / "step_000000000080" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-4])
    (resume / ".step_000000000100.7.tmp").mkdir()
    again, _ = trained(tmp_path / "x")
    error = capsys.readouterr().err
    assert "step_000000000100.7.tmp: half written" in error and f"damaged checkpoint, left out: {state}" in error
    assert all(torch.equal(again[name], whole[name]) for name in whole)
    assert read_log(tmp_path / "x" / "metrics.jsonl")[-1]["images"] == 100
    assert sorted(path.name for path in resume.iterdir()) == ["step_000000000060", "step_000000000100"]  # both are whole
    for path in resume.glob("*/progress.json"):
        path.write_text("{}")
    with pytest.raises(UserError, match=r"step_000000000100/progress.json: not the progress.*delete .*resume to begin again"):
        load_resume(tmp_path / "x")


def test_other_threads_train_without_listening():
    found = []

    def use():
        with stop_requests() as request:
            found.append(request.signal)

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    assert found == [""]


def test_the_command_says_so_and_ends_with_a_code_of_its_own(monkeypatch, capsys, tmp_path):
    def stopped(*_):
        raise Interrupted("pretrain: SIGUSR1 came; stopped after 60 images, all kept. The same command goes on.")

    monkeypatch.setattr(pipeline, "pretrain", stopped)
    assert run_command(APPLICATION, "pretrain", "--runs", tmp_path) == 75
    assert "SIGUSR1 came" in capsys.readouterr().err
    assert cli.run.__doc__ and "75" in cli.run.__doc__


def test_limits_are_said():
    with pytest.raises(ValueError, match="save_minutes"):
        PretrainConfig(save_minutes=0.0)
