"""Who started this process, and which of how many it is: torchrun, srun, or nobody, and then it is alone. Standard library only."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

FIRST_PORT, PORTS = 20_000, 10_000  # where the processes of a SLURM job meet: a function of its number


@dataclass(frozen=True)
class Place:
    """One process of ``size``, number ``rank`` of all and ``local`` of its machine; they meet at ``address``: ``port``."""

    rank: int
    size: int
    local: int
    address: str
    port: int

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and speaks."""
        return self.rank == 0


def place_of(environment: Mapping[str, str]) -> Place | None:
    """The place that torchrun or srun gave this process; None if it was started alone.

    A batch script itself is no task of its job: only srun, which starts tasks, sets the variables of a step.
    """
    for launcher in (_torchrun, _slurm):
        found = launcher(environment)
        if found is not None:
            return found if found.size > 1 else None
    return None


def _torchrun(environment: Mapping[str, str]) -> Place | None:
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
    if not all(name in environment for name in names):
        return None
    rank, size, local, address, port = (environment[name] for name in names)
    return Place(int(rank), int(size), int(local), address, int(port))


def _slurm(environment: Mapping[str, str]) -> Place | None:
    names = ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID")
    if not all(name in environment for name in names):
        return None
    rank, size, local = (int(environment[name]) for name in names)
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
    address = environment.get("MASTER_ADDR") or first_node(nodes) or "localhost"
    number = int(environment.get("SLURM_JOB_ID", "0")) * 7 + int(environment.get("SLURM_STEP_ID", "0"))
    port = int(environment.get("MASTER_PORT") or FIRST_PORT + number % PORTS)
    return Place(rank, size, local, address, port)


def local_size(environment: Mapping[str, str]) -> int:
    """How many processes of one piece of work share this machine."""
    if _torchrun(environment) is not None:
        return int(environment.get("LOCAL_WORLD_SIZE", "1"))
    if _slurm(environment) is not None:  # such as 4(x2),3: the first number of them, where they differ by little
        found = re.match(r"\d+", environment.get("SLURM_STEP_TASKS_PER_NODE", "1"))
        return int(found.group()) if found else 1
    return 1


def first_node(nodes: str) -> str:
    """The first of SLURM's list of nodes: ``gpu-07`` of ``gpu-[07-09,12],login``. Of names with several brackets MASTER_ADDR must tell."""
    match = re.match(r"([^\[,]*)(?:\[([^\]]*)\]([^,\[]*))?", nodes)
    if match is None:
        return ""
    before, numbers, after = match.groups(default="")
    return before + re.split(r"[,-]", numbers)[0] + after
