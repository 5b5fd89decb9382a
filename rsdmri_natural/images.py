"""Photographs: from files as their owners distribute them to one array, read and resized once."""

import hashlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture

from rsdmri.arrays import open_npz, read_array, unpickled
from rsdmri.errors import UserError
from rsdmri.files import atomic, walk
from rsdmri.jobs import FilesFailed, run_files
from rsdmri.pictures import MEMBER, SUFFIXES, content_of, decoded, in_colour, names_in
from rsdmri.tensors import number_of

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
PARTITION = "list_eval_partition.txt"  # CelebA: file; 0, 1 or 2 for train, val, test
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"  # CelebA-HQ: number; number in CelebA; file in CelebA
CELEBA, CELEBA_HQ = "img_align_celeba", "CelebA-HQ-img"
FFHQ = ("images1024x1024", "thumbnails128x128")
BATCHES = ("data_batch_", "test_batch")  # CIFAR-10
FEW = 200  # pictures for which processes of their own do not pay
SAID = 5  # bad pictures that are named

Pixels = NDArray[np.uint8]


def load_images(
    path: Path, split: str, size: int, cache: Path, skip_bad: bool = False, exact: bool = False
) -> tuple[Pixels, list[str]]:
    """The photographs of a split, (N, size, size, 3), and their names; kept in the folder ``cache`` once they were read.

    ``path``: a folder or a .zip of pictures, an .npz with an array for each split, or CIFAR-10's batches; ``split``: of
    :func:`splits_of`, or "all". A picture that cannot be read, or is smaller than ``size`` (with ``exact``: of another size), is an
    error that names it; with ``skip_bad`` it is left out and counted. What lies beside ``cache``, the runs, is none of the photographs.
    """
    files = _files(path, cache.parent.resolve())
    facts = _facts(files)
    key = hashlib.sha256(repr((split, size, skip_bad, exact, facts)).encode()).hexdigest()[:16]
    kept = cache / f"{path.stem}-{split}-{size}-{key}.h5"
    try:
        with h5py.File(kept, "r") as file:
            pixels, names, bad = file["images"][()], file["name"].asstr()[()].tolist(), file["bad"].asstr()[()].tolist()
    except (OSError, KeyError):  # not there, or damaged
        pixels, names, bad = _read(path, files, split, size, skip_bad, exact)
        if _facts(files) != facts:
            raise UserError(f"{path}: changed while it was read. Run the same again.") from None
        with atomic(kept) as temporary, h5py.File(temporary, "w") as file:
            file["images"], file["name"], file["bad"] = pixels, names, np.array(bad, h5py.string_dtype())
    if bad:
        print(f"images: {len(bad)} pictures left out (data.skip_bad):\n{_first(bad)}", file=sys.stderr)
    return pixels, names


def _files(path: Path, runs: Path) -> list[Path]:
    """The file, or all files of the folder that may matter."""
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UserError(f"{path}: no such file or folder (data.images)")
    mine = {*SUFFIXES, ".zip"}
    found = [f for f in walk(path) if f.suffix.lower() in mine or f.name in (PARTITION, MAPPING) or f.name.startswith(BATCHES)]
    if runs.is_relative_to(path.resolve()):
        found = [file for file in found if runs not in file.resolve().parents]
    return found


def _facts(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """What tells whether files have changed."""
    facts = []
    for file in files:
        try:
            str(file).encode()
            state = file.stat()
        except UnicodeEncodeError:
            raise UserError(f"{str(file)!r}: this name is not UTF-8. Rename the file.") from None
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror})") from None
        facts.append((str(file), state.st_size, state.st_mtime_ns))
    return facts


def _first(lines: Sequence[str]) -> str:
    return "\n".join([*lines[:SAID], *([f"... and {len(lines) - SAID} more"] if len(lines) > SAID else [])])


def _read(
    path: Path, files: Sequence[Path], split: str, size: int, skip_bad: bool, exact: bool
) -> tuple[Pixels, list[str], list[str]]:
    """Pixels, names, and what was wrong with the pictures that were left out."""
    stack = _npz(path, split) if path.suffix == ".npz" else _cifar(files, split)
    if stack is not None:
        _check_size(stack.shape[2], stack.shape[1], size, exact, f"{path}: ")
        return (
            np.stack([_fitted(Picture.fromarray(image), size) for image in stack]),
            [f"{split}/{i}" for i in range(len(stack))],
            [],
        )
    if path.is_file() and path.suffix.lower() != ".zip":
        raise UserError(f"{path}: expected a folder of pictures, a .zip of them, or an .npz (data.images)")
    of = splits_of(path, names_in(path, files))
    names = sorted(name for name, found in of.items() if split in ("all", found))
    if not names:
        there = ", ".join(f"{found or 'in no split'} ({count})" for found, count in Counter(of.values()).items())
        raise UserError(
            f"{path}: nothing in the split '{split}'; found {there or f'no picture ({min(SUFFIXES)} ...)'} (data.split)"
        )
    if split != "all" and "" in of.values():
        print(f"images: {list(of.values()).count('')} pictures belong to no split and are left out", file=sys.stderr)
    bad: Mapping[str, str] = {}
    pictures: Mapping[str, Pixels]
    try:
        read = partial(_picture, path, size, exact)
        pictures = run_files(read, names, workers=int(len(names) < FEW), stage="images", unit="pictures", note=_no_note)
    except FilesFailed as error:
        pictures, bad = error.results, error.errors
        if not skip_bad or not pictures:
            said = f"{path}: {len(bad)} of {len(names)} pictures cannot be used (--skip-bad leaves them out)"
            raise UserError(f"{said}:\n{_first(list(bad.values()))}") from None
    good = [name for name in names if name in pictures]
    return np.stack([pictures[name] for name in good]), good, list(bad.values())


