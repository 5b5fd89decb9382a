"""Sets of images that any program made, to be compared: HDF5, .npz, .npy, and folders or archives of pictures.

HDF5 and numpy files hold (N, H, W) real or complex, or (N, H, W, 3); a folder of HDF5 files is read in the order of their names.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from .arrays import open_npz, read_array
from .errors import UserError
from .files import walk
from .pictures import SUFFIXES, content_of, decoded, in_colour, names_in

HDF5 = (".h5", ".hdf5")
GREY = ("L", "I;16", "I;16B", "I;16L")  # modes of pictures that stay as they are
#: Where images are in an HDF5 file, the first one that is there: ours, those of reconstructions, and fastMRI's targets, of which only
#: single-coil files have both, and theirs is esc.
DATASETS = ("images", "reconstruction", "reconstruction_esc", "reconstruction_rss", "image")
BRIGHT = 99.9  # percentile of the reference that becomes white where values have no scale of their own
DIM = 0.5  # a reference in [0, 1] whose brightest value is below this is not taken for display values
OVERSHOOT = 0.05  # beyond [0, 1] or [-1, 1] that a generator's values may lie: they are clipped
NAMES = {"bytes": "bytes", "unit": "values in [0, 1]", "symmetric": "values in [-1, 1]"}
UNITS = 10.0  # a set that is so many times brighter or darker than its reference is in other units

Array = NDArray[Any]  # (N, H, W) or (N, H, W, 3)


def read_set(path: Path) -> tuple[Array, list[str] | None]:
    """The images of a file or folder as they are stored; and of several HDF5 files the one that each is from, whose images are alike.

    Raises:
        UserError: nothing that is known, images of several sizes or kinds, or a damaged file.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    volumes = volumes_in(path)
    found = [read() for read in volumes.values()]
    if len({(array.shape[1:], array.dtype.kind) for array in found}) > 1:
        listed = ", ".join(sorted({f"{' x '.join(map(str, array.shape[1:]))} {array.dtype}" for array in found}))
        raise UserError(f"{path}: images of several sizes or kinds ({listed}). Bring all to one.")
    owners = [name for name, array in zip(volumes, found, strict=True) for _ in array]
    return np.concatenate(found), owners if 1 < len(found) < len(owners) else None


def volumes_in(path: Path) -> dict[str, Callable[[], Array]]:
    """What reads the images of each file, by its place in the folder without the ending; pictures, which are files of one image, are one
    set ``""``."""
    files = [path] if path.is_file() else walk(path)
    hdf5 = [file for file in files if file.suffix.lower() in HDF5]
    if hdf5:
        return {_name(file, path): partial(_of_hdf5, file) for file in hdf5}
    if path.is_file() and path.suffix.lower() in (".npz", ".npy"):
        return {path.stem: lambda: _checked(str(path), _of_numpy(path))}
    pictures = [file for file in files if file.suffix.lower() in {*SUFFIXES, ".zip"}]
    if not pictures:
        raise UserError(
            f"{path}: no images found; expected HDF5, .npz, .npy, or a folder or .zip of {', '.join(sorted(SUFFIXES))}"
        )
    return {"": lambda: _checked(str(path), _of_pictures(path, pictures))}


def _name(file: Path, path: Path) -> str:
    return file.stem if file == path else file.relative_to(path).with_suffix("").as_posix()


def _of_hdf5(path: Path) -> Array:
    try:
        with h5py.File(path, "r") as file:
            name = next((name for name in DATASETS if isinstance(file.get(name), h5py.Dataset)), None)
            if name is None:
                raise UserError(f"{path}: holds {', '.join(file) or 'nothing'}; expected one of {', '.join(DATASETS)}")
            array: Array = file[name][()]
    except (OSError, KeyError, ValueError) as error:
        raise UserError(f"{path}: not a readable HDF5 file ({error})") from None
    return _checked(f"{path} ({name})", array)


def _of_numpy(path: Path) -> Array:
    if path.suffix.lower() == ".npz":
        arrays = open_npz(path)
        images = [key for key in arrays.files if key in DATASETS] or arrays.files
        if len(images) != 1:
            raise UserError(f"{path}: holds {', '.join(arrays.files) or 'nothing'}; expected one array, or one called images")
        return read_array(path, arrays, images[0])
    try:
        return np.asarray(np.load(path, allow_pickle=False))
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable .npy file ({error})") from None


def _of_pictures(path: Path, files: Sequence[Path]) -> Array:
    """Pictures in grey if all of them are, else in colour."""
    images = []
    for name in names_in(path, files):
        if Path(name).suffix.lower() not in SUFFIXES:
            continue
        try:
            picture = decoded(content_of(path, name))
            images.append(np.asarray(picture if picture.mode in GREY else in_colour(picture)))
        except UserError as error:
            raise UserError(f"{path}: {name}: {error}") from None
    if len({image.shape[:2] for image in images}) > 1:
        raise UserError(f"{path}: pictures of several sizes; bring all to one")
    if len({image.ndim for image in images}) > 1 and all(image.dtype == np.uint8 for image in images):
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in images]
    if len({(image.ndim, image.dtype) for image in images}) > 1:
        raise UserError(f"{path}: grey pictures of 16 bits beside others; bring all to one kind")
    return np.stack(images)


