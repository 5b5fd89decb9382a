"""Multi-coil k-space files in fastMRI's layout.

A file is HDF5 with ``kspace`` complex (slices, coils, H, W), centred; H is the readout and W the phase encoding, along which
columns may be missing. ``mask`` (W,) says which were measured; a file without it was measured wherever it is not zero. The header
``ismrmrd_header`` may be absent. ``patient_id`` is never read.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..files import atomic
from .fourier import ifft2c, rss

HDF5_SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class KSpace:
    """One scan: ``kspace`` (slices, coils, H, W) complex64, zero where ``mask`` (W,) or (H, W) is False."""

    path: Path
    kspace: Tensor
    mask: Tensor
    contrast: str
    noise_std: float | None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The volume's name: the file's, without its ending."""
        return self.path.stem

    @property
    def fully_sampled(self) -> bool:
        """Whether every column was measured."""
        return bool(self.mask.all())


def find_files(paths: Iterable[Path | str]) -> list[Path]:
    """The .h5 files among ``paths`` and in the folders among them, sorted; maps and hidden files are left out."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.glob("*.h5") if not p.name.startswith(".") and not p.name.endswith(".maps.h5"))
            if not inside:
                raise UserError(f"{path}: no .h5 file in this folder; a folder of k-space files in fastMRI's layout is expected")
            found.extend(inside)
        elif path.exists():
            found.append(path)
        else:
            raise UserError(f"{path}: no such file or folder")
    if not found:
        raise UserError("no k-space given: name files or folders of .h5 files (data.kspace)")
    return found


def read(path: Path | str) -> KSpace:
    """Reads a multi-coil file; anything that is wrong with it is a :class:`UserError` that names it and says what to do."""
    path = Path(path)
    _check_signature(path)
    try:
        with h5py.File(path, "r") as file:
            return _read(path, file)
    except (OSError, RuntimeError) as error:
        raise UserError(f"{path}: damaged HDF5 file ({error}). Download or copy it again.") from None


def _check_signature(path: Path) -> None:
    """Says what a file is that is not HDF5."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if head.startswith(HDF5_SIGNATURE):
        return
    if not head:
        found = "an empty file"
    elif head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        found = "an HTML page, probably an error message of a download"
    elif head.startswith(b"version https://git-lfs"):
        found = "a Git LFS pointer (fetch the file itself: git lfs pull)"
    else:
        found = f"a file that begins with {head[:8]!r}"
    raise UserError(f"{path}: not HDF5, but {found}. Expected: k-space in fastMRI's layout. Download or convert it again.")


def _read(path: Path, file: h5py.File) -> KSpace:
    if "kspace" not in file:
        keys = ", ".join(sorted(file.keys())) or "nothing"
        raise UserError(
            f"{path}: no dataset 'kspace'; found {keys}. Expected: 'kspace' complex (slices, coils, H, W)."
            + (" This is an ISMRMRD file: convert it to fastMRI's layout first." if "dataset" in file else "")
        )
    kspace = _complex(path, file["kspace"])
    _check_axes(path, kspace)
    broken = np.flatnonzero(~np.isfinite(kspace.reshape(len(kspace), -1)).all(axis=1))
    if len(broken):
        raise UserError(
            f"{path}: NaN or infinity in slice {broken[0]} ({len(broken)} of {len(kspace)} slices). Remove the file or mend it."
        )
    header = _header(file)
    notes: tuple[str, ...] = ()
    rows = header.get("encodedSpace/matrixSize/x")
    if rows and kspace.shape[-1] == rows != kspace.shape[-2]:
        kspace, notes = kspace.swapaxes(-1, -2), ("readout and phase encoding were swapped",)
    tensor = torch.from_numpy(np.ascontiguousarray(kspace))
    mask = _mask(path, file, tensor, header)
    return KSpace(
        path=path,
        kspace=torch.where(mask, tensor, 0),
        mask=mask,
        contrast=_text(file.attrs.get("acquisition", "")),
        noise_std=float(file.attrs["noise_std"]) if "noise_std" in file.attrs else None,
        notes=notes,
    )


