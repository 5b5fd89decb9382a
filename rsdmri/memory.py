"""How much memory is free, whether a data set is to be held in it, and what becomes of freed memory. Standard library only."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from .launch import local_size

SHARE = 3  # all processes of a machine hold at most a third of what is free: the rest is for networks and for files
UNKNOWN = 12 << 30  # bytes that are taken for free where the system does not say
ROOT = Path("/")
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
LARGEST = 32 << 20  # bytes of a block that comes from the heap; the most that every glibc takes


def fits(size: int) -> bool:
    """Whether data of ``size`` bytes are held in memory, by each process of this machine."""
    return size * SHARE * local_size(os.environ) <= free()


def free() -> int:
    """Bytes that may still be taken: of the machine, and of the job where a scheduler limits it (Linux control groups)."""
    found = [*_of_machine(), *_of_job()]
    return min(found) if found else UNKNOWN


def keep_freed() -> bool:
    """Makes glibc keep what is freed for what is allocated next; whether it did. Other C libraries, and a user's own settings, stay.

    A training step frees what the next one takes. glibc gives it back to the system in between, which clears every page of it again when it
    is touched: a tenth of a small network's step on a CPU.
    """
    if any(name in os.environ for name in ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # not glibc
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST) and mallopt(M_TRIM_THRESHOLD, -1))


def _of_machine() -> Iterator[int]:
    for line in _lines(ROOT / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            yield int(line.split()[1]) * 1024


def _of_job() -> Iterator[int]:
    """What the limits of all groups around this process leave; pages of files that can be dropped do not count as taken."""
    for line in _lines(ROOT / "proc/self/cgroup"):
        _, controllers, group = line.split(":", 2)
        if not controllers:
            top, names, pages = ROOT / "sys/fs/cgroup", ("memory.max", "memory.current"), "inactive_file"
        elif "memory" in controllers.split(","):
            top, names, pages = (
                ROOT / "sys/fs/cgroup/memory",
                ("memory.limit_in_bytes", "memory.usage_in_bytes"),
                "total_inactive_file",
            )
        else:
            continue
        folder = top / group.strip().lstrip("/")
        for place in (folder, *folder.parents):
            limit, used = ("".join(_lines(place / name)).strip() for name in names)
            if limit.isdigit() and used.isdigit():
                dropped = [int(row.split()[1]) for row in _lines(place / "memory.stat") if row.startswith(f"{pages} ")]
                yield max(0, int(limit) - int(used) + sum(dropped))
            if place == top:
                break


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
