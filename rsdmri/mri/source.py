"""What a file of k-space holds before its samples are read: the common form of all formats."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError

EXPECTED = "Expected: 'kspace', complex (slices, coils, H, W), in fastMRI's multi-coil layout."


@dataclass(frozen=True)
class Source:
    """One scan in a file; ``load(slices)`` reads complex64 (slices, coils, H, W) of them."""

    format: str
    slices: int
    load: Callable[[Sequence[int]], NDArray[np.complex64]]
    matrix: tuple[int, int]
    """H and W as stored."""
    header: Mapping[str, int] = field(default_factory=dict)
    """Sizes of the ISMRMRD header by their path, such as ``reconSpace/matrixSize/x``; empty where there is none."""
    mask: NDArray[np.bool_] | None = None
    """(W,) or (H, W), if the file has one."""
    contrast: str = ""
    target: tuple[int, int] | None = None
    """Rows and columns of the image that the scanner made, if it is there."""
    noise_std: float | None = None
    noise_covariance: NDArray[np.complex128] | None = None
    """(coils, coils), of the complex noise, in the units of k-space."""
    notes: tuple[str, ...] = ()
    voxel: tuple[float, float, float] | None = None
    """Millimetres along readout, phase encoding and slice, of the image that the scanner shows, where the header says them."""


def is_swapped(matrix: tuple[int, ...], header: Mapping[str, int]) -> bool:
    """Whether the phase encoding comes first, as in some repacked files: the last axis is as long as the readout, the one before is not."""
    return matrix[-1] == header.get("encodedSpace/matrixSize/x") != matrix[-2]


def to_complex64(path: Path, data: NDArray[np.generic], slices: Sequence[int]) -> NDArray[np.complex64]:
    """Samples of the given slices as complex64; NaN or infinity is a :class:`UserError` that names the slices."""
    if data.dtype.kind != "c":
        raise UserError(f"{path}: 'kspace' is {data.dtype}, not complex. {EXPECTED} Magnitudes are no k-space.")
    broken = [number for number, part in zip(slices, data, strict=True) if not _finite(part)]
    if broken:
        listed = ", ".join(map(str, broken[:8])) + (", ..." if len(broken) > 8 else "")
        raise UserError(f"{path}: NaN or infinity in slice {listed}. Remove the file, or mend it at its source.")
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(data, np.complex64)


def _finite(part: NDArray[np.generic]) -> bool:
    """Whether all numbers are finite: at once by the sum of their squares, one by one only if that overflows or is NaN."""
    flat = np.ascontiguousarray(part).reshape(-1)
    return bool(np.isfinite(np.vdot(flat, flat)) or np.isfinite(flat).all())
