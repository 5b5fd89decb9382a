"""Sets of images that any program made, to be compared: HDF5, .npz, .npy, and folders or archives of pictures.

HDF5 and numpy files hold (N, H, W) real or complex, or (N, H, W, 3); a folder of HDF5 files is read in the order of their names.
"""

from collections.abc import Sequence
from dataclasses import dataclass
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
#: Where images are in an HDF5 file, the first one that is there: ours, those of reconstructions, and fastMRI's targets.
DATASETS = ("images", "reconstruction", "reconstruction_rss", "reconstruction_esc", "image")
#: Values that are divided by what: of 8 and 16 bits.
INTEGERS = {"uint8": 255.0, "uint16": 65535.0}
BRIGHT = 99.9  # percentile of the reference that becomes white where values have no scale of their own
DIM = 0.5  # a reference in [0, 1] whose brightest value is below this is not taken for display values

Array = NDArray[Any]  # (N, H, W) or (N, H, W, 3)


def read_set(path: Path) -> Array:
    """The images of a file or folder as they are stored.

    Raises:
        UserError: nothing that is known, images of several sizes or kinds, or a damaged file.
    """
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    found = list(volumes_in(path).items())
    shapes = {array.shape[1:] for _, array in found}
    kinds = {array.dtype.kind for _, array in found}
    if len(shapes) > 1 or len(kinds) > 1:
        listed = ", ".join(sorted({f"{' x '.join(map(str, a.shape[1:]))} {a.dtype}" for _, a in found}))
        raise UserError(f"{path}: images of several sizes or kinds ({listed}). Bring all to one.")
    return np.concatenate([array for _, array in found])


def volumes_in(path: Path) -> dict[str, Array]:
    """The images of each file by its name without the ending; pictures, which are files of one image, are one set ``""``."""
    files = [path] if path.is_file() else walk(path)
    hdf5 = [file for file in files if file.suffix.lower() in HDF5]
    if hdf5:
        return {file.stem: _of_hdf5(file) for file in hdf5}
    if path.is_file() and path.suffix.lower() in (".npz", ".npy"):
        return {path.stem: _checked(str(path), _of_numpy(path))}
    pictures = [file for file in files if file.suffix.lower() in {*SUFFIXES, ".zip"}]
    if not pictures:
        raise UserError(
            f"{path}: no images found; expected HDF5, .npz, .npy, or a folder or .zip of {', '.join(sorted(SUFFIXES))}"
        )
    return {"": _checked(str(path), _of_pictures(path, pictures))}


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
        picture = decoded(content_of(path, name))
        images.append(np.asarray(picture if picture.mode == "L" else in_colour(picture)))
    if len({image.shape[:2] for image in images}) > 1:
        raise UserError(f"{path}: pictures of several sizes; bring all to one")
    if len({image.ndim for image in images}) > 1:
        images = [image if image.ndim == 3 else np.repeat(image[..., None], 3, -1) for image in images]
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
    """How stored values become display values in [0, 1], in steps of 8 bits; decided by the reference, the same on both sides."""

    values: str
    """unit ([0, 1], and integers by their own range), symmetric ([-1, 1]), or magnitude (divided by ``white``)."""
    white: float = 1.0

    def __call__(self, images: Array, place: Path) -> NDArray[np.float32]:
        """Display values of images; a :class:`UserError` for values that cannot be those of the reference."""
        if images.dtype.kind in "ui":
            shown, values = images / _range(images, place), "unit"
        elif self.values == "magnitude":
            shown, values = np.abs(images) / self.white, "magnitude"
        else:
            values = _values(images)
            shown = (images + 1) / 2 if values == "symmetric" else images
        if (values == "magnitude") != (self.values == "magnitude"):
            raise UserError(
                f"{place}: {images.dtype}, {_span(images)}, cannot be compared with a reference of {self.values} values"
            )
        return (np.rint(255 * np.clip(shown, 0, 1)) / 255).astype(np.float32)

    def record(self) -> dict[str, Any]:
        """What stands beside the numbers."""
        return {"values": self.values, "white": self.white, "clip": [0, 1], "quantisation": "8 bits"}


def preprocessing_of(reference: Array, place: Path) -> Preprocessing:
    """What the values of the reference mean: integers have a scale; [-1, 1] in colour and [0, 1] are taken as such; else magnitudes
    are divided by their 99.9th percentile."""
    if reference.dtype.kind in "ui":
        _range(reference, place)
        return Preprocessing("unit")
    values = _values(reference)
    if values != "magnitude":
        return Preprocessing(values)
    white = float(np.percentile(np.abs(reference), BRIGHT))
    if white <= 0:
        raise UserError(f"{place}: all images are black; there is nothing to compare with")
    return Preprocessing("magnitude", white)


def _values(images: Array) -> str:
    if images.dtype.kind == "f":
        low, high = float(images.min()), float(images.max())
        if images.ndim == 4 and -1 <= low < 0 and high <= 1:
            return "symmetric"
        if low >= 0 and DIM < high <= 1:
            return "unit"
    return "magnitude"


def _range(images: Array, place: Path) -> float:
    if images.dtype.name not in INTEGERS:
        raise UserError(f"{place}: {images.dtype}; integers of 8 or 16 bits without sign are expected, or floating point")
    return INTEGERS[images.dtype.name]


def _span(images: Array) -> str:
    return f"from {np.abs(images).min():.3g} to {np.abs(images).max():.3g}"
