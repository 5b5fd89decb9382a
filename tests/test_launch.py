"""Who started a process, and the job scripts that start several."""

import os
import subprocess
from pathlib import Path

import pytest

from rsdmri.launch import Place, first_node, place_of

SCRIPTS = Path(__file__).parents[1] / "scripts" / "slurm"
TORCHRUN = {"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu-07", "MASTER_PORT": "29500"}
SRUN = {
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu-[07-08]",
}


def test_a_process_that_nobody_started_is_alone():
    assert place_of({}) is None
    # A batch script and an interactive shell see the tasks of the job, and are none of them.
    assert place_of({"SLURM_JOB_ID": "1", "SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None


@pytest.mark.parametrize("environment", [{**TORCHRUN, "WORLD_SIZE": "1", "RANK": "0"}, {**SRUN, "SLURM_STEP_NUM_TASKS": "1"}])
def test_one_process_is_alone_whoever_started_it(environment):
    assert place_of(environment) is None


def test_torchrun_says_where():
    assert place_of(TORCHRUN) == Place(3, 4, 1, "gpu-07", 29500)


def test_srun_says_where_and_processes_of_a_step_meet():
    found = place_of(SRUN)
    assert (found.rank, found.size, found.local, found.address) == (5, 8, 1, "gpu-07")
    others = [place_of({**SRUN, "SLURM_PROCID": str(rank)}) for rank in range(8)]
    assert {place.port for place in others} == {found.port} and 20_000 <= found.port < 30_000
    assert place_of({**SRUN, "SLURM_STEP_ID": "1"}).port != found.port  # two steps at once do not
    named = place_of({**SRUN, "MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "4000"})
    assert (named.address, named.port) == ("10.0.0.1", 4000)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("node1", "node1"),
        ("node1,node2", "node1"),
        ("gpu-[07-09,12],login", "gpu-07"),
        ("gpu[3,5]", "gpu3"),
        ("rack[1-2]-gpu", "rack1-gpu"),
        ("", ""),
    ],
)
def test_first_of_a_list_of_nodes(nodes, first):
    assert first_node(nodes) == first


def run_script(name, folder, code, **environment):
    """A job script with an srun that exits with ``code``; returns its own code and what its tools were called with."""
    log = folder / "calls"
    for tool, exits in (("srun", code), ("scontrol", 0)):
        path = folder / tool
        path.write_text(f'#!/bin/sh\necho "{tool} $*" >> {log}\nexit {exits}\n')
        path.chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    arguments = ["rsdmri-pretrain", "--config", "mri/r4", "--name", "two words"]
    done = subprocess.run(["bash", SCRIPTS / f"{name}.sbatch", *arguments], env={"PATH": path, **environment})
    return done.returncode, log.read_text().splitlines()


@pytest.mark.parametrize("name", ["single_node", "multi_node", "requeue"])
def test_job_scripts_start_the_command_and_pass_its_code_on(name, tmp_path):
    assert subprocess.run(["bash", "-n", SCRIPTS / f"{name}.sbatch"]).returncode == 0
    for code in (0, 1):
        (tmp_path / str(code)).mkdir()
        found, calls = run_script(name, tmp_path / str(code), code, SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="8")
        assert found == code
        assert len(calls) == 1 and calls[0].endswith("rsdmri-pretrain --config mri/r4 --name two words")


def test_a_job_that_was_told_to_stop_is_queued_again(tmp_path):
    code, calls = run_script("requeue", tmp_path, 75, SLURM_JOB_ID="7")
    assert code == 75 and calls[1] == "scontrol requeue 7"


def test_so_is_a_task_of_an_array(tmp_path):
    _, calls = run_script("requeue", tmp_path, 75, SLURM_JOB_ID="9", SLURM_ARRAY_JOB_ID="7", SLURM_ARRAY_TASK_ID="2")
    assert calls[1] == "scontrol requeue 7_2"
