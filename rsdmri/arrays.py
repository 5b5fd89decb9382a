"""Arrays from .npz files and pickles; nothing in them is executed."""

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .errors import UserError
from .unpickling import ARRAYS, Array, unpickle


def open_npz(path: Path) -> "np.lib.npyio.NpzFile":
    """Opens an .npz; what is none is a :class:`UserError` that names it."""
    try:
        arrays = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, ValueError, EOFError, BadZipFile) as error:
        raise UserError(f"{path}: not a readable .npz file ({error})") from None
    if not isinstance(arrays, np.lib.npyio.NpzFile):
        raise UserError(f"{path}: one array found; expected an .npz with named arrays")
    return arrays


def read_array(path: Path, arrays: "np.lib.npyio.NpzFile", key: str) -> NDArray[Any]:
    """One array of an .npz; one that is damaged, or holds objects, is a :class:`UserError` that names it."""
    try:
        array: NDArray[Any] = arrays[key]
    except Exception as error:  # zipfile, zlib and numpy each have their own
        raise UserError(f"{path}: '{key}' cannot be read ({error}). Download or copy the file again.") from None
    return array


def unpickled(content: bytes) -> dict[Any, Any]:
    """What a pickle of numbers, text, lists and numpy arrays in a dictionary holds (Python 2's text as bytes).

    A :class:`UserError` if it asks for anything else, which is never looked up, let alone called.
    """
    found = unpickle(content, ARRAYS.get, text=False)
    if not isinstance(found, dict):
        raise UserError("no dictionary of arrays in it")
    return {key: value.array if isinstance(value, Array) else value for key, value in found.items()}
