"""Sensitivity maps as files: ``<stem>.maps.h5`` for every scan, with all that they depend on.

``maps`` complex64 (slices, coils, H, W), ``eigenvalues`` float32 (slices, H, W), of which those below the crop are lower estimates,
``valid`` bool (slices,); two sets of maps have an axis more, after the slices. Attributes: every parameter, the fully sampled lines that
were found (``acs_first``, ``acs_lines``), the width of the block that was used (``calib``), how much of the coil images the maps leave
unexplained (``residual``, of fully sampled scans), the version, and size and hash of the scan.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import atomic, sha256


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
        same = attributes.get("source_size") == scan.stat().st_size and attributes.get("source_sha256") == scan_hash(scan)
        if not same:
            raise UserError(
                f"{scan}: its coil maps were made from another file of this name. Run rsdmri-espirit again for this one."
            )

    def check_shape(self, scan: Path, kspace: Tensor) -> None:
        """Raises a :class:`UserError` unless they are maps of these slices, coils and matrix, of one set or of several."""
        shape = (len(self.maps), *self.maps.shape[-3:])
        if shape != tuple(kspace.shape):
            raise UserError(
                f"{scan}: k-space {tuple(kspace.shape)} and its maps {tuple(self.maps.shape)} differ; run rsdmri-espirit again"
            )


def scan_hash(scan: Path) -> str:
    """The SHA-256 of a scan; of BART's pairs, of both files."""
    header = scan.with_suffix(".hdr")
    return sha256(scan) + (sha256(header) if scan.suffix == ".cfl" and header.exists() else "")


def made_from(scan: Path) -> dict[str, Any]:
    """What a file that was made from a scan says of its origin: our version, and size and hash of the scan."""
    try:
        release = version("rsdmri")
    except PackageNotFoundError:  # run from a folder that was not installed
        release = "unknown"
    return {"rsdmri": release, "source_size": scan.stat().st_size, "source_sha256": scan_hash(scan)}


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
        if not torch.isfinite(torch.view_as_real(maps)).all():
            raise UserError(f"{path}: coil maps with NaN or infinity. Delete it and run rsdmri-espirit again.")
        return Maps(maps, eigenvalues, valid, {"calib": attributes["calib"], **attributes})
    except (OSError, KeyError, RuntimeError, TypeError) as error:
        raise UserError(f"{path}: not a file of coil maps ({error}). Delete it and run rsdmri-espirit again.") from None
