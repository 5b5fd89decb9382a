"""Photographs: from files as their owners distribute them to one array, read and resized once."""

import hashlib
import io
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path, PurePosixPath
from zipfile import BadZipFile, ZipFile

import h5py
import numpy as np
from numpy.typing import NDArray
from PIL import Image as Picture
from PIL import ImageOps

from rsdmri.arrays import open_npz, read_array, unpickled
from rsdmri.errors import UserError
from rsdmri.files import atomic
from rsdmri.jobs import FilesFailed, run_files
from rsdmri.tensors import number_of

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
SPLITS = ("train", "val", "test")
PARTITION = "list_eval_partition.txt"  # CelebA: file, 0 to 2
MAPPING = "CelebA-HQ-to-CelebA-mapping.txt"  # CelebA-HQ: number, number in CelebA, file in CelebA
FFHQ = ("images1024x1024", "thumbnails128x128")
MEMBER = "!/"  # between an archive inside a folder and the name in it
FEW = 200  # pictures for which processes of their own do not pay
SAID = 5  # bad pictures that are named

Pixels = NDArray[np.uint8]


def load_images(path: Path, split: str, size: int, cache: Path, skip_bad: bool = False) -> tuple[Pixels, list[str]]:
    """The photographs of a split, (N, size, size, 3), and their names; kept in the folder ``cache`` once they were read.

    ``path``: a folder or a .zip of pictures, an .npz with an array for each split, or CIFAR-10's batches; ``split``: of
    :func:`splits_of`, or "all". A picture that cannot be read, or is smaller than ``size``, is an error that names it; with
    ``skip_bad`` it is left out and counted.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder (data.images)")
    files = [path] if path.is_file() else [file for file in sorted(path.rglob("*")) if file.is_file()]
    facts = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    key = hashlib.sha256(repr((split, size, skip_bad, facts)).encode()).hexdigest()[:16]
    kept = cache / f"{path.stem}-{split}-{size}-{key}.h5"
    if not kept.exists():
        pixels, names, bad = _read(path, files, split, size, skip_bad)
        with atomic(kept) as temporary, h5py.File(temporary, "w") as file:
            file["images"], file["name"], file.attrs["bad"] = pixels, names, bad
    with h5py.File(kept, "r") as file:
        if file.attrs["bad"]:
            print(f"images: {file.attrs['bad']} pictures of split '{split}' left out (data.skip_bad)", file=sys.stderr)
        return file["images"][()], [name.decode() for name in file["name"][()]]


def _read(path: Path, files: Sequence[Path], split: str, size: int, skip_bad: bool) -> tuple[Pixels, list[str], int]:
    """Pixels, names, and how many bad pictures were left out."""
    stack = _npz(path, split) if path.suffix == ".npz" else _cifar(files, split)
    if stack is not None:
        if min(stack.shape[1:3]) < size:
            raise UserError(f"{path}: images of {stack.shape[1]} x {stack.shape[2]}, smaller than data.size {size}")
        return (
            np.stack([_fitted(Picture.fromarray(image), size) for image in stack]),
            [f"{split}/{i}" for i in range(len(stack))],
            0,
        )
    of = splits_of(path, _names(path, files))
    names = sorted(name for name, found in of.items() if split in ("all", found))
    if not names:
        there = (
            ", ".join(f"{found} ({count})" for found, count in Counter(of.values()).items())
            or f"no picture ({' '.join(sorted(SUFFIXES))})"
        )
        raise UserError(f"{path}: nothing in the split '{split}'; found {there} (data.split)")
    bad: Mapping[str, str] = {}
    pictures: Mapping[str, Pixels]
    try:
        pictures = run_files(
            partial(_picture, path, size), names, workers=int(len(names) < FEW), stage="images", unit="pictures", note=_no_note
        )
    except FilesFailed as error:
        pictures, bad = error.results, error.errors
        said = "\n".join([*list(bad.values())[:SAID], *(["..."] if len(bad) > SAID else [])])
        if not skip_bad or not pictures:
            raise UserError(
                f"{path}: {len(bad)} of {len(names)} pictures cannot be used (--skip-bad leaves them out):\n{said}"
            ) from None
        print(said, file=sys.stderr)
    return (
        np.stack([pictures[name] for name in names if name in pictures]),
        [name for name in names if name in pictures],
        len(bad),
    )


def _no_note(_: Pixels) -> str:
    return ""


def _names(path: Path, files: Sequence[Path]) -> list[str]:
    """All files, and those in archives, by names relative to ``path``."""
    found = []
    for file in files:
        inside = f"{file.relative_to(path).as_posix()}{MEMBER}" if file != path else ""
        found += [inside + name for name in _archive(file).namelist()] if file.suffix == ".zip" else [inside.removesuffix(MEMBER)]
    return [name for name in found if not PurePosixPath(name).name.startswith(".")]


@lru_cache(maxsize=4)
def _archive(path: Path) -> ZipFile:
    try:
        return ZipFile(path)
    except (BadZipFile, OSError) as error:
        raise UserError(f"{path}: not a readable .zip ({error}). Download or copy it again.") from None


def _content(path: Path, name: str) -> bytes:
    if path.is_file():
        return _archive(path).read(name)
    archive, inside, member = name.partition(MEMBER)
    return _archive(path / archive).read(member) if inside else (path / name).read_bytes()


def splits_of(path: Path, names: Sequence[str]) -> dict[str, str]:
    """train, val or test for every picture among ``names``, by the first of these that there is.

    CelebA's list (for CelebA-HQ through its mapping); folders train, val, test, as AFHQ-v2 has them; of FFHQ its first 60,000 to
    train and the others to val, as its owners say; else a hash of the name: 8 in 10, 1, 1.
    """
    pictures = [name for name in names if PurePosixPath(name).suffix.lower() in SUFFIXES]
    lists = {PurePosixPath(name).name: name for name in names}
    parts = {name: (path.name, *PurePosixPath(name.replace(MEMBER, "/")).parts) for name in pictures}
    if PARTITION in lists:
        of = {PurePosixPath(row[0]).stem: SPLITS[int(row[1])] for row in _rows(path, lists[PARTITION], 2)}
        if MAPPING in lists:
            of = {row[0]: of.get(PurePosixPath(row[2]).stem, "") for row in _rows(path, lists[MAPPING], 3)}
        # The photographs in the wild have the names of the aligned ones.
        aligned = [name for name in pictures if "img_align_celeba" in name] or pictures
        return {name: of[PurePosixPath(name).stem] for name in aligned if of.get(PurePosixPath(name).stem)}
    folders = {name: next((part for part in parts[name] if part in SPLITS), "") for name in pictures}
    if all(folders.values()):
        return folders
    for folder in FFHQ:
        chosen = [name for name in pictures if folder in parts[name] and PurePosixPath(name).stem.isdecimal()]
        if chosen:
            return {name: "train" if int(PurePosixPath(name).stem) < 60_000 else "val" for name in chosen}
    return {name: {0: "test", 1: "val"}.get(number_of(name) % 10, "train") for name in pictures}


def _rows(path: Path, name: str, columns: int) -> list[list[str]]:
    """The rows of a list that begin with a number or a file."""
    rows = [
        row for row in map(str.split, _content(path, name).decode(errors="replace").splitlines()) if row and row[0][0].isdigit()
    ]
    if not rows or any(len(row) < columns or (columns == 2 and row[1] not in ("0", "1", "2")) for row in rows):
        raise UserError(f"{path}: {name} is not the list of its data set: {columns} columns expected. Download it again.")
    return rows


def _picture(path: Path, size: int, name: str) -> Pixels:
    """One picture of a folder or an archive."""
    try:
        with Picture.open(io.BytesIO(_content(path, name))) as picture:
            picture.load()  # a truncated file is noticed here
            upright = ImageOps.exif_transpose(picture)
            if min(upright.size) < size:
                raise UserError(f"{upright.width} x {upright.height}, smaller than data.size {size}")
            return _fitted(_rgb(upright), size)
    except Exception as error:  # Pillow's readers each have their own
        raise UserError(f"{path / name}: {error}") from None


def _rgb(picture: Picture.Image) -> Picture.Image:
    """8 bits, three channels: what is transparent over white, 16-bit grey by its high byte."""
    if picture.mode.startswith("I"):
        levels = np.asarray(picture, np.int64)
        if levels.min() < 0 or levels.max() > 65_535:
            raise UserError(f"grey levels from {levels.min()} to {levels.max()}; expected 8 or 16 bits")
        picture = Picture.fromarray((levels / 257).round().astype(np.uint8))
    if picture.mode == "F":
        raise UserError("grey levels of floating point; expected 8 or 16 bits")
    if picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info:
        picture = Picture.alpha_composite(Picture.new("RGBA", picture.size, "white"), picture.convert("RGBA"))
    return picture.convert("RGB")


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
    batches = [file for file in files if file.name.startswith(("data_batch_", "test_batch")) and file.suffix in ("", ".bin")]
    if not batches:
        return None
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