def _no_note(_: Pixels) -> str:
    return ""


def splits_of(path: Path, names: Sequence[str]) -> dict[str, str]:
    """train, val or test for every picture among ``names``, or "" for those that their owners put nowhere.

    By the first that there is of: CelebA's list (for CelebA-HQ through its mapping); folders train, val, test, as AFHQ-v2 has them;
    FFHQ's first 60,000 for train and the others for val, as its owners say; a hash of the name: 8 in 10, 1, 1.
    """
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    lists = {PurePosixPath(name).name: name for name in names}
    stem = {name: PurePosixPath(name).stem for name in pictures}
    parts = {name: (path.name, *PurePosixPath(name.replace(MEMBER, "/")).parts[:-1]) for name in pictures}

    def within(folder: str) -> list[str]:
        return [name for name in pictures if any(part.removesuffix(".zip") == folder for part in parts[name])]

    hq, celeba = within(CELEBA_HQ) if MAPPING in lists else [], within(CELEBA)
    if hq or celeba:
        of = {}
        if PARTITION in lists:
            of = {PurePosixPath(row[0]).stem: ("train", "val", "test")[int(row[1])] for row in _rows(path, lists[PARTITION], 2)}
        if hq:
            of = {row[0]: of.get(PurePosixPath(row[2]).stem, "") for row in _rows(path, lists[MAPPING], 3)}
        return {name: of.get(stem[name], "") for name in hq or celeba}
    folders = {name: next((SPLITS[part.lower()] for part in parts[name] if part.lower() in SPLITS), "") for name in pictures}
    if any(folders.values()):
        return folders
    for folder in FFHQ:
        chosen = [name for name in within(folder) if stem[name].isdecimal()]
        if chosen:
            return {name: "train" if int(stem[name]) < 60_000 else "val" for name in chosen}
    return {name: {0: "test", 1: "val"}.get(number_of(name) % 10, "train") for name in pictures}


def _rows(path: Path, name: str, columns: int) -> list[list[str]]:
    """The rows of a list that begin with a number or a file."""
    text = content_of(path, name).decode("utf-8-sig", errors="replace")
    rows = [row for row in map(str.split, text.splitlines()) if row and row[0][0].isdigit()]
    if not rows or any(len(row) < columns or (columns == 2 and row[1] not in ("0", "1", "2")) for row in rows):
        raise UserError(f"{path}: {name} is not the list of its data set: {columns} columns expected. Download it again.")
    return rows


def _picture(path: Path, size: int, exact: bool, name: str) -> Pixels:
    """One picture of a folder or an archive."""
    try:
        picture = decoded(content_of(path, name))
        _check_size(picture.width, picture.height, size, exact)
        return _fitted(in_colour(picture), size)
    except UserError as error:
        raise UserError(f"{path / name}: {error}") from None


def _check_size(width: int, height: int, size: int, exact: bool, where: str = "") -> None:
    if exact and (width, height) != (size, size):
        raise UserError(
            f"{where}{width} x {height}, and measured pictures are taken as they are: {size} x {size} expected (data.size)"
        )
    if min(width, height) < size:
        raise UserError(f"{where}{width} x {height}, smaller than data.size {size}")


def _fitted(picture: Picture.Image, size: int) -> Pixels:
    """The central square, brought to size by Lanczos."""
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square if side == size else square.resize((size, size), Picture.Resampling.LANCZOS))


def _npz(path: Path, split: str) -> Pixels:
    arrays = open_npz(path)
    if split not in arrays.files:
        raise UserError(f"{path}: no array '{split}'; found {', '.join(arrays.files) or 'nothing'} (data.split)")
    stack = read_array(path, arrays, split)
    if stack.dtype != np.uint8 or stack.ndim != 4 or stack.shape[-1] != 3 or stack.size == 0:
        raise UserError(f"{path}: '{split}' is {stack.dtype} {stack.shape}; expected uint8 (N, H, W, 3)")
    return stack


def _cifar(files: Sequence[Path], split: str) -> Pixels | None:
    """CIFAR-10's batches of 10,000, (N, 32, 32, 3), if that is what the files are: python (pickled) or binary (a label and 3 planes)."""
    batches = [file for file in files if file.name.startswith(BATCHES) and file.suffix in ("", ".bin")]
    if not batches:
        return None
    if len({file.suffix for file in batches}) > 1:
        raise UserError(
            f"{batches[0]}: and binary batches, which would be the same images twice. Name one of the folders (data.images)."
        )
    chosen = [file for file in batches if split in ("all", "test" if file.name.startswith("test") else "train")]
    if not chosen:
        raise UserError(f"{batches[0].parent}: CIFAR-10 has the splits train and test, not '{split}' (data.split)")
    planes = []
    for file in chosen:
        content = file.read_bytes()
        try:
            rows = np.frombuffer(content, np.uint8).reshape(-1, 3073)[:, 1:] if file.suffix else unpickled(content)[b"data"]
            planes.append(np.asarray(rows, np.uint8).reshape(-1, 3, 32, 32))
        except (UserError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{file}: not a batch of CIFAR-10 ({error}). Download it again.") from None
    return np.concatenate(planes).transpose(0, 2, 3, 1)
