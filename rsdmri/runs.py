"""Run folders: what was asked for, with what, and whether the same command may go on in them.

A run folder holds config.yaml (resolved), provenance.json, metrics.jsonl, model.safetensors + model.json, snapshots/, resume/, lock.
"""

import fcntl
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from . import distributed
from .config import Experiment, differences, to_tree
from .errors import UserError
from .files import read_json, sha256, write_json, write_text

#: Options that may change between two starts of the same run: how long it is, how often it saves, how it is looked at.
FREE = {
    *("images", "save", "save_minutes", "log", "snapshots", "select_every", "patience", "laps"),
    *("checkpointing", "parts", "workers", "runs", "device", "sample", "evaluate", "clean", "at_once"),
}


def open_run(
    folder: Path,
    experiment: Experiment,
    sections: Iterable[str],
    inputs: Mapping[str, Path],
    derived: Mapping[str, Any] | None = None,
) -> None:
    """Begins a run, or checks that the one in ``folder`` had the same settings in ``sections``, ``derived`` ones and inputs."""
    tree = to_tree(experiment)
    kept = {name: tree[name] for name in ("seed", *sections)} | dict(derived or {})
    hashes = {name: sha256(path) for name, path in inputs.items()}
    path = folder / "provenance.json"
    if path.exists():
        earlier = read_json(path)
        if not isinstance(earlier, dict) or not {"settings", "inputs"} <= earlier.keys():
            raise UserError(f"{path}: not the record of a run. Choose another place with --out, or delete {folder}.")
        before = with_new_options(earlier["settings"], kept, to_tree(type(experiment)()))
        changed = [*_changed(before, kept, "settings"), *_changed(earlier["inputs"], hashes, "inputs")]
        if changed:
            raise UserError(
                f"{folder}: holds a run with other settings ({'; '.join(changed[:4])}). Go on with the settings it was begun with,"
                " choose another place with --out, or delete it."
            )
        write_config(folder / "config.yaml", experiment)
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_config(folder / "config.yaml", experiment)
    write_json(path, {**provenance(experiment), "settings": kept, "inputs": hashes})


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within the block no other job trains in ``folder``; the system gives it free whatever ends this one. Of several processes, one asks.

    Raises:
        UserError: another job does.
    """
    with ExitStack() as held:
        distributed.by_first(lambda: held.enter_context(_locked(folder)))
        yield


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            said = f"{folder}: another job is at work here ({file.read().strip()})"
            raise UserError(f"{said}. Wait for it, or choose another place with --out.") from None
        except OSError:
            pass  # file systems without locks are left as they are
        job = os.environ.get("SLURM_JOB_ID")
        file.truncate(0)
        file.write(
            f"process {os.getpid()} on {platform.node()}" + (f", job {job}" if job else "") + time.strftime(", since %F %T\n")
        )
        file.flush()
        yield


def with_new_options(settings: Mapping[str, Any], wanted: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that an earlier version wrote, with the defaults of what is ``wanted`` and it did not know."""
    result = dict(settings)
    for name, value in wanted.items():
        if name in defaults and name not in result:
            result[name] = defaults[name]
        elif name in defaults and isinstance(value, dict) and isinstance(result[name], dict):
            result[name] = with_new_options(result[name], value, defaults[name])
    return result


def observations_path(experiment: Experiment) -> Path:
    """The prepared data of an experiment."""
    return experiment.folder / "prepare" / "observations.h5"


def restored_path(experiment: Experiment) -> Path:
    """What the verb restore makes of them."""
    return experiment.folder / "restore" / "images.h5"


def write_config(path: Path, experiment: Experiment) -> None:
    """The resolved configuration as YAML."""
    import yaml

    write_text(path, yaml.safe_dump(to_tree(experiment), sort_keys=False))


def _changed(old: Any, new: Any, name: str) -> Iterator[str]:
    """What differs, but for the settings that may; an input must be the same file, whatever it is called."""
    for names, then, now in differences(old, json.loads(json.dumps(new)), (name,)):
        if name == "inputs" or not FREE & set(names):
            yield f"{'.'.join(names)}: {then!r} then, {now!r} now"


def provenance(experiment: Experiment) -> dict[str, Any]:
    """Where, when and with what a run was made."""
    return {
        "command": sys.argv,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "host": platform.node(),
        "platform": platform.platform(),
        "device": str(device_of(experiment)),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "versions": versions(),
        "commit": _commit(),
    }


def versions() -> dict[str, str | None]:
    """Of this package and those on which its numbers depend."""
    return {name: _version(name) for name in ("rsdmri", "torch", "numpy", "h5py", "sigpy")}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree, with a + if it was changed; None for an installed package."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, timeout=5)
        changed = subprocess.run([*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "") if head.returncode == 0 else None


def device_of(experiment: Experiment) -> torch.device:
    """The device of an experiment: the GPU of this process, if there is one and nothing else was asked for; that of a lone process is the
    first one."""
    name, local = experiment.device, distributed.local_rank()
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if local is not None and name.startswith("cuda"):
        count = torch.cuda.device_count()
        number = 0 if count == 1 else local  # a scheduler may show each process its own GPU alone
        if name != "cuda" or number >= count:
            raise UserError(
                f"device '{experiment.device}', process {local} of this machine (counted from 0) and {count} GPUs: start one process a"
                " GPU and leave device as it is, or set it to cpu"
            )
        torch.cuda.set_device(number)  # where collectives keep their own memory
        name = f"cuda:{number}"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)  # a device can be named and not be there
        return device
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device '{experiment.device}': {error}") from None
