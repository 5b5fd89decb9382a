"""Two processes on this machine train what one does, stop together, and fail together. Small networks, real commands."""

import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack

import h5py
import numpy as np
import pytest
import torch
from commands import run_command

from rsdmri.checkpoints import load_tensors, save_tensors
from rsdmri.distributed import doubled
from rsdmri.logs import read_log
from rsdmri.mri.__main__ import APPLICATION

pytestmark = pytest.mark.xdist_group("distributed")

OPTIONS = {
    "device": "cpu",
    "data.accel": 2,
    "data.acs": 2,
    "data.noise-std": 0,
    "network.channels": 8,
    "network.multipliers": (1, 2),
    "compute.precision": "fp32",
    "pretrain.images": 160,  # 20 steps
    "pretrain.batch": 8,
    "pretrain.log": 16,
    "pretrain.save": 32,
    "distill.images": 160,
    "distill.batch": 8,
    "distill.log": 16,
    "distill.save": 32,
    "sample.n": 7,
    "sample.batch": 2,
    "sample.steps": 4,
}
RUNNER = """
import json, os, sys
from rsdmri import cli
from rsdmri.mri.__main__ import APPLICATION
for line, port in zip(*json.loads(sys.argv[1])):
    os.environ["MASTER_PORT"] = port  # steps of a job have ports of their own
    code = cli.run(APPLICATION, line)
    if code:
        sys.exit(code)
"""
PATIENCE = 240  # seconds until a test gives up


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Scans and maps, made once."""
    folder = tmp_path_factory.mktemp("scans")
    assert run_command(APPLICATION, "simulate", "--phantoms", 4, "--size", 16, 16, "--slices", 4, "--out", folder / "kspace") == 0
    assert run_command(APPLICATION, "espirit", folder / "kspace", "--out", folder / "maps") == 0
    return folder


def line(scans, verb, runs, **changed):
    """A command line; ``pretrain__images=80`` changes --pretrain.images."""
    options = OPTIONS | {name.replace("__", ".").replace("_", "-"): value for name, value in changed.items()}
    found = [verb, "--data.kspace", scans / "kspace", "--data.maps", scans / "maps", "--runs", runs, "--name", "x"]
    for name, value in options.items():
        found += [f"--{name}", *(value if isinstance(value, tuple) else (value,))]
    return [str(word) for word in found]


def alone(*lines):
    for words in lines:
        assert run_command(APPLICATION, *words) == 0


def ports(count):
    """Free ones."""
    with ExitStack() as stack:
        found = [stack.enter_context(socket.socket()) for _ in range(count)]
        for free in found:
            free.bind(("localhost", 0))
        return [str(free.getsockname()[1]) for free in found]


def start(*lines, of_second=None, folders=(None, None)):
    """Two processes as srun starts them; each runs its command lines, one after the other (``of_second``: others for the second one)."""
    where = ports(len(lines))
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "", "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", RUNNER, json.dumps([mine, where])],
            cwd=folders[rank],
            env={**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, mine in enumerate((lines, of_second or lines))
    ]


def finish(processes):
    """Exit codes and what each wrote; none is left behind."""
    try:
        said = [process.communicate(timeout=PATIENCE) for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def log_of(runs, verb):
    return read_log(runs / "x" / verb / "metrics.jsonl")


def assert_same(found, expected, rtol=2e-4):
    """Two logs of the same steps, to the rounding of single precision over 20 of them."""
    assert [entry["images"] for entry in found] == [entry["images"] for entry in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"images", "seconds", "spread"}:  # that is estimated within each part
            assert one[name] == pytest.approx(other[name], rel=rtol), name


@pytest.fixture(scope="module")
def one(scans, tmp_path_factory):
    """Both phases by one process."""
    runs = tmp_path_factory.mktemp("one")
    alone(*(line(scans, verb, runs) for verb in ("prepare", "pretrain", "distill", "sample")))
    return runs


def prepared(scans, runs):
    alone(line(scans, "prepare", runs))
    return runs


def test_two_processes_are_one(scans, one, tmp_path):
    """Losses, gradients and images of both phases; half of the batch each, in two parts each."""
    runs = prepared(scans, tmp_path)
    lines = [line(scans, verb, runs, pretrain__parts=2, distill__parts=2) for verb in ("pretrain", "distill", "sample")]
    codes, said = finish(start(*lines))
    assert codes == [0, 0], said
    for verb in ("pretrain", "distill"):
        assert_same(log_of(runs, verb), log_of(one, verb))
    assert said[1] == ("", "")  # the second one is not heard
    assert len(said[0][0].splitlines()) == 3 and "160/160 images" in said[0][1]
    with h5py.File(runs / "x/distill/samples.h5") as two, h5py.File(one / "x/distill/samples.h5") as single:
        assert two["seeds"][()].tolist() == single["seeds"][()].tolist() == list(range(7))
        assert np.abs(two["images"][()] - single["images"][()]).max() < 1e-3 * np.abs(single["images"][()]).max()


def test_split_weights_are_whole_ones(scans, one, tmp_path):
    """FSDP2: the losses of one process in both phases, stopped in between by one that goes on with its checkpoint."""
    runs = prepared(scans, tmp_path)
    half = {"pretrain__images": 80, "distill__images": 80}
    split = {"compute__sharded": (), "distill__parts": 2}
    codes, said = finish(start(line(scans, "pretrain", runs, **half, **split)))
    assert codes == [0, 0], said
    alone(line(scans, "pretrain", runs))  # whole, from what was saved in parts
    codes, said = finish(start(*(line(scans, "distill", runs, **more, **split) for more in (half, {}))))  # in parts from parts
    assert codes == [0, 0], said
    for verb in ("pretrain", "distill"):
        assert_same(log_of(runs, verb), log_of(one, verb))
    found, expected = (load_tensors(folder / "x/distill/model.safetensors") for folder in (runs, one))
    assert found.keys() == expected.keys()
    assert all(torch.allclose(found[name], expected[name], rtol=1e-3, atol=1e-4) for name in found)


@pytest.mark.slow
def test_the_same_model_gives_the_same_images_to_any_number_of_processes(scans, one, tmp_path):
    model = one / "x/distill"
    for run, name in ((model, "generator"), (one / "x/pretrain", "teacher")):
        words = line(scans, "sample", one)
        alone([*words, "--run", str(run), "--out", str(tmp_path / f"{name}1")])
        codes, said = finish(start([*words, "--run", str(run), "--out", str(tmp_path / f"{name}2")]))
        assert codes == [0, 0], said
        images = []
        for number in (1, 2):
            with h5py.File(tmp_path / f"{name}{number}" / "samples.h5") as file:
                images.append(file["images"][()])
        assert np.array_equal(*images)


@pytest.mark.slow
@pytest.mark.parametrize("first", [1, 2])
@pytest.mark.parametrize("verb", ["pretrain", "distill"])
def test_another_number_of_processes_goes_on(verb, first, scans, one, tmp_path):
    """Half of a training by one process and the rest by two, and the reverse."""
    runs = prepared(scans, tmp_path)
    if verb == "distill":
        shutil.copytree(one / "x/pretrain", runs / "x/pretrain")
    for processes, images in ((first, 80), (3 - first, 160)):
        words = line(scans, verb, runs, **{f"{verb}__images": images})
        if processes == 1:
            alone(words)
        else:
            codes, said = finish(start(words))
            assert codes == [0, 0], said
    assert_same(log_of(runs, verb), log_of(one, verb))


def wait_for(condition):
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "nothing happened"
        time.sleep(0.05)


LONG = {"pretrain__images": 1_600_000, "pretrain__log": 8}


@pytest.mark.parametrize("told", [(1,), pytest.param((0, 1, 0, 1), marks=pytest.mark.slow)], ids=["one", "all, twice"])
def test_a_signal_stops_all_at_the_same_step(told, scans, tmp_path):
    """To one process; or to all, and once more by their launcher."""
    runs = prepared(scans, tmp_path)
    path = runs / "x/pretrain/metrics.jsonl"
    processes = start(line(scans, "pretrain", runs, **LONG))
    wait_for(lambda: path.exists() and len(path.read_text().splitlines()) >= 3)
    for number in told:
        processes[number].send_signal(signal.SIGUSR1)
    codes, said = finish(processes)
    assert codes == [75, 75], said
    assert "SIGUSR1 came" in said[0][1] and not said[1][1]
    resume = max((runs / "x/pretrain/resume").iterdir())
    seen = int(resume.name.removeprefix("step_"))
    assert seen == log_of(runs, "pretrain")[-1]["images"]
    alone(line(scans, "pretrain", runs, pretrain__images=seen + 16, pretrain__log=8))
    assert [entry["images"] for entry in log_of(runs, "pretrain")] == list(range(8, seen + 17, 8))


@pytest.mark.slow
def test_a_killed_process_ends_the_others_and_what_was_saved_is_kept(scans, tmp_path):
    runs = prepared(scans, tmp_path)
    processes = start(line(scans, "pretrain", runs, **LONG))
    wait_for(lambda: list((runs / "x/pretrain").glob("resume/step_*")))
    processes[1].send_signal(signal.SIGKILL)
    codes, said = finish(processes)
    assert codes == [1, -signal.SIGKILL], said
    assert "another of 2 processes has ended, or does not answer" in said[0][1] and "Traceback" not in said[0][1]
    saved = max((runs / "x/pretrain/resume").glob("step_*")).name
    length = {"pretrain__images": int(saved.removeprefix("step_")) + 8, "pretrain__log": 8}
    alone(line(scans, "pretrain", runs, **length))
    whole = prepared(scans, tmp_path / "whole")
    alone(line(scans, "pretrain", whole, **length))
    assert_same(log_of(runs, "pretrain"), log_of(whole, "pretrain"))


@pytest.mark.slow
def test_torchrun_starts_the_same_command(scans, one, tmp_path):
    runs = prepared(scans, tmp_path)
    words = line(scans, "pretrain", runs)
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "rsdmri.mri", *words]
    done = subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=PATIENCE, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    assert_same(log_of(runs, "pretrain"), log_of(one, "pretrain"))


def refused(*lines, of_second=None, folders=(None, None)):
    """What is said of command lines that fail: once, and all processes end."""
    codes, said = finish(start(*lines, of_second=of_second, folders=folders))
    assert 0 not in codes and not any("Traceback" in text for _, text in said), said
    errors = [text for _, text in said if "error:" in text]
    assert len(errors) == 1, said
    return errors[0]


def test_processes_that_would_train_different_things_are_refused(scans, tmp_path):
    runs = prepared(scans, tmp_path)
    words = line(scans, "pretrain", runs)
    found = refused(words, of_second=[line(scans, "pretrain", runs, pretrain__lr=0.5)])
    assert "the settings of process 1 are not those of process 0 (pretrain.lr: 0.5, not 0.001)" in found


@pytest.mark.slow
def test_processes_that_see_other_data_are_refused(scans, tmp_path):
    """The same command where the same name is another folder."""
    lines, folders = [line(scans, "pretrain", "runs")], (tmp_path / "one", tmp_path / "other")
    for folder in folders:
        prepared(scans, folder / "runs")
    with h5py.File(folders[1] / "runs/x/prepare/observations.h5", "r+") as file:
        group = next(iter(file.values()))
        middle = len(group["kspace"]) // 2
        group["kspace"][middle] = 2 * group["kspace"][middle]
    assert "the data of process 1" in refused(*lines, folders=folders)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"pretrain__batch": 0}, "batch"),
        ({"pretrain__btach": 8}, "did you mean --pretrain.batch"),
        ({"config": "none.yaml"}, "none.yaml"),
    ],
    ids=["limit", "flag", "file"],
)
def test_a_wrong_command_line_of_one_process_ends_all(changed, message, scans, tmp_path):
    runs = prepared(scans, tmp_path)
    began = time.monotonic()
    found = refused(line(scans, "pretrain", runs), of_second=[line(scans, "pretrain", runs, **changed)])
    assert message in found and time.monotonic() - began < 60


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_refused(scans, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    found = refused(line(scans, "pretrain", prepared(scans, tmp_path), device="cuda"))
    assert "device 'cuda'" in found and "0 GPUs" in found


@pytest.mark.slow
def test_more_processes_than_samples_are_refused(tmp_path):
    assert (
        run_command(APPLICATION, "simulate", "--phantoms", 1, "--size", 16, 16, "--slices", 1, "--out", tmp_path / "kspace") == 0
    )
    assert run_command(APPLICATION, "espirit", tmp_path / "kspace", "--out", tmp_path / "maps") == 0
    found = refused(line(tmp_path, "pretrain", prepared(tmp_path, tmp_path / "runs")))
    assert "1 samples, and 2 processes: start at most one a sample" in found


def test_two_processes_of_one_gpu_are_found():
    assert doubled([("a", "gpu 0"), ("a", "gpu 1"), ("b", "gpu 0")]) is None
    assert "processes 1 and 2 have the same GPU of b" in str(doubled([("a", "0"), ("b", "0"), ("b", "0")]))
    assert doubled([("a", ""), ("a", "")]) is None
    assert "process 0 on a has a GPU, process 1 on b has none" in str(doubled([("a", "0"), ("b", "")]))


@pytest.mark.slow
def test_what_cannot_be_divided_is_refused(scans, tmp_path):
    runs = prepared(scans, tmp_path)
    found = refused(line(scans, "pretrain", runs, pretrain__batch=9))
    assert "batch 9 must be divisible by 2 processes" in found
    assert not (runs / "x/pretrain").exists()  # the corrected command is a new one


@pytest.mark.slow
def test_a_folder_in_use_is_refused(scans, tmp_path):
    runs = prepared(scans, tmp_path)
    words = line(scans, "pretrain", runs)
    (runs / "x/pretrain").mkdir()
    with open(runs / "x/pretrain/lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.write("process 1 on elsewhere\n")
        file.flush()
        found = refused(words)
    assert "another job is at work here (process 1 on elsewhere)" in found
    alone(words)


@pytest.mark.slow
def test_a_missing_file_of_one_process_ends_all(scans, tmp_path):
    folders = (tmp_path / "one", tmp_path / "other")
    folders[1].mkdir()
    prepared(scans, folders[0] / "runs")
    assert "observations.h5: no such file" in refused(line(scans, "pretrain", "runs"), folders=folders)


@pytest.mark.slow
def test_another_checkpoint_of_one_process_ends_all(scans, one, tmp_path):
    """Folders that are not shared: one process would go on where the other begins."""
    folders = (tmp_path / "one", tmp_path / "other")
    for folder in folders:
        prepared(scans, folder / "runs")
    shutil.copytree(
        one / "x/pretrain", folders[0] / "runs/x/pretrain", ignore=shutil.ignore_patterns("model.*", "provenance.json")
    )
    words = line(scans, "pretrain", "runs", pretrain__images=320)
    assert "the checkpoints of process 1 are not those of process 0" in refused(words, folders=folders)


@pytest.mark.slow
def test_another_teacher_of_one_process_ends_all(scans, one, tmp_path):
    folders = (tmp_path / "one", tmp_path / "other")
    for folder in folders:
        shutil.copytree(one, folder / "runs")
    weights = folders[1] / "runs/x/pretrain/model.safetensors"
    save_tensors(weights, {name: 2 * value for name, value in load_tensors(weights).items()})
    found = refused(line(scans, "distill", "runs", distill__images=320), folders=folders)
    assert "the inputs of process 1 are not those of process 0 (teacher:" in found
    shutil.rmtree(folders[1] / "runs/x/pretrain")
    assert "no finished teacher" in refused(line(scans, "distill", "runs", distill__images=320), folders=folders)
