"""Files appear whole or not at all.

Everything is written to a temporary name beside its place and renamed when it is complete, so that a file with a final
name is never half written, whatever kills the process.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from .errors import NotWritable, UserError

NOT_WRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@contextmanager
def atomic(path: Path | str) -> Iterator[Path]:
    """Gives a temporary path in the folder of ``path``; renames it to ``path`` if the block succeeds, else removes it.

    A disk that is full or cannot be written is :class:`NotWritable`.
    """
    path = Path(path)
    # The suffix stays last: some writers choose their format by it.
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        _of_output(path, lambda: path.parent.mkdir(parents=True, exist_ok=True))
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        _of_output(path, lambda: os.replace(temporary, path))
    except (OSError, RuntimeError) as error:  # libraries of C report a full disk in their own ways
        reason = not_writable(error)
        if reason is None:
            raise
        raise NotWritable(
            f"{path}: cannot be written ({reason}). Make room, or choose another place with --out or --runs."
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _of_output(path: Path, action: Callable[[], None]) -> None:
    """Runs what concerns the place of an output and nothing else: whatever the system says is the user's to mend."""
    try:
        action()
    except OSError as error:
        raise NotWritable(f"{path}: cannot be written ({error.strerror}). Choose another place with --out or --runs.") from error


def not_writable(error: BaseException) -> str | None:
    """Why the system would not write, in its words, if that is what an error says."""
    codes = (code for code in NOT_WRITABLE if getattr(error, "errno", None) == code or os.strerror(code) in str(error))
    return next(map(os.strerror, codes), None)


def walk(folder: Path | str) -> list[Path]:
    """All files below a folder, sorted; linked folders are followed, each real one once; hidden ones are left out.

    A folder that cannot be read is a :class:`UserError`.
    """
    found: list[Path] = []
    seen: set[str] = set()

    def fail(error: OSError) -> None:
        raise UserError(f"{error.filename}: cannot be read ({error.strerror})")

    for place, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(place)
        folders[:] = [] if real in seen else sorted(name for name in folders if not name.startswith("."))
        found += [Path(place) / name for name in names if real not in seen and not name.startswith(".")]
        seen.add(real)
    return sorted(found)


def write_text(path: Path | str, text: str) -> None:
    """Writes a text file atomically."""
    with atomic(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path | str, value: Any) -> None:
    """Writes JSON atomically; NaN and infinity, which are not JSON, are an error."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json(path: Path | str) -> Any:
    """Reads a JSON file; a missing or broken one is a :class:`UserError` that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (ValueError, OSError) as error:
        raise UserError(f"{path}: not a readable JSON file ({error})") from None


def sha256(path: Path | str) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
