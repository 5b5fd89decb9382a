"""The files of one reconstruction: ``<stem>.h5``, and the same volume for other programs, ``<stem>.nii.gz`` and ``<stem>.dicom``.

The first is the record of the others. Its attributes ``nifti`` and ``dicom`` say whether they are of this reconstruction: True, False, or
``begun`` while they are replaced. It is written before and after them, so that what it says is true whenever the process is killed, and
nothing is touched that it does not know.
"""

import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .export import Voxel, write_dicom, write_nifti, write_reconstruction

ENDINGS = {"nifti": ".nii.gz", "dicom": ".dicom"}
BEGUN = "begun"


class VolumeFiles:
    """What there is of the reconstruction of a scan in a folder; a :class:`UserError` if its file cannot be read or is something else."""

    def __init__(self, folder: Path, stem: str) -> None:
        self.path = folder / f"{stem}.h5"
        self.others = {form: folder / f"{stem}{ending}" for form, ending in ENDINGS.items()}
        self.attributes = _attributes(self.path)

    def holds(self, wanted: Mapping[str, Any]) -> bool:
        """Whether the volume was made of this, and so."""
        return bool(self.attributes) and all(self.attributes.get(name) == value for name, value in wanted.items())

    def whole(self, form: str) -> bool:
        """Whether another form of this very volume is there."""
        return self.attributes.get(form) is True and self.others[form].exists()

    def finished(self, asked: Collection[str]) -> bool:
        """Whether the forms that are asked for are there, and none is left over that was being replaced."""
        left = any(self.attributes.get(form) == BEGUN for form in ENDINGS)
        return bool(self.attributes) and not left and all(self.whole(form) for form in asked)

    def changing(self, asked: Collection[str], kept: Collection[str]) -> list[str]:
        """The forms that a volume replaces: those that are asked for and those that there are, but for what is ``kept``."""
        return [form for form in ENDINGS if form not in kept and (form in asked or self._knows(form))]

    def check(self, asked: Collection[str], kept: Collection[str]) -> None:
        """Raises a :class:`UserError` if anything that is no earlier reconstruction lies where a form would be replaced."""
        for form in self.changing(asked, kept):
            place = self.others[form]
            there = place.exists() or place.is_symlink()
            if there and (not self._knows(form) or place.is_symlink() or not _is_form(form, place)):
                raise UserError(
                    f"{place}: not of an earlier reconstruction, and it would be replaced. Move it, or choose another --out."
                )

    def volume(self) -> NDArray[np.float32]:
        """The volume that is there (slices, h, w)."""
        with h5py.File(self.path, "r") as file:
            return np.asarray(file["reconstruction"][()])

    def write(
        self,
        volume: NDArray[np.float32],
        voxel: Voxel | None,
        attributes: Mapping[str, Any],
        asked: Collection[str],
        kept: Collection[str],
        made: str,
        source: str,
    ) -> None:
        """Replaces what is there; of other forms those that are ``asked`` are written, those ``kept`` are of this volume, and others go.

        ``made`` is for people, and DICOM's identities are a function of ``source``.
        """
        changing = self.changing(asked, kept)
        states: dict[str, Any] = {form: BEGUN if form in changing else form in kept for form in ENDINGS}
        write_reconstruction(self.path, volume, {**attributes, **states})
        for form in changing:
            _remove(self.others[form])
            if form not in asked:
                continue
            if form == "nifti":
                write_nifti(self.others[form], volume, voxel)
            else:
                _write_dicom(self.others[form], volume, voxel, made, source)
        if changing:
            write_reconstruction(self.path, volume, {**attributes, **{form: form in kept or form in asked for form in ENDINGS}})

    def _knows(self, form: str) -> bool:
        return self.attributes.get(form, False) is not False


def _attributes(path: Path) -> dict[str, Any]:
    """Those of a reconstruction; none if there is nothing."""
    if not (path.exists() or path.is_symlink()):
        return {}
    try:
        with h5py.File(path, "r") as file:
            found = {name: value.item() if isinstance(value, np.generic) else value for name, value in file.attrs.items()}
    except OSError as error:
        raise UserError(f"{path}: there, and cannot be read ({error}). Delete it, or choose another --out.") from None
    if "asked_method" not in found or path.is_symlink():
        raise UserError(f"{path}: not of an earlier reconstruction, and it would be replaced. Move it, or choose another --out.")
    return found


def _is_form(form: str, place: Path) -> bool:
    """Whether a file or folder may be what was written here; a folder with anything else in it is not."""
    if form == "nifti":
        return place.is_file()
    return place.is_dir() and all(file.suffix == ".dcm" and file.stem.isdecimal() for file in place.iterdir())


def _remove(place: Path) -> None:
    if place.is_dir():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)


def _write_dicom(folder: Path, volume: NDArray[np.float32], voxel: Voxel | None, made: str, source: str) -> None:
    """A folder that appears whole."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    write_dicom(unfinished, volume, voxel, made, source)
    unfinished.rename(folder)
