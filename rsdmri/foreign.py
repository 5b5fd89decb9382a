r"""Checkpoints of other programs, read without executing anything in them.

EDM and SiD publish pickles of whole modules whose classes carry their own source text; Ambient Diffusion pickles state dicts beside such
classes; others write state dicts with ``torch.save``. The unpickler here knows a short list of names. Every class of a module becomes an
inert :class:`_Object`, of which the parameters are taken; source text is looked at and never run; any other name is refused.
"""

import ast
import io
import pickletools
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from .arrays import ArrayUnpickler
from .errors import UserError

CONTAINERS = ("ModuleDict", "ModuleList", "Sequential", "Identity", "Dropout", "SiLU")
#: What source text of a network has no use for. Attributes such as ``model.eval`` are not among them, bare names are.
CALLS = {"exec", "eval", "compile", "__import__", "open", "globals", "getattr", "setattr", "breakpoint", "input"}
MODULES = {
    "subprocess",
    "socket",
    "ctypes",
    "importlib",
    "builtins",
    "pickle",
    "marshal",
    "shutil",
    "runpy",
    "pty",
    "urllib",
    "requests",
}
OS_CALLS = {"system", "popen", "fork", "remove", "unlink", "rmdir", "removedirs", "rename", "kill", "putenv"}
HELD = ("ema", "net", "model", "state_dict")  # under which key a checkpoint holds its network, the averaged one first
MOST_MODULES = 100_000  # a network that lists more has been made to exhaust memory


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a network by the names of its module tree, and the class and constants of its outermost module."""

    tensors: dict[str, Tensor]
    class_name: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)


def read_checkpoint(path: Path, largest: int) -> Checkpoint:
    """The network in a checkpoint of at most ``largest`` bytes; whatever is wrong with it is a :class:`UserError` that names it."""
    try:
        if path.exists() and not path.is_file():
            raise UserError("not a file")
        size = path.stat().st_size
        if size > largest:
            raise UserError(f"{size:,} bytes, and at most {largest:,} are read (--max-bytes)")
        with open(path, "rb") as file:
            zipped = file.read(2) == b"PK"
        return _network(_from_zip(path, largest) if zipped else _from_pickle(path.read_bytes()))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _from_zip(path: Path, largest: int) -> Any:
    """What ``torch.save`` wrote: tensors in dictionaries, by torch's own restricted unpickler."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise UserError(f"not a complete file of torch.save ({error})") from None
    # torch.save compresses nothing; a file that unpacks to more than it is long was made to.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError("a compressed archive, which torch.save does not write; nothing was unpacked")
    if sum(entry.file_size for entry in entries) > largest:
        raise UserError(f"an archive of more than {largest:,} bytes (--max-bytes)")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        asked = f"it asks for {found[1]}, which tensors do not need" if found else str(error).partition("\n")[0]
        raise UserError(f"refused: {asked}. State dicts of torch.save are read, pickled modules of it are not") from None


def _from_pickle(content: bytes) -> Any:
    _scan(content)
    try:
        return _Unpickler(content).load()
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        raise UserError(f"not a readable pickle ({error})") from None


def _scan(content: bytes) -> None:
    """Goes through a pickle without running it: it must be whole, and must not ask for memory that it does not fill."""
    count = 0
    try:
        for opcode, argument, _ in pickletools.genops(content):
            count += 1
            # The memo is a table that grows to the highest number in use: honest ones count from zero.
            if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > count:
                raise UserError("refused: a pickle that numbers what it remembers by gaps, to exhaust memory")
            if opcode.name in ("PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"):
                raise UserError(f"refused: a pickle that uses {opcode.name}, which no known checkpoint does")
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"not a whole pickle ({error}). Download it again") from None


class _Dict(dict[Any, Any]):
    """A dictionary whose attributes, if it was pickled with any, are left out."""

    def __setstate__(self, state: Any) -> None:
        pass


class _Object:
    """What is left of an object: its class's name and its state."""

    class_name = ""
    state: Mapping[str, Any] = MappingProxyType({})

    def __setstate__(self, state: Any) -> None:
        self.state = state if isinstance(state, dict) else {}


def _named(name: str) -> type[_Object]:
    return type(name, (_Object,), {"class_name": name})


