"""Arrays from .npz files and pickles; nothing in them is executed."""

import io
import pickle
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from .errors import UserError


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


def unpickled(content: bytes) -> Any:
    """What a pickle of numbers, text, lists, dictionaries and numpy arrays holds (Python 2's text as bytes).

    A :class:`UserError` if it asks for anything else, which is never looked up, let alone called.
    """
    try:
        return ArrayUnpickler(content).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"not a readable pickle: {error}") from None


class ArrayUnpickler(pickle.Unpickler):
    """Knows what arrays are pickled with, and nothing else."""

    encoding = "bytes"

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding=self.encoding)

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in (("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")):
            return super().find_class(module, name)
        if (module.replace("_core", "core"), name) == ("numpy.core.multiarray", "_reconstruct"):
            return np.ndarray.__reduce__(np.empty(0))[0]  # wherever this version of numpy keeps it
        raise UserError(f"it asks for {module}.{name}, which arrays do not need")
