"""What is free: of the machine, and of a job that may take less."""

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