def _persistent(meta: Any) -> _Object:
    """An object of EDM's persistence: its state, beside a source text that would define its class."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise UserError("refused: a persistent object without the name of its class")
    _check_source(meta["class_name"], meta.get("module_src"))
    made = _named(meta["class_name"])()
    made.__setstate__(meta.get("state"))
    return made


def _check_source(name: str, source: Any) -> None:
    """Refuses a file whose embedded source does what networks do not. It is never run: this tells a user what the file is."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise UserError(f"refused: the embedded source of {name} is not Python") from None
    for node in ast.walk(tree):
        asked = ""
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            asked = next((module for module in names if module.partition(".")[0] in MODULES), "")
            if isinstance(node, ast.ImportFrom) and node.module in ("os", "posix", "nt"):
                asked = f"{node.module}.{node.names[0].name}"
        elif isinstance(node, ast.Name) and node.id in CALLS:
            asked = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            of_system = node.value.id in ("os", "posix", "nt") and (
                node.attr in OS_CALLS or node.attr.startswith(("exec", "spawn"))
            )
            asked = f"{node.value.id}.{node.attr}" if of_system else ""
        if asked:
            raise UserError(f"refused: the embedded source of {name} asks for {asked}, which a network does not need")


def _storage(content: Any) -> Any:
    """The storage of a tensor, in torch's format before zip files; read by torch's restricted unpickler."""
    if not isinstance(content, bytes) or content[:2] == b"PK":
        raise UserError("refused: a storage that is not in the format in which tensors are pickled")
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"a storage cannot be read ({str(error).partition(chr(10))[0]})") from None


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> Tensor:
    """A tensor of a storage that is as long as it says."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise UserError("refused: a tensor without a storage of its own")
    untyped = storage._untyped_storage  # as torch itself does: the public way warns that it will go
    flat = torch.empty(0, dtype=storage.dtype).set_(untyped, 0, (untyped.nbytes() // storage.dtype.itemsize,), (1,))
    count = 1
    for length in size:
        count *= length
    if count > len(flat) or len(size) != len(stride):
        raise UserError(f"refused: a tensor of {count} numbers in a storage of {len(flat)}")
    return flat.as_strided(tuple(size), tuple(stride), offset)


def _parameter(data: Any, *unused: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise UserError("refused: a parameter that is no tensor")
    return data


def _nothing(*arguments: Any) -> None:
    """Takes the place of what is of no use here, such as devices."""


KNOWN: dict[tuple[str, str], Callable[..., Any]] = {
    ("torch_utils.persistence", "_reconstruct_persistent_obj"): _persistent,
    ("dnnlib.util", "EasyDict"): _Dict,
    ("dnnlib", "EasyDict"): _Dict,
    ("collections", "OrderedDict"): _Dict,
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch.storage", "_load_from_bytes"): _storage,
    ("torch", "device"): _nothing,
    ("torch", "Size"): tuple,
}


class _Unpickler(ArrayUnpickler):
    encoding = "ASCII"

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in KNOWN:
            return KNOWN[module, name]
        if module.startswith("torch.nn.modules.") and name in CONTAINERS:
            return _named(name)
        if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            return getattr(torch, name)
        try:
            return super().find_class(module, name)
        except UserError:
            raise UserError(f"refused: it asks for {module}.{name}, which a network does not need; nothing was run") from None


def _network(content: Any) -> Checkpoint:
    """The network of what a checkpoint holds."""
    held = content
    if isinstance(content, dict):
        held = next((content[key] for key in HELD if isinstance(content.get(key), dict | _Object)), content)
    if isinstance(held, _Object):
        constants = {k: v for k, v in held.state.items() if isinstance(v, bool | int | float | str) and not k.startswith("_")}
        return Checkpoint(dict(_walk(held)), held.class_name, constants)
    if isinstance(held, dict):
        tensors = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if tensors and len(tensors) == len(held):
            return Checkpoint(tensors)
    keys = f" with {', '.join(map(str, list(content)[:6]))}" if isinstance(content, dict) else ""
    raise UserError(
        f"no network in it: {type(content).__name__.strip('_').lower()}{keys} found, expected one under {', '.join(HELD)}"
    )


def _walk(module: _Object) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a module tree with their full names."""
    waiting, seen = [("", module)], 0
    while waiting:
        prefix, current = waiting.pop()
        seen += 1
        if seen > MOST_MODULES:
            raise UserError(f"refused: more than {MOST_MODULES:,} modules")
        for kind in ("_parameters", "_buffers"):
            for name, value in _mapping(current, kind).items():
                if isinstance(value, Tensor):
                    yield f"{prefix}{name}", value
        for name, child in _mapping(current, "_modules").items():
            if isinstance(child, _Object):
                waiting.append((f"{prefix}{name}.", child))


def _mapping(module: _Object, kind: str) -> Mapping[Any, Any]:
    found = module.state.get(kind)
    return found if isinstance(found, dict) else {}


__all__ = ["Checkpoint", "read_checkpoint"]
