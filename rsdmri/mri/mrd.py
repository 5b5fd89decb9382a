"""ISMRMRD (MRD) in HDF5: single readouts with their places, sorted into k-space.

``dataset/xml`` is the header, ``dataset/data`` the acquisitions, read at once. Noise scans give the covariance of the coils' noise;
navigators, phase corrections and dummies are left out. ACS lines that are flagged as calibration alone fill the columns that no image
line has. What is measured more than once (averages) is averaged; of several contrasts, repetitions, phases or sets the first is taken,
with a note.
"""

from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .fastmri_file import parse_header, parse_voxel
from .source import Source, to_complex64

# Bits of the flags, counted from 1 as in the standard.
NOISE = 19
CALIBRATION = 20  # of parallel imaging and not of the image: the ACS lines of an accelerated scan
OTHERS = (23, 24, 26, 27, 28, 29, 30, 31)  # navigation, phase correction, feedback, dummies, phase stabilisation
REVERSE = 22
FIRST_OF = ("contrast", "phase", "repetition", "set")


def is_mrd(file: h5py.File) -> bool:
    """Whether an HDF5 file has the layout of ISMRMRD."""
    group = file.get("dataset")
    return isinstance(group, h5py.Group) and {"xml", "data"} <= set(group.keys())


def open_mrd(path: Path, file: h5py.File) -> Source:
    """The scan of an ISMRMRD file: Cartesian, two-dimensional, of several coils."""
    try:
        text = np.ravel(file["dataset/xml"][()])[0]
        header = parse_header(text)
        records = file["dataset/data"][()]
        heads, samples = records["head"], records["data"]
        flags, index = heads["flags"], heads["idx"]
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise UserError(f"{path}: not a complete ISMRMRD file ({error}). Convert it again.") from None
    matrix = (header.get("encodedSpace/matrixSize/x", 0), header.get("encodedSpace/matrixSize/y", 0))
    if min(matrix) < 1:
        raise UserError(f"{path}: the ISMRMRD header says no encodedSpace/matrixSize. Convert it again.")
    imaging = _imaging(path, heads, flags)
    notes = []
    for name in FIRST_OF:
        several = np.unique(index[name][imaging])
        if len(several) > 1:
            notes.append(f"the first of {len(several)} {name}s is taken")
            imaging = imaging[index[name][imaging] == several[0]]
    if np.any(index["kspace_encode_step_2"][imaging]):
        raise UserError(
            f"{path}: a 3-D scan (kspace_encode_step_2 is in use). Transform that direction first, and write its slices."
        )
    numbers = np.unique(index["slice"][imaging])
    calibration = _has(flags[imaging], CALIBRATION)
    kspace, count = _sorted(path, matrix, header, heads, samples, imaging[~calibration], numbers)
    if calibration.any():
        extra, more = _sorted(path, matrix, header, heads, samples, imaging[calibration], numbers)
        fills = (count == 0) & (more > 0)
        kspace = np.where(fills[:, None, None, :], extra, kspace)
        count = np.where(fills, more, count)
    measured = np.asarray((count > 0).all(0))
    if not np.array_equal(measured, (count > 0).any(0)):
        raise UserError(f"{path}: slices have different columns; a scan has one mask. Write its slices to several files.")
    averages = count[:, measured]
    if averages.min() != averages.max():
        notes.append(f"columns were measured {averages.min()} to {averages.max()} times: their noise differs")
    return Source(
        format="ISMRMRD",
        slices=len(numbers),
        load=lambda slices: to_complex64(path, kspace[list(slices)], slices),
        matrix=matrix,
        header=header,
        mask=measured,
        noise_covariance=_covariance(heads, samples, np.flatnonzero(_has(flags, NOISE)), int(imaging[0]), float(averages.mean())),
        notes=tuple(notes),
        voxel=parse_voxel(text),
    )


def _has(flags: NDArray[Any], bit: int) -> NDArray[np.bool_]:
    return (flags.astype(np.uint64) >> np.uint64(bit - 1)) & np.uint64(1) == 1


