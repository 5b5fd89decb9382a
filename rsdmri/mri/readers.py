"""Multi-coil k-space files in fastMRI's layout.

A file is HDF5 with ``kspace`` complex (slices, coils, H, W), centred; H is the readout and W the phase encoding, along which
columns may be missing. ``mask`` (W,) says which were measured, ``sampling_mask`` (H, W) where samples are missing in both directions;
a file without either was measured wherever it is not zero. Columns that the header's encoding limits leave out were filled with zeros
by the scanner and never count as measured. The header ``ismrmrd_header`` may be absent. ``patient_id`` is never read.
"""

from collections.abc import Iterable, Mapping
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
from .fourier import crop, ifft2c, rss
from .masks import sampled

EXPECTED = "Expected: 'kspace', complex (slices, coils, H, W), in fastMRI's multi-coil layout."
TARGETS = ("reconstruction_rss", "reconstruction_esc")


@dataclass(frozen=True)
class KSpace:
    """One scan: ``kspace`` (slices, coils, H, W) complex64, zero where ``mask`` (W,) or (H, W) is False."""

    path: Path
    kspace: Tensor
    mask: Tensor
    encoded: Tensor
    """(W,): the columns that the scanner's protocol covers; it fills the others with zeros, in any scan."""
    contrast: str
    recon_size: tuple[int, int]
    """Rows and columns of the image that the scanner shows; never larger than k-space."""
    noise_std: float | None
    """Noise of k-space per real component, where the file says so (attribute or dataset ``noise_std``)."""
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The volume's name: the file's, without its ending."""
        return self.path.stem

    @property
    def fully_sampled(self) -> bool:
        """Whether every column that the protocol covers was measured."""
        return bool(self.mask[..., self.encoded].all())


def find_files(paths: Iterable[Path | str]) -> list[Path]:
    """The .h5 files among ``paths`` and in the folders among them, sorted; maps and hidden files are left out."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.glob("*.h5") if not p.name.startswith("."))
            if not inside:
                raise UserError(f"{path}: no .h5 file in this folder (folders inside it are not searched). {EXPECTED}")
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path] = None
        else:
            raise UserError(f"{path}: no such file or folder")
    files = [path for path in found if not path.name.endswith(".maps.h5")]
    if not files:
        given = ", ".join(map(str, found)) or "nothing"
        raise UserError(f"no k-space among the files given ({given}): name .h5 files, or folders of them (data.kspace)")
    return files


def read(path: Path | str) -> KSpace:
    """Reads a multi-coil file; anything that is wrong with it is a :class:`UserError` that names it and says what to do."""
    path = Path(path)
    try:
        if not h5py.is_hdf5(path):
            raise UserError(f"{path}: not HDF5, but {_what_it_is(path)}. {EXPECTED} Download or convert it again.")
        with h5py.File(path, "r") as file:
            return _read(path, file)
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: damaged or truncated HDF5 file ({error}). Download or copy it again.") from None


def _what_it_is(path: Path) -> str:
    """What a file is that is not HDF5."""
    try:
        with open(path, "rb") as file:
            head = file.read(512)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    if not head:
        return "an empty file"
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "an HTML page, probably the error message of a download"
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer (git lfs pull fetches the file itself)"
    return f"a file that begins with {head[:8]!r}"


def _read(path: Path, file: h5py.File) -> KSpace:
    kspace = _complex(path, _kspace_dataset(path, file))
    header = _header(file)
    notes: tuple[str, ...] = ()
    if kspace.shape[-1] == header.get("encodedSpace/matrixSize/x") != kspace.shape[-2]:
        # Repacked files exist in which the phase encoding comes first.
        kspace, notes = kspace.swapaxes(-1, -2), ("readout and phase encoding were swapped",)
    tensor = torch.from_numpy(np.ascontiguousarray(kspace))
    encoded = _encoded(header, tensor.shape[-1])
    mask = _mask(path, file, tensor) & encoded
    if not mask.any():
        raise UserError(f"{path}: nothing was measured: 'kspace' is zero everywhere, or the mask leaves nothing of it")
    if "mask" not in file and mask.ndim == 1:
        encoded = _without_zero_filling(mask, encoded)
    return KSpace(
        path=path,
        kspace=torch.where(mask, tensor, 0),  # not a product, which keeps the signs of zeros
        mask=mask,
        encoded=encoded,
        contrast=_text(file.attrs.get("acquisition", "")),
        recon_size=_recon_size(file, header, tensor.shape[-2:], swapped=bool(notes)),
        noise_std=_noise_std(path, file),
        notes=notes,
    )


