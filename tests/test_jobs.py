"""Many files: failures, resuming, shards, processes."""

import operator
import os
import time
from functools import partial, reduce

import pytest

from rsdmri.errors import UsageError, UserError
from rsdmri.jobs import run_files, shard


def work(item, out):
    """Writes a file; three inputs do not let it."""
    if item.name == "kills":
        os._exit(9)
    if item.name == "wrong":
        raise UserError(f"{item}: not a scan")
    if item.name == "defect":
        return str(1 // 0)
    (out / item.name).write_text("done")
    return item.name


def is_done(item, out):
    return (out / item.name).exists()


def items(folder, *names):
    return [folder / name for name in names]


@pytest.mark.parametrize("workers", [1, 2])
def test_failures_are_listed_after_the_others_are_done(tmp_path, workers):
    inputs = items(tmp_path / "in", "a", "wrong", "b", "defect", "c")
    with pytest.raises(UserError) as error:
        run_files(partial(work, out=tmp_path), inputs, workers=workers, stage="test")
    first, *listed = str(error.value).splitlines()
    assert first.startswith("2 of 5 files failed")
    assert listed[0] == f"{inputs[1]}: not a scan"
    assert listed[1].startswith(f"{inputs[3]}: ZeroDivisionError") and "test_jobs.py, line" in listed[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c"]


def test_done_ones_are_skipped_and_an_interrupt_loses_nothing(tmp_path, capsys):
    inputs = items(tmp_path / "in", *"abcd")
    seen = []

    def stopped(item):
        if item.name == "c" and "c" not in seen:
            seen.append("c")
            raise KeyboardInterrupt
        seen.append(item.name)
        return work(item, tmp_path)

    done = partial(is_done, out=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run_files(stopped, inputs, workers=1, stage="test", done=done)
    run_files(stopped, inputs, workers=1, stage="test", done=done)
    assert seen == ["a", "b", "c", "c", "d"]
    assert "4/4 files" in capsys.readouterr().err


def test_no_files():
    run_files(str, [], workers=0, stage="test")


def test_workers_leave_the_environment_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    run_files(threads, ["OMP_NUM_THREADS", "MKL_NUM_THREADS"], workers=2, stage="test")
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "MKL_NUM_THREADS" not in os.environ


def threads(name):
    import torch

    if os.environ[name] != "1" or torch.get_num_threads() != 1:
        raise UserError(f"{name} {os.environ[name]}, torch {torch.get_num_threads()}")
    return name


@pytest.mark.slow
def test_only_the_file_that_kills_its_process_fails(tmp_path):
    inputs = items(tmp_path / "in", "a", "b", "kills", "c", "d", "wrong")
    with pytest.raises(UserError) as error:
        run_files(partial(work, out=tmp_path), inputs, workers=2, stage="test")
    assert str(error.value).splitlines()[1:] == [
        f"{inputs[2]}: its process was killed (out of memory?). Free some and run again.",
        f"{inputs[5]}: not a scan",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "d"]


@pytest.mark.slow
def test_an_interrupt_does_not_wait_for_what_has_not_begun(tmp_path):
    class Impatient(Exception):
        pass

    def no_more(*_):
        raise Impatient

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rsdmri.progress.Progress.update", no_more)
        began = time.monotonic()
        with pytest.raises(Impatient):
            run_files(slow, range(200), workers=2, stage="test")
        assert time.monotonic() - began < 60


def slow(item):
    time.sleep(1)
    return str(item)


def test_shards():
    files = list(range(10))
    parts = [shard(files, f"{i}/3") for i in range(3)]
    assert sorted(reduce(operator.iadd, parts, [])) == files
    assert parts[1] == [1, 4, 7]
    for wrong in ("3/3", "-1/2", "1", "a/b", "0/0"):
        with pytest.raises(UsageError, match="--shard"):
            shard(files, wrong)