def _imaging(path: Path, heads: NDArray[Any], flags: NDArray[Any]) -> NDArray[np.intp]:
    """The numbers of the acquisitions that are image lines of the first encoding."""
    left_out = np.any([_has(flags, bit) for bit in (NOISE, *OTHERS)], axis=0)
    imaging = np.flatnonzero(~left_out & (heads["encoding_space_ref"] == 0))
    if not len(imaging):
        raise UserError(f"{path}: {len(heads)} acquisitions, none of them an image line")
    if np.any(heads["trajectory_dimensions"][imaging]):
        raise UserError(
            f"{path}: the acquisitions have trajectories: not Cartesian. Grid them first; masks of columns are supported."
        )
    if len(np.unique(heads["active_channels"][imaging])) > 1:
        raise UserError(
            f"{path}: the number of channels changes between acquisitions ({np.unique(heads['active_channels'][imaging])})"
        )
    return imaging


def _samples(data: NDArray[Any], channels: int) -> NDArray[np.complex64]:
    """One readout (channels, samples), stored as pairs of real numbers."""
    return np.asarray(data, np.float32).view(np.complex64).reshape(channels, -1)


def _sorted(
    path: Path,
    matrix: tuple[int, int],
    header: dict[str, int],
    heads: NDArray[Any],
    samples: NDArray[Any],
    imaging: NDArray[np.intp],
    numbers: NDArray[Any],
) -> tuple[NDArray[np.complex64], NDArray[np.int64]]:
    """K-space (slices, coils, H, W), the mean of what was measured more than once, and how often (slices, W)."""
    height, width = matrix
    channels = int(heads["active_channels"][imaging[0]])
    kspace = np.zeros((len(numbers), channels, height, width), np.complex64)
    count = np.zeros((len(numbers), width), np.int64)
    # The line of the header's centre lies at W // 2.
    shift = width // 2 - header.get("encodingLimits/kspace_encoding_step_1/center", width // 2)
    for number in imaging:
        head = heads[number]
        try:
            line = _samples(samples[number], channels)
        except ValueError:
            raise UserError(
                f"{path}: acquisition {number} holds {len(samples[number])} numbers, not {channels} channels of pairs"
            ) from None
        if _has(head["flags"], REVERSE):
            line = line[:, ::-1]
        line = line[:, int(head["discard_pre"]) : line.shape[1] - int(head["discard_post"])]
        column = int(head["idx"]["kspace_encode_step_1"]) + shift
        start = height // 2 - (int(head["center_sample"]) - int(head["discard_pre"]))
        if not (0 <= column < width and start >= 0 and start + line.shape[1] <= height):
            raise UserError(
                f"{path}: acquisition {number} ({line.shape[1]} samples from {start}, column {column}) lies outside of the matrix"
                f" {height} x {width} that the header says"
            )
        place = int(np.searchsorted(numbers, head["idx"]["slice"]))
        kspace[place, :, start : start + line.shape[1], column] += line
        count[place, column] += 1
    kspace /= np.maximum(count, 1)[:, None, None, :]
    return kspace, count


def _covariance(
    heads: NDArray[Any], samples: NDArray[Any], noise: NDArray[np.intp], imaging: int, averages: float
) -> NDArray[np.complex128] | None:
    """The covariance of the coils' complex noise in k-space, from the noise scans if there are any.

    Noise is white: its variance is inverse to the time a sample takes, which may differ between the two, and to the averages.
    """
    channels = int(heads["active_channels"][imaging])
    usable = [number for number in noise if heads["active_channels"][number] == channels and len(samples[number])]
    if not usable:
        return None
    lines = np.concatenate([_samples(samples[number], channels) for number in usable], axis=1).astype(np.complex128)
    times = float(heads["sample_time_us"][usable[0]]), float(heads["sample_time_us"][imaging])
    scale = times[0] / times[1] if min(times) > 0 else 1.0
    covariance: NDArray[np.complex128] = lines @ lines.conj().T / lines.shape[1] * scale / averages
    return covariance