def _kspace_dataset(path: Path, file: h5py.File) -> h5py.Dataset:
    dataset = file.get("kspace")
    if not isinstance(dataset, h5py.Dataset):
        keys = ", ".join(sorted(file.keys())) or "nothing"
        hint = " This looks like an ISMRMRD file: convert it first." if "dataset" in file else ""
        raise UserError(f"{path}: no dataset 'kspace'; found {keys}. {EXPECTED}{hint}")
    return dataset


def _complex(path: Path, dataset: h5py.Dataset) -> np.ndarray:
    """The dataset as finite complex64 (slices, coils, H, W); a trailing axis of 2 is real and imaginary part."""
    if dataset.shape is None or dataset.dtype.kind not in "biufcV":
        found = "empty" if dataset.shape is None else f"{dataset.dtype}"
        raise UserError(f"{path}: 'kspace' is {found}, not complex numbers. {EXPECTED} Download or convert it again.")
    data = dataset[()]
    names: tuple[str, ...] = data.dtype.names or ()
    if len(names) == 2 and all(data[name].dtype.kind in "iuf" for name in names):
        data = data[names[0]] + 1j * data[names[1]]
    elif data.dtype.kind == "f" and data.ndim >= 2 and data.shape[-1] == 2:
        data = data[..., 0] + 1j * data[..., 1]
    _check_axes(path, data.shape)
    if data.dtype.kind != "c":
        raise UserError(f"{path}: 'kspace' is {data.dtype}, not complex. {EXPECTED} Magnitudes are no k-space.")
    broken = [number for number, part in enumerate(data) if not np.isfinite(part).all()]
    if broken:
        listed = ", ".join(map(str, broken[:8])) + (", ..." if len(broken) > 8 else "")
        raise UserError(f"{path}: NaN or infinity in slice {listed} of {len(data)}. Remove the file, or mend it at its source.")
    return np.asarray(data, np.complex64)


def _check_axes(path: Path, shape: tuple[int, ...]) -> None:
    found = f"{path}: 'kspace' has {len(shape)} axes ({' x '.join(map(str, shape))})"
    if len(shape) == 3:
        raise UserError(
            f"{found}: a single-coil file. {EXPECTED} One coil has no sensitivity maps to be estimated, which everything here"
            " is built on, so that single-coil files are not supported yet; take the multi-coil ones."
        )
    if len(shape) == 5:
        raise UserError(
            f"{found}, as fastMRI's prostate files with their averages. {EXPECTED} Combine the averages (or echoes) first."
        )
    if len(shape) != 4:
        raise UserError(f"{found}. {EXPECTED}")
    if min(shape) == 0:
        raise UserError(f"{found}: it is empty. {EXPECTED} Download or convert it again.")


def _header(file: h5py.File) -> dict[str, int]:
    """The sizes in the ISMRMRD header, by path; empty where there is none or it cannot be parsed."""
    try:
        root = ElementTree.fromstring(np.ravel(file["ismrmrd_header"][()])[0])
    except (KeyError, IndexError, ElementTree.ParseError, TypeError, ValueError):
        return {}
    step = "encodingLimits/kspace_encoding_step_1"
    wanted = [f"{space}/matrixSize/{axis}" for space in ("encodedSpace", "reconSpace") for axis in "xy"]
    found: dict[str, int] = {}
    for name in [*wanted, f"{step}/center", f"{step}/maximum"]:
        text = root.findtext("/".join("{*}" + part for part in f"encoding/{name}".split("/")), "").strip()
        if text.isdigit():
            found[name] = int(text)
    return found


def _encoded(header: Mapping[str, int], width: int) -> Tensor:
    """False at the columns that the scanner filled with zeros (fastMRI's padding_left and padding_right)."""
    inside = torch.ones(width, dtype=torch.bool)
    step = "encodingLimits/kspace_encoding_step_1"
    center, maximum = header.get(f"{step}/center"), header.get(f"{step}/maximum")
    if center is None or maximum is None or header.get("encodedSpace/matrixSize/y") != width:
        return inside
    left = width // 2 - center
    inside[: max(left, 0)] = False
    inside[max(left + maximum + 1, 0) :] = False
    return inside


def _without_zero_filling(mask: Tensor, encoded: Tensor) -> Tensor:
    """The protocol's columns where no header says them: a gapless central run of most columns is a scan filled up with zeros."""
    measured = mask.nonzero().flatten()
    first, last = int(measured[0]), int(measured[-1])
    left, right = first, len(mask) - 1 - last
    gapless = len(measured) == last - first + 1
    return mask if gapless and abs(left - right) <= 2 and 2 * len(measured) > len(mask) else encoded


