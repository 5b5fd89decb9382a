"""Pictures from files and archives. Nothing but pictures is decoded, and no other program is started for it."""

import io
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from zipfile import ZipFile

import numpy as np
from PIL import Image as Picture
from PIL import ImageOps, UnidentifiedImageError

from .errors import UserError

SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow goes by content, and would run Ghostscript on PostScript
MEMBER = "!/"  # between an archive inside a folder and the name in it


def names_in(path: Path, files: Sequence[Path]) -> list[str]:
    """The files of a folder ``path``, and those in its archives, by names relative to it; or those of the archive ``path``.

    A :class:`UserError` where an archive lies beside its own contents.
    """
    found = []
    folders = {parent for file in files for parent in file.parents}
    for file in files:
        if file.suffix.lower() != ".zip":
            found.append(file.relative_to(path).as_posix())
            continue
        if file.with_suffix("") in folders:
            raise UserError(f"{file}: and a folder of the same name, which would be the same pictures twice. Remove one of them.")
        inside = "" if file == path else f"{file.relative_to(path).as_posix()}{MEMBER}"
        members = [name for name in _archive(file, file.stat().st_mtime_ns).namelist() if not name.endswith("/")]
        found += [inside + name for name in members if not any(part.startswith((".", "__MACOSX")) for part in name.split("/"))]
    return found


@lru_cache(maxsize=64)
def _archive(path: Path, changed: int) -> ZipFile:
    """An archive as it was when it changed last."""
    try:
        return ZipFile(path)
    except Exception as error:
        raise UserError(f"{path}: not a readable .zip ({error}). Download or copy it again.") from None


def content_of(path: Path, name: str) -> bytes:
    """The bytes of one of :func:`names_in`."""
    archive, _, member = name.partition(MEMBER)
    file = path if path.is_file() else path / archive
    if not file.is_file() or file.suffix.lower() != ".zip":
        return (path / name).read_bytes()
    try:
        return _archive(file, file.stat().st_mtime_ns).read(name if path.is_file() else member)
    except Exception as error:  # damaged, encrypted, or compressed in a way that is not known here
        raise UserError(f"{file}: {member or name} cannot be read ({error})") from None


def decoded(content: bytes) -> Picture.Image:
    """A picture, whole and upright as its EXIF says; anything else is a :class:`UserError` that says why."""
    try:
        with Picture.open(io.BytesIO(content), formats=FORMATS) as picture:
            picture.load()  # a truncated file is noticed here
            return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError:
        raise UserError(f"not a picture ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's readers each have their own
        raise UserError(str(error)) from None


def in_colour(picture: Picture.Image) -> Picture.Image:
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
