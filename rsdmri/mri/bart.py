"""BART's .cfl / .hdr: complex64, little-endian, column-major; dimensions 0 readout, 1 phase encoding, 2 second phase encoding or slice,
3 coil, 4 set of maps, 13 slice.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..files import atomic
from .source import Source, to_complex64

COILS, MAPS, SLICES = 3, 4, 13
DIMENSIONS = 16


def read_cfl(path: Path) -> NDArray[np.complex64]:
    """The array of a .cfl with its .hdr beside it, all dimensions kept; mapped, not loaded."""
    data, header = path.with_suffix(".cfl"), path.with_suffix(".hdr")
    if not header.is_file() or not data.is_file():
        raise UserError(f"{path}: BART's files come in pairs; {(data if header.is_file() else header).name} is missing beside it")
    lines = header.read_text(encoding="utf-8", errors="replace").splitlines()
    try:
        shape = tuple(int(word) for word in lines[lines.index("# Dimensions") + 1].split())
    except (ValueError, IndexError):
        raise UserError(f"{header}: no line of numbers after '# Dimensions'. Write it again with BART.") from None
    expected, found = 8 * int(np.prod(shape, dtype=object)) if shape and min(shape) > 0 else 0, data.stat().st_size
    if expected != found or not shape:
        raise UserError(
            f"{data}: {found} bytes found, and {header.name} ({' x '.join(map(str, shape))}) says {expected}. Copy both again."
        )
    return np.memmap(data, np.dtype("<c8"), "r", shape=shape, order="F")


def write_cfl(path: Path, array: NDArray[np.complexfloating]) -> None:
    """Writes ``path``.cfl and .hdr; the header, without which the data are nothing, comes last."""
    with atomic(path.with_suffix(".cfl")) as temporary:
        np.asarray(array, "<c8").ravel(order="F").tofile(temporary)
    shape = (*array.shape, *[1] * (DIMENSIONS - array.ndim))
    with atomic(path.with_suffix(".hdr")) as temporary:
        temporary.write_text("# Dimensions\n" + " ".join(map(str, shape)) + " \n", encoding="utf-8")


def write_maps(path: Path, maps: NDArray[np.complexfloating]) -> None:
    """Maps (slices, coils, H, W) or (slices, sets, coils, H, W) in BART's order, for ``bart pics``."""
    sets = maps if maps.ndim == 5 else maps[:, None]
    ordered = np.zeros(
        (*sets.shape[3:], 1, sets.shape[2], sets.shape[1], *[1] * (SLICES - MAPS - 1), sets.shape[0]), np.complex64
    )
    ordered[:, :, 0, :, :, 0, 0, 0, 0, 0, 0, 0, 0, :] = sets.transpose(3, 4, 2, 1, 0)
    write_cfl(path, ordered)


def open_bart(path: Path, singlecoil: bool = False) -> Source:
    """Two-dimensional k-space of several coils; unsampled is zero."""
    array = read_cfl(path)
    shape = (*array.shape, *[1] * (DIMENSIONS - array.ndim))
    used = [number for number, length in enumerate(shape) if length > 1]
    unknown = [number for number in used if number not in (0, 1, COILS, SLICES)]
    if unknown:
        raise UserError(
            f"{path}: dimensions {', '.join(map(str, unknown))} of {' x '.join(map(str, array.shape))} are in use; readout (0), phase"
            " encoding (1), coils (3) and slices (13) are read. Of a 3-D scan, transform dimension 2 (bart fft -iu 4) and make its slices"
            " dimension 13 (bart transpose 2 13)."
        )
    if shape[COILS] == 1 and not singlecoil:
        raise UserError(
            f"{path}: one coil found ({' x '.join(map(str, array.shape))}); coils are dimension 3. One is read with --singlecoil."
        )

    def load(slices: Sequence[int]) -> NDArray[np.complex64]:
        whole = array.reshape(shape[0], shape[1], shape[COILS], shape[SLICES], order="F")
        return to_complex64(path, np.stack([whole[..., number].transpose(2, 0, 1) for number in slices]), slices)

    return Source(format="BART", slices=shape[SLICES], load=load, matrix=(shape[0], shape[1]))
