"""What is free: of the machine, and of a job that may take less."""

import os
import platform
import subprocess
import sys

import pytest

from rsdmri import memory

GIB = 1 << 30


def machine(root, files):
    for name, text in {"proc/meminfo": f"MemTotal: 9 kB\nMemAvailable: {8 * GIB // 1024} kB\n", **files}.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 * GIB),
        ({"proc/self/cgroup": "0::/slurm/job/step\n"}, 8 * GIB),
        (
            {  # the limit is that of a group further up
                "proc/self/cgroup": "0::/slurm/job/step\n",
                "sys/fs/cgroup/slurm/job/step/memory.max": "max\n",
                "sys/fs/cgroup/slurm/job/step/memory.current": "1000\n",
                "sys/fs/cgroup/slurm/job/memory.max": f"{4 * GIB}\n",
                "sys/fs/cgroup/slurm/job/memory.current": f"{3 * GIB}\n",
                "sys/fs/cgroup/slurm/job/memory.stat": f"anon 5\ninactive_file {GIB}\n",
            },
            2 * GIB,
        ),
        (
            {
                "proc/self/cgroup": "5:cpu:/x\n7:memory:/job\n",
                "sys/fs/cgroup/memory/job/memory.limit_in_bytes": f"{2 * GIB}\n",
                "sys/fs/cgroup/memory/job/memory.usage_in_bytes": f"{GIB}\n",
                "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{1 << 62}\n",
                "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            },
            GIB,
        ),
    ],
    ids=["machine", "no limits", "second version", "first version"],
)
def test_what_is_free_is_the_least_of_machine_and_job(files, expected, tmp_path, monkeypatch):
    machine(tmp_path, files)
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.free() == expected


def test_processes_of_a_machine_share_it(tmp_path, monkeypatch):
    machine(tmp_path, {})
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.fits(2 * GIB) and not memory.fits(3 * GIB)
    for name, value in {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "MASTER_ADDR": "a", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert memory.fits(GIB) and not memory.fits(2 * GIB)


def test_where_the_system_does_not_say(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "ROOT", tmp_path)
    assert memory.free() == memory.UNKNOWN


STEPS = """
import resource, sys
from rsdmri.memory import keep_freed

def faults() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        held = [bytearray(b"x") * (20 << 20) for _ in range(4)]
        while held:
            held.pop()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(keep_freed() if sys.argv[1] == "keep" else None, faults(), faults())
"""


def run_steps(how: str, **environment: str) -> list[str]:
    """Whether memory is kept, and the pages that a first and a second twenty steps touched for the first time."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_TUNABLES"))}
    command = [sys.executable, "-c", STEPS, how]
    return subprocess.run(command, env=clean | environment, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_freed_memory_serves_the_next_step() -> None:
    _, _, given_back = run_steps("leave")
    kept, _, again = run_steps("keep")
    assert kept == "True"
    assert int(again) < 100 < 100_000 < int(given_back)  # a step has 20,480 pages


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="asks glibc")
def test_what_a_user_set_of_malloc_stays() -> None:
    kept, *_ = run_steps("keep", MALLOC_TRIM_THRESHOLD_="131072")
    assert kept == "False"


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_mallopt(name: None) -> object:
        return object()

    monkeypatch.setattr("rsdmri.memory.ctypes.CDLL", without_mallopt)
    for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)
    assert not memory.keep_freed()