def _complex(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """The dataset as complex64; a trailing axis of 2 is real and imaginary part."""
    data = dataset[()]
    if data.dtype.names == ("r", "i"):
        data = data["r"] + 1j * data["i"]
    elif not np.iscomplexobj(data) and data.ndim >= 2 and data.shape[-1] == 2:
        data = data[..., 0] + 1j * data[..., 1]
    if not np.iscomplexobj(data):
        raise UserError(
            f"{path}: 'kspace' is {data.dtype}, not complex. Expected: complex (slices, coils, H, W) before any magnitude."
        )
    return np.asarray(data, np.complex64)


def _check_axes(path: Path, kspace: np.ndarray) -> None:
    shape = " x ".join(map(str, kspace.shape))
    expected = "Expected: 4 axes (slices, coils, H, W)."
    if kspace.ndim == 3:
        raise UserError(
            f"{path}: 'kspace' has 3 axes ({shape}): a single-coil file has no sensitivity maps. {expected} Use the multi-coil files."
        )
    if kspace.ndim == 5:
        raise UserError(
            f"{path}: 'kspace' has 5 axes ({shape}), as fastMRI's prostate files with their averages. {expected} Combine the averages first."
        )
    if kspace.ndim != 4:
        raise UserError(f"{path}: 'kspace' has {kspace.ndim} axes ({shape}). {expected}")
    if min(kspace.shape) == 0:
        raise UserError(f"{path}: 'kspace' is empty ({shape}). {expected}")


def _header(file: h5py.File) -> dict[str, int]:
    """The sizes in the ISMRMRD header, by path; empty where there is none or it cannot be parsed."""
    if "ismrmrd_header" not in file:
        return {}
    try:
        root = ElementTree.fromstring(file["ismrmrd_header"][()])
    except (ElementTree.ParseError, TypeError, ValueError):
        return {}
    space = "{http://www.ismrm.org/ISMRMRD}"
    wanted = [
        "encodedSpace/matrixSize/x",
        "encodedSpace/matrixSize/y",
        "encodingLimits/kspace_encoding_step_1/center",
        "encodingLimits/kspace_encoding_step_1/maximum",
    ]
    found: dict[str, int] = {}
    for name in wanted:
        node = root.find("/".join(space + part for part in f"encoding/{name}".split("/")))
        if node is not None and node.text and node.text.strip().isdigit():
            found[name] = int(node.text)
    return found


def _mask(path: Path, file: h5py.File, kspace: Tensor, header: dict[str, int]) -> Tensor:
    """What was measured: the file's mask, else what is not zero; never the columns that the scanner padded."""
    height, width = kspace.shape[-2:]
    measured = (kspace != 0).any(0).any(0)  # (H, W)
    if "mask" in file:
        mask = torch.from_numpy(np.asarray(file["mask"][()]).astype(bool)).squeeze()
        if mask.shape not in ((width,), (height, width)):
            raise UserError(
                f"{path}: 'mask' has the shape {tuple(mask.shape)}; expected ({width},), one value a column of 'kspace'"
            )
    else:
        by_column = measured.any(0)
        # A pattern that differs between the rows of a measured column is two-dimensional.
        mask = by_column if measured[:, by_column].float().mean() > 0.95 else measured
    padding = _padding(header, width)
    mask = mask & padding
    if not mask.any():
        raise UserError(f"{path}: nothing was measured: 'kspace' is zero everywhere or 'mask' leaves nothing")
    return mask


def _padding(header: dict[str, int], width: int) -> Tensor:
    """False at the columns that were not acquired but zero-filled by the scanner (fastMRI's padding_left and padding_right)."""
    center = header.get("encodingLimits/kspace_encoding_step_1/center")
    maximum = header.get("encodingLimits/kspace_encoding_step_1/maximum")
    encoded = header.get("encodedSpace/matrixSize/y")
    inside = torch.ones(width, dtype=torch.bool)
    if center is None or maximum is None or encoded != width:
        return inside
    left = encoded // 2 - center
    inside[: max(left, 0)] = False
    inside[left + maximum + 1 :] = False
    return inside


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def find_acs(kspace: Tensor, mask: Tensor) -> slice:
    """The run of measured columns around the energy peak of k-space (slices, coils, H, W).

    Raises a :class:`UserError` if the peak's column was not measured.
    """
    by_column = mask if mask.ndim == 1 else mask.float().mean(0) > 0.99
    energy = kspace.abs().square().flatten(0, -2).sum(0)
    # The centre may be off the middle of the matrix; what was never measured has no energy to be found by.
    peak = int(energy.argmax())
    middle = kspace.shape[-1] // 2
    if not by_column[peak] or (not by_column[middle] and abs(peak - middle) > kspace.shape[-1] // 8):
        raise UserError(
            "no sampled line in the ACS: the centre of k-space was not measured, and without it there are no coil maps"
        )
    start, stop = peak, peak + 1
    while start > 0 and by_column[start - 1]:
        start -= 1
    while stop < len(by_column) and by_column[stop]:
        stop += 1
    return slice(start, stop)


def write_fastmri(path: Path, kspace: Tensor, *, acquisition: str, noise_std: float) -> None:
    """Writes fully sampled k-space (slices, coils, H, W) in fastMRI's layout, with its noise per real component beside it."""
    slices, _, height, width = kspace.shape
    target = rss(ifft2c(kspace), 1).numpy()
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file["kspace"] = kspace.numpy()
        file["reconstruction_rss"] = target
        file["ismrmrd_header"] = _header_text(slices, height, width)
        file.attrs.update(
            acquisition=acquisition,
            max=float(target.max()),
            norm=float(np.linalg.norm(target)),
            patient_id="",
            noise_std=noise_std,
        )


def _header_text(slices: int, height: int, width: int) -> str:
    size = f"<matrixSize><x>{height}</x><y>{width}</y><z>1</z></matrixSize>"
    limits = f"<minimum>0</minimum><maximum>{width - 1}</maximum><center>{width // 2}</center>"
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
        f"<encodedSpace>{size}</encodedSpace><reconSpace>{size}</reconSpace>"
        f"<encodingLimits><kspace_encoding_step_1>{limits}</kspace_encoding_step_1>"
        f"<slice><minimum>0</minimum><maximum>{slices - 1}</maximum><center>{slices // 2}</center></slice></encodingLimits>"
        "</encoding></ismrmrdHeader>"
    )
