"""fastMRI's layout in HDF5.

``kspace`` complex (slices, coils, H, W), centred; H is the readout and W the phase encoding, along which columns may be missing.
``mask`` (W,) says which were measured, ``sampling_mask`` (H, W) where samples are missing in both directions. The header
``ismrmrd_header`` may be absent. ``patient_id`` is never read.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import UserError
from ..files import atomic
from .fourier import crop, ifft2c, rss
from .source import EXPECTED, Source, is_swapped, to_complex64

TARGETS = ("reconstruction_rss", "reconstruction_esc")


def open_fastmri(path: Path, file: h5py.File, singlecoil: bool) -> Source:
    """The scan in an open HDF5 file; layouts that cannot be used are a :class:`UserError` that says which and what to do."""
    dataset = file.get("kspace")
    if not isinstance(dataset, h5py.Dataset):
        keys = ", ".join(sorted(file.keys())) or "nothing"
        raise UserError(f"{path}: no dataset 'kspace'; found {keys}. {EXPECTED}")
    if dataset.shape is None or dataset.dtype.kind not in "biufcV":
        found = "empty" if dataset.shape is None else f"{dataset.dtype}"
        raise UserError(f"{path}: 'kspace' is {found}, not complex numbers. {EXPECTED} Download or convert it again.")
    names: tuple[str, ...] = dataset.dtype.names or ()
    named = len(names) == 2 and all(dataset.dtype[name].kind in "iuf" for name in names)
    paired = dataset.dtype.kind in "iuf" and dataset.ndim >= 2 and dataset.shape[-1] == 2
    shape: tuple[int, ...] = dataset.shape[:-1] if paired else dataset.shape
    _check_axes(path, file, shape, singlecoil)

    def load(slices: Sequence[int]) -> NDArray[np.complex64]:
        if len(slices) == 1:
            part = dataset[slices[0] : slices[0] + 1]
        else:
            whole = list(slices) == list(range(shape[0]))
            part = dataset[()] if whole else np.concatenate([dataset[number : number + 1] for number in slices])
        if named:
            part = _complex(part[names[0]], part[names[1]])
        elif paired:
            part = _complex(part[..., 0], part[..., 1])
        return to_complex64(path, part[:, None] if len(shape) == 3 else part, slices)

    text = _header(file)
    header = parse_header(text)
    targets = [file[name] for name in TARGETS if isinstance(file.get(name), h5py.Dataset)]
    target = next((found.shape[-2:] for found in targets if found.ndim >= 2), None)
    return Source(
        format="fastMRI",
        slices=shape[0],
        load=load,
        matrix=(shape[-2], shape[-1]),
        header=header,
        mask=_mask(path, file, shape[:-3:-1] if is_swapped(shape, header) else shape[-2:]),
        contrast=_text(file.attrs.get("acquisition", "")),
        target=None if target is None else (int(target[0]), int(target[1])),
        noise_std=_noise_std(path, file),
        noise_covariance=_noise_covariance(path, file, 1 if len(shape) == 3 else shape[1]),
        voxel=parse_voxel(text),
    )


def _complex(real: NDArray[Any], imag: NDArray[Any]) -> NDArray[Any]:
    """real + i imag, without the product whose infinity times zero is no number."""
    values = np.empty(real.shape, np.result_type(real, imag, np.complex64))
    values.real, values.imag = real, imag
    return values


def _check_axes(path: Path, file: h5py.File, shape: tuple[int, ...], singlecoil: bool) -> None:
    found = f"{path}: 'kspace' has {len(shape)} axes ({' x '.join(map(str, shape))})"
    if len(shape) == 3 and not singlecoil:
        raise UserError(
            f"{found}: a single-coil file. {EXPECTED} With --singlecoil it is read as one coil, whose map is one everywhere."
        )
    if len(shape) == 5 and {"maps", "target"} <= set(file.keys()):
        raise UserError(
            f"{found}, with 'maps' and 'target', as SKM-TEA's: the coils come last, the readout is transformed already, and the scanner"
            " has filled in what it did not measure. Take its slices along the first axis, with the coils before the matrix, and its"
            " masks; results on lines that were filled in are optimistic."
        )
    if len(shape) == 5:
        raise UserError(
            f"{found}, as fastMRI's prostate files: averages come first, each with every second line. Combine them, so that every"
            " line is the mean of those that measured it, and write them as (slices, coils, H, W)."
        )
    if len(shape) != (3 if singlecoil else 4):
        one = " A file of several coils is read without --singlecoil." if singlecoil and len(shape) == 4 else ""
        raise UserError(f"{found}. {EXPECTED}{one}")
    if min(shape) == 0:
        raise UserError(f"{found}: it is empty. {EXPECTED} Download or convert it again.")


def parse_header(text: Any) -> dict[str, int]:
    """The sizes in an ISMRMRD header, by path; empty if it cannot be parsed. Schema and namespace are not insisted on."""
    try:
        root = ElementTree.fromstring(text)
    except (ElementTree.ParseError, TypeError, ValueError):
        return {}
    step = "encodingLimits/kspace_encoding_step_1"
    wanted = [f"{space}/matrixSize/{axis}" for space in ("encodedSpace", "reconSpace") for axis in "xyz"]
    found: dict[str, int] = {}
    for name in [*wanted, f"{step}/center", f"{step}/maximum"]:
        number = root.findtext("/".join("{*}" + part for part in f"encoding/{name}".split("/")), "").strip()
        if number.isdecimal() and number.isascii() and (int(number) > 0 or name.startswith(step)):
            found[name] = int(number)
    return found


def parse_voxel(text: Any) -> tuple[float, float, float] | None:
    """Millimetres a voxel of the reconSpace in an ISMRMRD header, if it says them."""
    try:
        root = ElementTree.fromstring(text)
        space = "encoding/reconSpace"
        fov, matrix = (
            [float(root.findtext("/".join("{*}" + part for part in f"{space}/{of}/{axis}".split("/")), "")) for axis in "xyz"]
            for of in ("fieldOfView_mm", "matrixSize")
        )
    except (ElementTree.ParseError, TypeError, ValueError):
        return None
    if not all(math.isfinite(value) and value > 0 for value in (*fov, *matrix)):
        return None
    x, y, z = (length / count for length, count in zip(fov, matrix, strict=True))
    return x, y, z


def _header(file: h5py.File) -> Any:
    """The text of the ISMRMRD header, or what stands in its place."""
    try:
        return np.ravel(file["ismrmrd_header"][()])[0]
    except (KeyError, IndexError, TypeError, AttributeError):
        return None


def _mask(path: Path, file: h5py.File, matrix: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """The mask of the file, if it has one; ``matrix`` is (readout, phase encoding)."""
    height, width = matrix
    for name in ("mask", "sampling_mask"):
        if name in file:
            mask = _numbers(path, name, file[name]).astype(bool).squeeze()
            if mask.shape not in ((width,), (height, width)):
                found = " x ".join(map(str, mask.shape)) or "of one number"
                raise UserError(
                    f"{path}: '{name}' has the shape {found}; expected {width}, one value a column of 'kspace'. Mend or remove it."
                )
            return mask
    return None


def _numbers(path: Path, name: str, found: Any) -> NDArray[Any]:
    """What is stored under a name, if it is numbers."""
    if isinstance(found, h5py.Group):
        raise UserError(f"{path}: '{name}' is a group of {len(found)}; expected an array of numbers. Mend or remove it.")
    values = np.asarray(found[()] if isinstance(found, h5py.Dataset) else found)
    if values.dtype.kind not in "biuf":
        raise UserError(f"{path}: '{name}' is {values.dtype}; expected numbers. Mend or remove it.")
    return values


def _noise_std(path: Path, file: h5py.File) -> float | None:
    found = file.attrs["noise_std"] if "noise_std" in file.attrs else file.get("noise_std")
    if found is None:
        return None
    value = _numbers(path, "noise_std", found)
    if np.size(value) != 1 or not np.isfinite(value).all() or np.ravel(value)[0] < 0:
        raise UserError(f"{path}: 'noise_std' is {value}; expected one number, the noise of k-space per real component")
    return float(np.ravel(value)[0])


def _noise_covariance(path: Path, file: h5py.File, coils: int) -> NDArray[np.complex128] | None:
    """Ours: (coils, coils), of the complex noise of k-space."""
    found = file.get("noise_covariance")
    if not isinstance(found, h5py.Dataset):
        return None
    if found.shape != (coils, coils) or found.dtype.kind not in "fc" or not np.isfinite(found[()]).all():
        raise UserError(
            f"{path}: 'noise_covariance' is {found.dtype} {found.shape}; expected complex ({coils}, {coils}). Remove it."
        )
    return np.asarray(found[()], np.complex128)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def write_fastmri(
    path: Path,
    kspace: Tensor,
    *,
    acquisition: str,
    noise_std: float,
    noise_covariance: Tensor | None = None,
    mask: Tensor | None = None,
    recon_size: tuple[int, int] | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Writes k-space (slices, coils, H, W) in fastMRI's layout, with its noise per real component beside it, or the covariance
    (coils, coils) of its complex noise.

    With a ``mask`` (W,) or (H, W) the rest is zeroed and, as in fastMRI's test files, there is no target.
    """
    slices, _, height, width = kspace.shape
    size = recon_size or (height, width)
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        file["kspace"] = (kspace if mask is None else torch.where(mask, kspace, 0)).numpy()
        file["ismrmrd_header"] = _header_text(slices, (height, width), size)
        if noise_covariance is not None:
            file["noise_covariance"] = noise_covariance.numpy()
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
