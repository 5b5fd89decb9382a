"""The command ``rsdmri-espirit``: the maps of many scans, in many processes or in a SLURM array, again and again until all are there.

What is done is skipped, by the content of the scan and the parameters. What fails is kept in failures.jsonl beside the maps, and is not
tried again until the file or the parameters change, or ``--retry-failed`` asks for it.
"""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import torch
from torch import Tensor

from ..config import to_tree
from ..errors import UserError
from ..files import write_text
from ..jobs import FilesFailed, Outcome, default_shard, run_files, say_warnings, shard, short
from .coils import SMALLEST_CALIB, calibration_block, espirit, narrowest_block, residual
from .config import EspiritConfig
from .fourier import ifft2c
from .maps import made_from, maps_path, scan_hash, write_maps
from .masks import find_acs
from .readers import KSpace, find_files, read, require_own_names
from .sheets import write_sheet

DEFAULT = -1  # in a file of maps, for an option that was left to its default
#: Options that do not change the maps.
FREE = ("workers", "shard", "retry_failed", "report", "slurm", "slurm_options")


def estimate_files(paths: Sequence[Path], out: Path, config: EspiritConfig) -> None:
    """Estimates the maps of every scan that has none yet with these parameters.

    Scans that fail do not stop the others; they are listed in the :class:`UserError` at the end.
    """
    files = require_own_names(find_files(paths))
    if config.slurm:
        _submit(files, out, config)
        return
    part = config.shard or default_shard(os.environ)
    mine = shard(files, part)
    record = out / ("failures.jsonl" if part == "0/1" else f"failures-{part.replace('/', '-of-')}.jsonl")
    known = {} if config.retry_failed else _known_failures(record, mine, config)
    failed: Mapping[Path, str] = {}
    try:
        outcomes: Mapping[Path, Outcome] = run_files(
            partial(estimate_file, out=out, config=config),
            [file for file in mine if file not in known],
            workers=config.workers,
            stage="espirit",
            done=partial(is_done, out=out, config=config),
            note=short,
        )
    except FilesFailed as error:
        outcomes, failed = error.results, error.errors
    say_warnings("espirit", outcomes)
    _record(record, {**known, **failed}, mine, config)
    if known or failed:
        again = {file: f"{text} (failed before; --retry-failed tries it again)" for file, text in known.items()}
        raise FilesFailed({**failed, **again}, outcomes, len(mine), "files")


def _record(path: Path, failures: Mapping[Path, str], mine: Sequence[Path], config: EspiritConfig) -> None:
    """Writes failures.jsonl, or removes it when there are none; what it says of files that are not ``mine`` stays."""
    others = [entry for name, entry in _entries(path).items() if name not in set(map(str, mine))]
    entries = [*others, *({**_identity(file, config), "error": error} for file, error in failures.items())]
    lines = [json.dumps(entry) for entry in entries]
    if lines:
        write_text(path, "\n".join(lines) + "\n")
    else:
        path.unlink(missing_ok=True)


def _identity(file: Path, config: EspiritConfig) -> dict[str, Any]:
    """What a failure depends on: the file as it is now, and the parameters."""
    try:
        status = file.stat()
        state = [status.st_size, status.st_mtime_ns]
    except OSError:
        state = []
    return {"file": str(file), "state": state, "parameters": _parameters(config)}


def _known_failures(path: Path, files: Sequence[Path], config: EspiritConfig) -> dict[Path, str]:
    """The files that failed before, unchanged since then and with the same parameters."""
    found = _entries(path)
    same = (file for file in files if found.get(str(file), {}).items() >= _identity(file, config).items())
    return {file: str(found[str(file)]["error"]) for file in same}


def _entries(path: Path) -> dict[str, dict[str, Any]]:
    """The lines of failures.jsonl by file."""
    found: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            entry = json.loads(line)
            found[str(entry["file"])] = {"error": "", **entry}
        except (ValueError, KeyError, TypeError):
            continue  # a line that was torn: its file is tried again
    return found