def _checked(place: str, array: Array) -> Array:
    """Images (N, H, W[, 3]) of numbers."""
    array = array[:, 0] if array.ndim == 4 and array.shape[1] == 1 else array
    array = array[..., 0] if array.ndim == 4 and array.shape[-1] == 1 else array
    if array.dtype.kind not in "uifc" or array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] != 3) or not array.size:
        raise UserError(f"{place}: {array.dtype} {' x '.join(map(str, array.shape))}; expected images (N, H, W) or (N, H, W, 3)")
    if not np.isfinite(array).all():
        raise UserError(f"{place}: holds NaN or infinity")
    return array


@dataclass(frozen=True)
class Preprocessing:
    """How stored values become display values in [0, 1], in steps of 8 bits; the reference decides for all sets."""

    values: str
    """bytes (0 to 255), unit ([0, 1]), symmetric ([-1, 1]), or magnitude (divided by ``white``)."""
    white: float = 1.0

    def __call__(self, images: Array, place: Path) -> NDArray[np.float32]:
        """Display values of images; a :class:`UserError` for values that cannot be those of the reference."""
        shown = self._scaled(images, place)
        return (np.rint(255 * np.clip(shown, 0, 1)) / 255).astype(np.float32)

    def _scaled(self, images: Array, place: Path) -> Array:
        if images.dtype == np.uint8 and self.values != "magnitude":
            return images / np.float32(255)
        kind = _kind_of(images)
        if images.dtype.kind == "c" and self.values != "magnitude":
            raise UserError(
                f"{place}: complex images, and the reference holds {NAMES[self.values]}. Give magnitudes, scaled as the reference is."
            )
        if self.values == "magnitude":
            if kind == "bytes":
                raise UserError(
                    f"{place}: bytes, and the reference holds magnitudes whose {BRIGHT}th percentile is {self.white:.3g}. Store both as one"
                    " type, in the same units."
                )
            bright = float(np.percentile(np.abs(images), BRIGHT)) / self.white
            if kind in ("negative", "symmetric") or not 1 / UNITS < bright < UNITS:
                raise UserError(
                    f"{place}: {_span(images)}; expected magnitudes in the units of the reference, whose {BRIGHT}th percentile is"
                    f" {self.white:.3g}. Bring both to the same units."
                )
            return np.abs(images) / np.float32(self.white)
        # Of a reference of bytes nothing is known but that it is displayed: both ways to store that in floating point are taken.
        of = ("symmetric" if kind == "symmetric" else "unit") if self.values == "bytes" else self.values
        low = -1.0 if of == "symmetric" else 0.0
        if images.dtype.kind != "f" or images.min() < low - OVERSHOOT or images.max() > 1 + OVERSHOOT:
            raise UserError(
                f"{place}: {_span(images)}, and the reference holds {NAMES[self.values]}. Expected floating point between {low:.0f} and 1, or"
                " bytes (uint8). Scale or convert them."
            )
        if of == "symmetric" and kind == "unit":
            print(
                f"evaluate: {place}: no value below {images.min():.3g}, and the reference holds {NAMES[of]}: taken for such, so that 0 is"
                " grey. Scale them if it is black.",
                file=sys.stderr,
            )
        return (images + 1) / 2 if of == "symmetric" else images

    def record(self) -> dict[str, Any]:
        """What stands beside the numbers."""
        return {"values": self.values, "white": self.white, "clip": [0, 1], "quantisation": "8 bits"}


def preprocessing_of(reference: Array, place: Path) -> Preprocessing:
    """What the values of the reference mean: bytes, [-1, 1] and [0, 1] are taken as such; else magnitudes, complex or of another scale
    (integers of 16 bits too), are divided by their 99.9th percentile."""
    kind = _kind_of(reference)
    if kind == "negative":
        raise UserError(f"{place}: {_span(reference)}; expected bytes, [0, 1], [-1, 1], or magnitudes, which are not negative")
    if kind != "magnitude":
        return Preprocessing(kind)
    white = float(np.percentile(np.abs(reference), BRIGHT))
    if white <= 0:
        raise UserError(f"{place}: all images are black; there is nothing to compare with")
    return Preprocessing("magnitude", white)


def _kind_of(images: Array) -> str:
    """bytes, unit, symmetric or magnitude; or negative, which is none of them."""
    if images.dtype == np.uint8:
        return "bytes"
    if images.dtype.kind == "c":
        return "magnitude"
    low, high = float(images.min()), float(images.max())
    if low < -OVERSHOOT:
        return "symmetric" if low >= -1 - OVERSHOOT and high <= 1 + OVERSHOOT else "negative"
    return "unit" if images.dtype.kind == "f" and DIM < high <= 1 + OVERSHOOT else "negative" if low < 0 else "magnitude"


def _span(images: Array) -> str:
    part = images.real if images.dtype.kind == "c" else images
    return f"{images.dtype} from {part.min():.3g} to {part.max():.3g}"
