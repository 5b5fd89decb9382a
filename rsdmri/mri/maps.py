"""Sensitivity maps as files: ``<stem>.maps.h5`` beside every scan's name, with all that they depend on."""

from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import h5py
import torch
from torch import Tensor

from ..config import to_tree
from ..errors import UserError
from ..files import atomic, sha256
from ..jobs import run_files, shard
from .coils import default_calib, espirit, residual
from .config import EspiritConfig
from .fourier import ifft2c
from .readers import find_acs, find_files, read


@dataclass(frozen=True)
class Maps:
    """``maps`` (slices, coils, H, W), ``valid`` (slices,), and the number of ACS lines they were estimated from."""

    maps: Tensor
    valid: Tensor
    calib: int


def maps_path(folder: Path, scan: Path) -> Path:
    """Where the maps of a scan lie."""
    return folder / f"{scan.stem}.maps.h5"


def read_maps(folder: Path, scan: Path) -> Maps:
    """The maps of a scan; a :class:`UserError` says how to make them where they are missing."""
    path = maps_path(folder, scan)
    if not path.exists():
        raise UserError(f"{path}: no coil maps for {scan}. Make them: rsdmri-espirit {scan.parent} --out {folder}")
    try:
        with h5py.File(path, "r") as file:
            return Maps(torch.from_numpy(file["maps"][()]), torch.from_numpy(file["valid"][()]), int(file.attrs["calib"]))
    except (OSError, KeyError) as error:
        raise UserError(f"{path}: not a file of coil maps ({error}). Delete it and run rsdmri-espirit again.") from None


def estimate_files(paths: list[Path], out: Path, config: EspiritConfig) -> None:
    """Estimates the maps of every scan that has none yet with these parameters: the command ``rsdmri-espirit``."""
    files = find_files(paths)
    stems: dict[str, Path] = {}
    for file in files:
        if file.stem in stems:
            raise UserError(f"{file} and {stems[file.stem]} have the same name: their maps would overwrite each other")
        stems[file.stem] = file
    files = [file for file in shard(files, config.shard) if not _done(file, out, config)]
    if files:
        run_files(partial(estimate_file, out=out, config=config), files, workers=config.workers, stage="espirit")


def estimate_file(path: Path, out: Path, config: EspiritConfig) -> str:
    """Estimates and writes the maps of one scan; returns a note for the progress line."""
    torch.set_num_threads(1)
    scan = read(path)
    try:
        block = find_acs(scan.kspace, scan.mask)
        calib = config.calib or default_calib(scan.kspace.shape[-1], block.stop - block.start)
        maps, eigenvalues, valid = espirit(
            scan.kspace,
            mask=scan.mask,
            calib=calib,
            kernel=config.kernel,
            threshold=config.threshold,
            crop=config.crop,
            iterations=config.iterations,
        )
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    rest = (
        residual(maps[valid], ifft2c(scan.kspace[valid])) if scan.fully_sampled and valid.any() else torch.tensor([float("nan")])
    )
    with atomic(maps_path(out, path)) as temporary, h5py.File(temporary, "w") as file:
        file["maps"], file["eigenvalues"], file["valid"] = maps.numpy(), eigenvalues.numpy(), valid.numpy()
        file.attrs.update(_parameters(config))
        file.attrs.update(
            calib=min(calib, block.stop - block.start),
            acs_first=block.start,
            acs_lines=block.stop - block.start,
            residual=float(rest.mean()),
            rsdmri=version("rsdmri"),
            source_size=path.stat().st_size,
            source_sha256=sha256(path),
        )
    return f"{path.stem}  {int(valid.sum())}/{len(valid)} slices"


def _parameters(config: EspiritConfig) -> dict[str, float | str]:
    """What the maps depend on, as attributes of the file."""
    skipped = ("workers", "shard", "calib")
    return {"asked_calib": config.calib or 0, **{k: v for k, v in to_tree(config).items() if k not in skipped}}


def _done(path: Path, out: Path, config: EspiritConfig) -> bool:
    """Whether the maps of this very file exist with these parameters."""
    maps = maps_path(out, path)
    if not maps.exists():
        return False
    with h5py.File(maps, "r") as file:
        same = all(file.attrs.get(name) == value for name, value in _parameters(config).items())
        return same and file.attrs["source_size"] == path.stat().st_size and file.attrs["source_sha256"] == sha256(path)
