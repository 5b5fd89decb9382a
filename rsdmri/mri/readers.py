"""Scans from files of any format that is read: fastMRI and ISMRMRD in HDF5, BART's .cfl.

K-space is centred; H is the readout and W the phase encoding, along which columns may be missing. A file without a mask was measured wherever
it is not zero. Columns that the header's encoding limits leave out were filled with zeros by the scanner and never count as measured.
"""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch import Tensor

from ..errors import UserError
from ..tensors import squared
from .bart import open_bart
from .fastmri_file import open_fastmri
from .masks import find_dc, sampled
from .mrd import is_mrd, open_mrd
from .source import EXPECTED, Source, is_swapped

ENDINGS = (".h5", ".hdf5", ".mrd", ".cfl")
MAPS_ENDING = ".maps.h5"
OFF_CENTRE = 2  # samples by which the centre of k-space may lie beside N // 2 and is left there
FEWEST_SPOKES = 64  # fewer lines of the same energy may be the centre of a Cartesian scan


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
    noise_covariance: Tensor | None = None
    """(coils, coils) complex, of the noise of k-space, where the file has noise scans."""
    format: str = "fastMRI"
    slices: int = 0
    """Of the file; ``kspace`` may hold fewer."""
    voxel: tuple[float, float, float] | None = None
    """Millimetres along H, W and the slice, of the image that the scanner shows, where the header says them."""
    swapped: bool = False
    """Whether the file has the phase encoding first, and H and W were swapped."""

    @property
    def name(self) -> str:
        """The volume's name: the file's, without its ending."""
        return self.path.stem

    @property
    def fully_sampled(self) -> bool:
        """Whether every column that the protocol covers was measured."""
        return bool(self.mask[..., self.encoded].all())

    @property
    def dead_coils(self) -> list[int]:
        """The coils that are zero in every slice."""
        return [number for number, alive in enumerate(self.kspace.flatten(2).any(2).any(0).tolist()) if not alive]


def find_files(paths: Iterable[Path | str]) -> list[Path]:
    """The files of k-space among ``paths`` and in the folders among them, sorted; maps and hidden files are left out."""
    found: dict[Path, None] = {}
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(path / name for name in os.listdir(path) if name.endswith(ENDINGS) and not name.startswith("."))
            if not inside:
                raise UserError(
                    f"{path}: no k-space in this folder ({', '.join(ENDINGS)}; folders inside it are not searched). {EXPECTED}"
                )
            found.update(dict.fromkeys(inside))
        elif path.exists():
            found[path.with_suffix(".cfl") if path.suffix == ".hdr" else path] = None
        else:
            raise UserError(f"{path}: no such file or folder")
    named = [path for path in found if not path.name.endswith(MAPS_ENDING)]
    # The same file by two ways is one file; links are not followed for names, which differ from those of their targets.
    files = list({(path.parent.resolve(), path.name): path for path in reversed(named)}.values())[::-1]
    if not files:
        given = ", ".join(map(str, found)) or "nothing"
        raise UserError(f"no k-space among the files given ({given}): name files, or folders of them (data.kspace)")
    return files


def require_own_names(files: Sequence[Path]) -> Sequence[Path]:
    """The files, none of which has the name of another but for its ending: what is made of each is named by it."""
    stems: dict[str, Path] = {}
    for file in files:
        other = stems.setdefault(file.stem, file)
        if other != file:
            raise UserError(
                f"{other} and {file} have the same name, and what is made of them would overwrite each other: use two --out folders"
            )
    return files


def read(path: Path | str, *, singlecoil: bool = False) -> KSpace:
    """Reads a scan; anything that is wrong with its file is a :class:`UserError` that names it and says what to do.

    ``singlecoil``: a single-coil file, as one coil.
    """
    path = Path(path)
    with _open(path, singlecoil) as source:
        return _scan(path, source, source.load(range(source.slices)), singlecoil)


def matrix_of(path: Path, *, singlecoil: bool = False) -> tuple[int, int]:
    """H and W of k-space; no sample is read."""
    with _open(path, singlecoil) as source:
        height, width = source.matrix
        return (width, height) if is_swapped(source.matrix, source.header) else (height, width)


def glance(path: Path, *, singlecoil: bool = False) -> KSpace:
    """One slice alone, the middle one or the nearest with signal, and the first for what is wrong with it."""
    with _open(path, singlecoil) as source:
        first = source.load([0])
        middle = source.slices // 2
        for number in sorted(range(source.slices), key=lambda number: abs(number - middle)):
            kspace = source.load([number]) if number else first
            if kspace.any():
                break
        return _scan(path, source, kspace, singlecoil)


