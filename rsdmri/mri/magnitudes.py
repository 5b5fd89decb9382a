"""Magnitude images to simulate scans from: .npz, NIfTI, DICOM and PNG.

Volumes are numbered, never named after a person: of DICOM only pixels and places are read.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ..arrays import open_npz, read_array
from ..errors import UserError
from .config import SimulateConfig

#: Images (slices, h, w) and their contrast.
Volume: TypeAlias = tuple[NDArray[Any], str]

NIFTI, DICOM, PICTURES = (".nii", ".nii.gz"), (".dcm", ".ima"), (".png", ".tif", ".tiff", ".jpg", ".jpeg")
KINDS = f".npz, {', '.join((*NIFTI, *DICOM, *PICTURES))}, or a folder of one of these"


def read_volumes(path: Path, config: SimulateConfig) -> dict[str, Volume]:
    """Volumes by name from a file or a folder; a limit takes images that are spread over the whole."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder")
    files = _inside(path) if path.is_dir() else [path]
    kinds = {_kind(file) for file in files}
    if kinds == {"npz"} and len(files) == 1:
        volumes = group_npz(files[0], config)
    elif kinds == {"nifti"}:
        volumes = {f"volume_{number:04d}": _nifti(file) for number, file in enumerate(files)}
    elif kinds == {"dicom"}:
        volumes = _dicom(files)
    elif kinds == {"picture"}:
        volumes = _grouped(np.stack(_alike(files[0].parent, [_picture(file) for file in files])), config.slices, "image")
    else:
        found = ", ".join(sorted({file.suffix or file.name for file in files})) or "nothing"
        raise UserError(f"{path}: {found} found; expected {KINDS}")
    volumes = _limited(volumes, config.limit)
    for name, (stack, _) in volumes.items():
        _check(f"{path} ({name})" if len(volumes) > 1 else str(path), stack, config.size)
    return volumes


def _inside(folder: Path) -> list[Path]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not p.name.startswith("."))
    return [file for file in files if _kind(file) != ""] or files[:1]


def _kind(file: Path) -> str:
    name = file.name.lower()
    table = (("npz", (".npz",)), ("nifti", NIFTI), ("dicom", DICOM), ("picture", PICTURES))
    return next((kind for kind, endings in table if name.endswith(endings)), "")


def _check(place: str, stack: NDArray[Any], size: tuple[int, int]) -> None:
    found = f"{place}: {stack.dtype} {' x '.join(map(str, stack.shape))}"
    if stack.ndim != 3 or stack.dtype.kind not in "uif" or stack.size == 0:
        raise UserError(f"{found}; expected real magnitudes (images, h, w)")
    if stack.shape[1] < size[0] or stack.shape[2] < size[1]:
        raise UserError(
            f"{found}, smaller than --size {size[0]} {size[1]}: there is no k-space beyond theirs. Choose a smaller size."
        )
    if not np.isfinite(stack).all() or stack.min() < 0:
        raise UserError(f"{found} with negative values, NaN or infinity; expected magnitudes")


def _limited(volumes: dict[str, Volume], limit: int) -> dict[str, Volume]:
    """At most so many images, spread evenly over all of them."""
    total = sum(len(stack) for stack, _ in volumes.values())
    if not 0 < limit < total:
        return volumes
    chosen = np.unique(np.linspace(0, total - 1, limit).round().astype(int))
    kept, first = {}, 0
    for name, (stack, contrast) in volumes.items():
        mine = chosen[(chosen >= first) & (chosen < first + len(stack))] - first
        first += len(stack)
        if len(mine):
            kept[name] = (stack[mine], contrast)
    return kept


def _grouped(stack: NDArray[Any], slices: int, name: str) -> dict[str, Volume]:
    parts = [stack[start : start + slices] for start in range(0, len(stack), slices)]
    return {f"{name}_{number:04d}": (part, "SEMISYNTHETIC") for number, part in enumerate(parts)}


