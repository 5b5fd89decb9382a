"""Sensitivity maps as files: ``<stem>.maps.h5`` for every scan, with all that they depend on.

``maps`` complex64 (slices, coils, H, W), ``eigenvalues`` float32 (slices, H, W), ``valid`` bool (slices,); two sets of maps have an axis
more, after the slices. Attributes: every parameter,
the fully sampled lines that were found (``acs_first``, ``acs_lines``), the width of the block that was used (``calib``), how much of the
coil images the maps leave unexplained (``residual``, of fully sampled scans), the version, and size and hash of the scan.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ..config import to_tree
from ..errors import UserError
from ..files import atomic, sha256
from ..jobs import run_files, shard
from .coils import calibration_block, espirit, residual
from .config import EspiritConfig
from .fourier import ifft2c
from .masks import find_acs
from .readers import KSpace, find_files, read


@dataclass(frozen=True)
class Maps:
    """``maps`` (slices, coils, H, W), ``eigenvalues`` (slices, H, W), ``valid`` (slices,), and what the file says about them."""

    maps: Tensor
    eigenvalues: Tensor
    valid: Tensor
    attributes: Mapping[str, Any]

    @property
    def calib(self) -> int:
        """The width of the block of k-space that they were estimated from; 0 for a single coil, of which nothing is estimated."""
        return int(self.attributes["calib"])

    def check_source(self, scan: Path) -> None:
        """Raises a :class:`UserError` if they were estimated from another file than this one."""
        attributes = self.attributes
        same = attributes.get("source_size") == scan.stat().st_size and attributes.get("source_sha256") == sha256(scan)
        if not same:
            raise UserError(
                f"{scan}: its coil maps were made from another file of this name. Run rsdmri-espirit again for this one."
            )


def maps_path(folder: Path, scan: Path) -> Path:
    """Where the maps of a scan lie."""
    return folder / f"{scan.stem}.maps.h5"


def write_maps(path: Path, maps: Tensor, eigenvalues: Tensor, valid: Tensor, attributes: Mapping[str, Any]) -> None:
    """Writes a file of maps atomically."""
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file["maps"], file["eigenvalues"], file["valid"] = maps.numpy(), eigenvalues.numpy(), valid.numpy()
        file.attrs.update(attributes)


def read_maps(folder: Path, scan: Path) -> Maps:
    """The maps of a scan; a :class:`UserError` says how to make them where they are missing or broken."""
    path = maps_path(folder, scan)
    if not path.exists():
        raise UserError(f"{path}: no coil maps for {scan}. Make them: rsdmri-espirit {scan.parent} --out {folder}")
    try:
        with h5py.File(path, "r") as file:
            maps, eigenvalues, valid = (torch.from_numpy(file[name][()]) for name in ("maps", "eigenvalues", "valid"))
            attributes = {name: np.asarray(value).item() for name, value in file.attrs.items()}
        return Maps(maps, eigenvalues, valid, {"calib": attributes["calib"], **attributes})
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: not a file of coil maps ({error}). Delete it and run rsdmri-espirit again.") from None


def estimate_files(paths: Sequence[Path], out: Path, config: EspiritConfig) -> None:
    """Estimates the maps of every scan that has none yet with these parameters: the command ``rsdmri-espirit``.

    Scans that fail do not stop the others; they are listed in the :class:`UserError` at the end.
    """
    files = find_files(paths)
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(file.stem, file)
        if other != file:
            raise UserError(
                f"{other} and {file} have the same name, and their maps would overwrite each other: use two --out folders"
            )
    run_files(
        partial(estimate_file, out=out, config=config),
        shard(files, config.shard),
        workers=config.workers,
        stage="espirit",
        done=partial(is_done, out=out, config=config),
    )


def estimate_file(path: Path, out: Path, config: EspiritConfig) -> str:
    """Estimates and writes the maps of one scan; returns a note for the progress line."""
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
        attributes = _parameters(config) | _found(scan, config) | _source(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if scan.fully_sampled and valid.any():
        attributes["residual"] = float(residual(maps[valid], ifft2c(scan.kspace[valid])).mean())
    write_maps(maps_path(out, path), maps, eigenvalues, valid, attributes)
    return f"{path.stem}  {int(valid.sum())}/{len(valid)} slices"


def _write_ones(path: Path, scan: KSpace, out: Path, config: EspiritConfig) -> str:
    """One coil sees everything alike."""
    valid = scan.kspace.flatten(1).any(1)
    maps = torch.ones_like(scan.kspace) * valid[:, None, None, None]
    attributes = _parameters(config) | _source(path) | {"calib": 0}
    write_maps(maps_path(out, path), maps, maps[:, 0].real, valid, attributes)
    return f"{path.stem}  {int(valid.sum())}/{len(valid)} slices"


def is_done(path: Path, out: Path, config: EspiritConfig) -> bool:
    """Whether the maps of this very file exist with these parameters."""
    try:
        with h5py.File(maps_path(out, path), "r") as file:
            attributes = dict(file.attrs)
        wanted = {**_parameters(config), "source_size": path.stat().st_size}
        same = all(attributes.get(name) == value for name, value in wanted.items())
        return same and attributes.get("source_sha256") == sha256(path)
    except OSError:  # no such file, or one that another program left broken: made again
        return False


def _parameters(config: EspiritConfig) -> dict[str, Any]:
    """What the maps depend on, as it was asked for; 0 where the default was."""
    tree = {name: value for name, value in to_tree(config).items() if name not in ("workers", "shard")}
    tree["asked_calib"] = tree.pop("calib")  # ``calib`` is what was found
    return {name: 0 if value is None else value for name, value in tree.items()}


def _found(scan: KSpace, config: EspiritConfig) -> dict[str, Any]:
    """The ACS lines of a scan, and the width of the block that its maps come from."""
    _, lines = find_acs(scan.kspace, scan.mask)
    block, _ = calibration_block(scan.kspace, scan.mask, config.calib, config.kernel)
    return {"acs_first": lines.start, "acs_lines": lines.stop - lines.start, "calib": block.stop - block.start}


def _source(path: Path) -> dict[str, Any]:
    try:
        release = version("rsdmri")
    except PackageNotFoundError:  # run from a folder that was not installed
        release = "unknown"
    return {"rsdmri": release, "source_size": path.stat().st_size, "source_sha256": sha256(path)}