def _mask(path: Path, file: h5py.File, kspace: Tensor) -> Tensor:
    """What was measured: the file's mask, else what is not zero."""
    height, width = kspace.shape[-2:]
    for name in ("mask", "sampling_mask"):
        if name in file:
            values = _numbers(path, name, file[name])
            mask = torch.from_numpy(values.astype(bool)).squeeze()
            if mask.shape not in ((width,), (height, width)):
                found = " x ".join(map(str, mask.shape)) or "of one number"
                raise UserError(
                    f"{path}: '{name}' has the shape {found}; expected {width}, one value a column of 'kspace'. Mend or remove it."
                )
            return mask
    return sampled(kspace)


def _numbers(path: Path, name: str, found: Any) -> np.ndarray:
    """What is stored under a name, if it is numbers."""
    if isinstance(found, h5py.Group):
        raise UserError(f"{path}: '{name}' is a group of {len(found)}; expected an array of numbers. Mend or remove it.")
    values = np.asarray(found[()] if isinstance(found, h5py.Dataset) else found)
    if values.dtype.kind not in "biuf":
        raise UserError(f"{path}: '{name}' is {values.dtype}; expected numbers. Mend or remove it.")
    return values


def _recon_size(file: h5py.File, header: Mapping[str, int], matrix: Iterable[int], swapped: bool) -> tuple[int, int]:
    """Rows and columns of the target, else of the header, else of k-space."""
    height, width = matrix
    targets = [file[name] for name in TARGETS if isinstance(file.get(name), h5py.Dataset)]
    target = next((dataset.shape[-2:] for dataset in targets if dataset.ndim >= 2), None)
    if target is not None:
        rows, cols = target[::-1] if swapped else target
    else:
        rows, cols = header.get("reconSpace/matrixSize/x", height), header.get("reconSpace/matrixSize/y", width)
    if cols > width:  # fastMRI's rule for scans that are narrower than their image
        rows, cols = width, width
    return min(rows, height), min(cols, width)


def _noise_std(path: Path, file: h5py.File) -> float | None:
    found = file.attrs["noise_std"] if "noise_std" in file.attrs else file.get("noise_std")
    if found is None:
        return None
    value = _numbers(path, "noise_std", found)
    if np.size(value) != 1 or not np.isfinite(value).all() or np.ravel(value)[0] < 0:
        raise UserError(f"{path}: 'noise_std' is {value}; expected one number, the noise of k-space per real component")
    return float(np.ravel(value)[0])


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def write_fastmri(
    path: Path,
    kspace: Tensor,
    *,
    acquisition: str,
    noise_std: float,
    mask: Tensor | None = None,
    recon_size: tuple[int, int] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Writes k-space (slices, coils, H, W) in fastMRI's layout, with its noise per real component beside it.

    With a ``mask`` (W,) or (H, W) the rest is zeroed and, as in fastMRI's test files, there is no target.
    """
    slices, _, height, width = kspace.shape
    size = recon_size or (height, width)
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file["kspace"] = (kspace if mask is None else torch.where(mask, kspace, 0)).numpy()
        file["ismrmrd_header"] = _header_text(slices, (height, width), size)
        file.attrs.update(acquisition=acquisition, patient_id="", noise_std=noise_std, **(attributes or {}))
        if mask is not None:
            file["mask" if mask.ndim == 1 else "sampling_mask"] = mask.numpy()
            return
        target = rss(crop(ifft2c(kspace), size), 1).numpy()
        file["reconstruction_rss"] = target
        file.attrs.update(max=float(target.max()), norm=float(np.linalg.norm(target)))


def _header_text(slices: int, encoded: tuple[int, int], recon: tuple[int, int]) -> str:
    def space(name: str, size: tuple[int, int]) -> str:
        return f"<{name}><matrixSize><x>{size[0]}</x><y>{size[1]}</y><z>1</z></matrixSize></{name}>"

    def limit(name: str, count: int) -> str:
        return f"<{name}><minimum>0</minimum><maximum>{count - 1}</maximum><center>{count // 2}</center></{name}>"

    limits = limit("kspace_encoding_step_1", encoded[1]) + limit("slice", slices)
    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
        f"{space('encodedSpace', encoded)}{space('reconSpace', recon)}<encodingLimits>{limits}</encodingLimits>"
        "</encoding></ismrmrdHeader>"
    )