def group_npz(path: Path, config: SimulateConfig) -> dict[str, Volume]:
    """One volume a subject, else every ``slices`` images.

    ``<split>_subject`` says whose the images are. Subjects are numbered in their order, ``<split>_0000``.
    """
    arrays = open_npz(path)
    key = config.split or (arrays.files[0] if len(arrays.files) == 1 else "")
    if key not in arrays.files:
        asked = f"no array '{key}'" if key else "several arrays"
        raise UserError(f"{path}: {asked}; found {', '.join(arrays.files) or 'nothing'}. Choose one of them with --split.")
    stack = read_array(path, arrays, key)
    if stack.ndim != 3:
        found = f"{path}: '{key}' is {stack.dtype} {' x '.join(map(str, stack.shape))}"
        raise UserError(f"{found}; expected real magnitudes (images, h, w). Choose another array with --split.")
    subjects = _beside(path, arrays, f"{key}_subject", len(stack))
    _, number = np.unique(np.arange(len(stack)) // config.slices if subjects is None else subjects, return_inverse=True)
    contrasts = _beside(path, arrays, f"{key}_contrast", len(stack))
    volumes = {}
    for volume in np.unique(number):
        mine = np.flatnonzero(number == volume)
        kinds = [] if contrasts is None else sorted(set(map(str, contrasts[mine])))
        volumes[f"{key}_{volume:04d}"] = stack[mine], "+".join(kinds) or "SEMISYNTHETIC"
    return volumes


def _beside(path: Path, arrays: "np.lib.npyio.NpzFile", key: str, count: int) -> NDArray[Any] | None:
    """A column that says something about every image, if there is one."""
    if key not in arrays.files:
        return None
    column = read_array(path, arrays, key)
    if column.shape != (count,):
        raise UserError(f"{path}: '{key}' has the shape {column.shape}; expected ({count},), one value an image")
    return column


def _needs(package: str, path: Path, action: Callable[[], Any]) -> Any:
    """Runs what needs a package of the extra [io]; whatever that says about a file is the file's fault."""
    try:
        return action()
    except ImportError:
        raise UserError(f"{path}: {package} is needed to read it: pip install 'rsdmri[io]'") from None
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path}: {package} cannot read it ({type(error).__name__}: {error})") from None


def _nifti(path: Path) -> Volume:
    def load() -> NDArray[Any]:
        import nibabel

        image = nibabel.as_closest_canonical(nibabel.load(path))
        return np.asarray(image.dataobj, np.float32)

    array = _needs("nibabel", path, load)
    if array.ndim == 4 and array.shape[3] == 1:
        array = array[..., 0]
    if array.ndim != 3:
        raise UserError(f"{path}: {' x '.join(map(str, array.shape))} found; expected one 3-D volume (of a 4-D series take one)")
    # Axes to the right, the front and the head; slices are axial, with the front above.
    return np.ascontiguousarray(array.transpose(2, 1, 0)[:, ::-1]), "SEMISYNTHETIC"


def _dicom(files: Sequence[Path]) -> dict[str, Volume]:
    """One volume a series, its slices in the order of their places."""
    series: dict[str, list[tuple[float, NDArray[Any]]]] = {}
    for file in files:

        def load(file: Path = file) -> tuple[str, float, NDArray[Any]]:
            import pydicom

            data = pydicom.dcmread(file)
            pixels = data.pixel_array.astype(np.float32) * float(data.get("RescaleSlope", 1)) + float(
                data.get("RescaleIntercept", 0)
            )
            place = data.get("ImagePositionPatient")
            normal = np.cross(*np.reshape(data.get("ImageOrientationPatient", [1, 0, 0, 0, 1, 0]), (2, 3)).astype(float))
            order = (
                float(np.dot(normal, np.asarray(place, float)))
                if place is not None
                else float(data.get("InstanceNumber", 0) or 0)
            )
            return str(data.get("SeriesInstanceUID", "")), order, pixels

        name, order, pixels = _needs("pydicom", file, load)
        if pixels.ndim != 2:
            raise UserError(f"{file}: {' x '.join(map(str, pixels.shape))} pixels; expected one gray image a file")
        series.setdefault(name, []).append((order, pixels))
    volumes = {}
    for number, name in enumerate(sorted(series)):
        parts = sorted(series[name], key=lambda part: part[0])
        stack = np.stack(_alike(files[0].parent, [pixels for _, pixels in parts]))
        volumes[f"series_{number:04d}"] = (stack, "SEMISYNTHETIC")
    return volumes


def _picture(path: Path) -> NDArray[Any]:
    from ..pictures import decoded

    try:
        image = decoded(path.read_bytes())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    array: NDArray[Any] = np.asarray(image.convert("L") if image.mode not in ("L", "I", "I;16", "F") else image)
    return array.astype(np.float32) if array.dtype != np.uint8 else array


def _alike(place: Path, images: list[NDArray[Any]]) -> list[NDArray[Any]]:
    shapes = sorted({image.shape for image in images})
    if len(shapes) > 1:
        listed = ", ".join(" x ".join(map(str, shape)) for shape in shapes[:4])
        raise UserError(f"{place}: images of several sizes ({listed}); those of a volume must be alike")
    return images