def _submit(files: Sequence[Path], out: Path, config: EspiritConfig, cluster: str | None = None) -> None:
    """Sends a SLURM array of ``config.slurm`` tasks, each with its part of the files, and says where its logs are."""
    try:
        import submitit
    except ImportError:
        raise UserError(
            "--slurm needs submitit: pip install 'rsdmri[slurm]', or send an array of this command yourself"
        ) from None
    executor = submitit.AutoExecutor(folder=out / "slurm", cluster=cluster)
    if cluster is None and executor.cluster != "slurm":
        raise UserError("--slurm: there is no SLURM here (no sbatch); run the command without it, or with --shard i/n")
    options: dict[str, Any] = {"name": "rsdmri-espirit", "timeout_min": 24 * 60, "cpus_per_task": max(config.workers, 1)}
    for text in config.slurm_options:
        name, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"--slurm-options {text}: expected NAME=VALUE, such as slurm_partition=cpu")
        options[name] = int(value) if value.isdigit() else value
    try:
        executor.update_parameters(**options)
    except (NameError, TypeError, ValueError) as error:
        raise UserError(f"--slurm-options: {error}") from None
    parts = [dataclasses.replace(config, slurm=0, shard=f"{number}/{config.slurm}") for number in range(config.slurm)]
    jobs = executor.map_array(partial(estimate_files, list(files), out), parts)
    print(
        f"{len(jobs)} tasks sent: {', '.join(job.job_id for job in jobs[:4])}{', ...' if len(jobs) > 4 else ''}; logs in {out / 'slurm'}"
    )


def estimate_file(path: Path, out: Path, config: EspiritConfig) -> Outcome:
    """Estimates and writes the maps of one scan; returns a note for the progress line, and what its user should know."""
    scan = read(path, singlecoil=config.singlecoil)
    if config.singlecoil:
        return _write_ones(path, scan, out, config)
    try:
        maps, eigenvalues, valid = espirit(
            scan.kspace,
            calib=config.calib,
            kernel=config.kernel,
            threshold=config.threshold,
            crop=config.crop,
            sets=config.sets,
            backend=config.backend,
            iterations=config.iterations,
            mask=scan.mask,
        )
        attributes = _parameters(config) | _found(scan, config) | made_from(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if scan.fully_sampled and valid.any():
        attributes["residual"] = float(residual(maps[valid], ifft2c(scan.kspace[valid])).mean())
    write_maps(maps_path(out, path), maps, eigenvalues, valid, attributes)
    if config.report:
        write_sheet(_sheet(path, out), maps, eigenvalues, ifft2c(scan.kspace), scan.fully_sampled)
    return _outcome(path, scan, valid, int(attributes["calib"]))


def _sheet(path: Path, out: Path) -> Path:
    return out / f"{path.stem}.maps.png"


def _outcome(path: Path, scan: KSpace, valid: Tensor, calib: int) -> Outcome:
    warnings = list(scan.notes)
    dead = scan.dead_coils
    if dead:
        warnings.append(f"coil {', '.join(map(str, dead))} without signal: its maps are zero")
    if 0 < calib < SMALLEST_CALIB:
        warnings.append(f"maps from a block of {calib} lines, fewer than {SMALLEST_CALIB}: they are rough")
    return Outcome(f"{path.stem}  {int(valid.sum())}/{len(valid)} slices", tuple(warnings))


def _write_ones(path: Path, scan: KSpace, out: Path, config: EspiritConfig) -> Outcome:
    """One coil sees everything alike."""
    valid = scan.kspace.flatten(1).any(1)
    maps = torch.ones_like(scan.kspace) * valid[:, None, None, None]
    attributes = _parameters(config) | made_from(path) | {"calib": 0}
    write_maps(maps_path(out, path), maps, maps[:, 0].real, valid, attributes)
    return _outcome(path, scan, valid, 0)


def is_done(path: Path, out: Path, config: EspiritConfig) -> bool:
    """Whether the maps of this very file exist with these parameters."""
    try:
        with h5py.File(maps_path(out, path), "r") as file:
            attributes = dict(file.attrs)
        wanted = {**_parameters(config), "source_size": path.stat().st_size}
        same = all(attributes.get(name) == value for name, value in wanted.items())
        shown = not config.report or config.singlecoil or _sheet(path, out).exists()
        return same and shown and attributes.get("source_sha256") == scan_hash(path)
    except OSError:  # no such file, or one that another program left broken: made again
        return False


def _parameters(config: EspiritConfig) -> dict[str, Any]:
    """What the maps depend on, as it was asked for."""
    tree = {name: value for name, value in to_tree(config).items() if name not in FREE}
    tree["asked_calib"] = tree.pop("calib")  # ``calib`` is what was found
    return {name: DEFAULT if value is None else value for name, value in tree.items()}


def _found(scan: KSpace, config: EspiritConfig) -> dict[str, Any]:
    """The ACS lines of a scan, and the width of the block that its maps come from."""
    _, lines = find_acs(scan.kspace, scan.mask)
    block, _ = calibration_block(scan.kspace, scan.mask, config.calib, narrowest_block(config.backend, config.kernel))
    return {"acs_first": lines.start, "acs_lines": lines.stop - lines.start, "calib": block.stop - block.start}