@contextmanager
def _open(path: Path, singlecoil: bool) -> Iterator[Source]:
    """The source of a file of any format."""
    try:
        if path.suffix in (".cfl", ".hdr"):
            yield open_bart(path.with_suffix(".cfl"), singlecoil)
            return
        if not h5py.is_hdf5(path):
            raise UserError(f"{path}: not HDF5, but {_what_it_is(path)}. {EXPECTED} Download or convert it again.")
        with h5py.File(path, "r") as file:
            yield open_mrd(path, file) if is_mrd(file) else open_fastmri(path, file, singlecoil)
    except (OSError, RuntimeError, KeyError) as error:
        raise UserError(f"{path}: damaged or truncated file ({error}). Download or copy it again.") from None


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


def _scan(path: Path, source: Source, kspace: np.ndarray, singlecoil: bool) -> KSpace:
    """What is measured, and what of it the protocol covers."""
    header, notes, mask = source.header, source.notes, source.mask
    swapped = is_swapped(source.matrix, source.header)
    if swapped:
        kspace, notes = kspace.swapaxes(-1, -2), (*notes, "readout and phase encoding were swapped")
    tensor = torch.from_numpy(np.ascontiguousarray(kspace))
    height, width = tensor.shape[-2:]
    encoded = _encoded(header, width)
    found = sampled(tensor)
    measured = found if mask is None else torch.from_numpy(mask)
    if measured.ndim == found.ndim == 1:
        empty = int((measured & ~found & encoded).sum())
        notes = (*notes, f"the mask has {empty} columns that hold no sample: they count as missing") if empty else notes
        measured = measured & found
    measured = measured & encoded
    if not measured.any():
        raise UserError(f"{path}: nothing was measured: k-space is zero everywhere, or the mask leaves nothing of it")
    if mask is None and measured.ndim == 1:
        encoded = _without_zero_filling(measured, encoded)
    _check_cartesian(path, tensor)
    if singlecoil and tensor.shape[1] != 1:
        raise UserError(f"{path}: {tensor.shape[1]} coils found; --singlecoil is for files of one coil")
    tensor, measured, encoded, moved = _recentred(tensor, measured, encoded)
    notes = (*notes, *moved)
    return KSpace(
        path=path,
        kspace=tensor if measured.all() else torch.where(measured, tensor, 0),  # not a product, which keeps the signs of zeros
        mask=measured,
        encoded=encoded,
        contrast=source.contrast,
        recon_size=_recon_size(source, (height, width), swapped),
        noise_std=source.noise_std,
        notes=notes,
        noise_covariance=None if source.noise_covariance is None else torch.from_numpy(source.noise_covariance),
        format=source.format,
        slices=source.slices,
        voxel=source.voxel,
        swapped=swapped,
    )


def _recentred(kspace: Tensor, mask: Tensor, encoded: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[str, ...]]:
    """K-space whose centre lies clearly beside N // 2 (as of M4Raw), moved there: of the image, that is a linear phase.

    Everything that counts lines from the middle, the ACS of masks and maps, then means the same ones.
    """
    try:
        centre = find_dc(kspace, mask)
    except UserError:  # nothing measured there: others say so
        return kspace, mask, encoded, ()
    beside = [at - n // 2 for at, n in zip(centre, kspace.shape[-2:], strict=True)]
    if max(map(abs, beside)) <= OFF_CENTRE:
        return kspace, mask, encoded, ()
    moved = kspace.roll((-beside[0], -beside[1]), dims=(-2, -1))
    turned = mask.roll(-beside[1]) if mask.ndim == 1 else mask.roll((-beside[0], -beside[1]), dims=(-2, -1))
    note = f"the centre of k-space lay {beside[0]:+d}, {beside[1]:+d} samples beside the middle and was moved there"
    return moved, turned, encoded.roll(-beside[1]), (note,)


def _check_cartesian(path: Path, kspace: Tensor) -> None:
    """Of radial scans every line runs through the centre: all lines have about the same energy, and all have their peak in one place."""
    energy = squared(kspace[len(kspace) // 2, ::4]).sum(0)  # a part of the coils is enough
    # Of what was measured: most lines of an undersampled scan are zero, and one that is mostly noise has rows of the same energy.
    lines, samples = (part[part > 0] for part in (energy.sum(0), energy.sum(1)))
    for one, other in ((lines, samples), (samples, lines)):
        alike = len(one) >= FEWEST_SPOKES and float(one.max()) < 4 * float(one.median())
        if alike and float(other.max()) > 200 * float(other.median()):
            raise UserError(
                f"{path}: looks radial, as fastMRI's breast files: every line of k-space has the same energy and its peak in the same"
                " place. Only Cartesian scans are supported: grid it, or take another acquisition."
            )


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


def _recon_size(source: Source, matrix: tuple[int, int], swapped: bool) -> tuple[int, int]:
    """Rows and columns of the target, else of the header, else of k-space."""
    height, width = matrix
    if source.target is not None:
        rows, cols = source.target[::-1] if swapped else source.target
    else:
        header = source.header
        rows, cols = header.get("reconSpace/matrixSize/x", height), header.get("reconSpace/matrixSize/y", width)
    if cols > width:  # fastMRI's rule for scans that are narrower than their image
        rows, cols = width, width
    return min(max(rows, 1), height), min(max(cols, 1), width)
