r"""Checkpoints of other programs, read without executing anything in them.

EDM and SiD publish pickles of whole modules whose classes carry their own source text; Ambient Diffusion pickles state dicts beside such
classes; others write state dicts with ``torch.save``. Of a pickle (:mod:`.unpickling`) every module is an inert record, of which the
parameters are taken. The source text is never run; it is looked at, because a file whose text starts processes is not what it says it is.
Files of ``torch.save``, and the storages inside a pickle, are read by torch's restricted unpickler.
"""

import ast
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .errors import UserError
from .unpickling import ARRAYS, Inert, Named, PlainDict, plain, unpickle

CONTAINERS = ("ModuleDict", "ModuleList", "Sequential", "Identity", "Dropout", "SiLU")
#: Bare names and modules for which the source of a network has no use; that of EDM finds its classes by ``globals()``.
CALLS = {"exec", "eval", "compile", "__import__", "open", "breakpoint", "input"}
MODULES = {
    *("subprocess", "multiprocessing", "socket", "ctypes", "importlib", "builtins", "marshal", "runpy", "pty"),
    *("shutil", "pathlib", "urllib", "requests"),
}
OS_CALLS = {"system", "popen", "fork", "remove", "unlink", "rmdir", "removedirs", "rename", "kill", "putenv", "open"}
HELD = ("ema", "net", "model", "state_dict")  # under which key a checkpoint holds its network, the averaged one first
LEGACY = 0x1950A86A20F9469CFC6C  # with which torch.save began before it wrote zip files
LONGEST_SOURCE, MOST_SOURCES = 300_000, 32  # EDM's networks have 40,000 letters
MOST_MODULES = 100_000
LONGEST_NAME = 300


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a network by the names of its module tree; the class and the constants of its outermost module, and of its loss.

    ``dropout`` is that of its blocks, where the file says it.
    """

    tensors: dict[str, Tensor]
    class_name: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)
    loss_name: str = ""
    loss: Mapping[str, Any] = field(default_factory=dict)
    dropout: float | None = None


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
        checkpoint = _network(_from_zip(path, largest) if zipped else _from_pickle(path))
        _check_tensors(checkpoint.tensors, size)
        return checkpoint
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _from_zip(path: Path, largest: int) -> Any:
    """What ``torch.save`` wrote: tensors in dictionaries."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"not a complete file of torch.save ({plain(error)})") from None
    # torch.save compresses nothing; a file that unpacks to more than it is long was made to.
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise UserError("refused: a compressed archive, which torch.save does not write; nothing was unpacked")
    if sum(entry.file_size for entry in entries) > largest:
        raise UserError(f"refused: an archive of more than {largest:,} bytes (--max-bytes)")
    return _by_torch(path)


def _by_torch(source: Path | io.BytesIO) -> Any:
    try:
        return torch.load(source, map_location="cpu", weights_only=True)
    except Exception as error:
        found = re.search(r"GLOBAL (\S+)", str(error))
        asked = f"it asks for {plain(found[1])}, which tensors do not need" if found else plain(str(error).partition("\n")[0])
        raise UserError(f"refused: {asked}. State dicts of torch.save are read, pickled modules of it are not") from None


def _from_pickle(path: Path) -> Any:
    content = path.read_bytes()
    _source_problem.cache_clear()
    found = unpickle(content, _table)
    return _by_torch(path) if found == LEGACY and isinstance(found, int) else found


def _table(name: str) -> Callable[..., Any] | None:
    """What is made when the file calls a name."""
    if name in KNOWN:
        return KNOWN[name]
    module, _, last = name.rpartition(".")
    if module.startswith("torch.nn.modules.") and last in CONTAINERS:
        return lambda *arguments: Inert(last)
    if module == "torch" and isinstance(getattr(torch, last, None), torch.dtype):
        return _nothing  # the type of a tensor is that of its storage
    return None


def _persistent(meta: Any) -> Inert:
    """An object of EDM's persistence: its state, beside a source text that would define its class."""
    if not isinstance(meta, dict) or not isinstance(meta.get("class_name"), str):
        raise UserError("refused: a persistent object without the name of its class")
    name, source = meta["class_name"], meta.get("module_src")
    if not isinstance(source, str) or len(source) > LONGEST_SOURCE:
        raise UserError(f"refused: {plain(name)} without a source text of at most {LONGEST_SOURCE:,} letters")
    problem = _source_problem(source)
    if _source_problem.cache_info().misses > MOST_SOURCES:
        raise UserError(f"refused: more than {MOST_SOURCES} source texts")
    if problem:
        raise UserError(f"refused: the embedded source of {plain(name)} {problem}")
    made = Inert(name)
    made.fill(meta.get("state"))
    return made


@cache
def _source_problem(source: str) -> str:
    """What in a source text networks have no use for, in words."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return "is not Python"
    for node in ast.walk(tree):
        asked = ""
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            asked = next((module for module in names if module.partition(".")[0] in MODULES), "")
            if isinstance(node, ast.ImportFrom) and node.module in ("os", "posix", "nt"):
                asked = f"{node.module}.{node.names[0].name}"
        elif isinstance(node, ast.Name) and node.id in CALLS:
            asked = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in ("os", "posix", "nt"):
            wanted = node.attr in OS_CALLS or node.attr.startswith(("exec", "spawn"))
            asked = f"{node.value.id}.{node.attr}" if wanted else ""
        if asked:
            return f"asks for {plain(asked)}, which a network does not need"
    return ""


class _Storage:
    """The numbers of a tensor's storage."""

    def __init__(self, content: Any) -> None:
        if not isinstance(content, bytes) or content[:2] == b"PK":
            raise UserError("refused: a storage that is not in the format in which tensors are pickled")
        found = _by_torch(io.BytesIO(content))
        if not isinstance(found, torch.storage.TypedStorage):
            raise UserError(f"refused: a storage that holds {type(found).__name__}")
        untyped = found._untyped_storage  # as torch itself does: the public way warns that it will go
        length = untyped.nbytes() // found.dtype.itemsize
        self.flat = torch.empty(0, dtype=found.dtype).set_(untyped, 0, (length,), (1,))


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *unused: Any) -> Tensor:
    """A tensor of a storage that is as long as it says."""
    if not isinstance(storage, _Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple) or len(size) > 8:
        raise UserError("refused: a tensor without a storage of its own")
    if not all(isinstance(n, int) and 0 <= n <= len(storage.flat) for n in (offset, *size, *stride)) or len(size) != len(stride):
        raise UserError(f"refused: a tensor whose shape does not fit in a storage of {len(storage.flat)}")
    return storage.flat.as_strided(size, stride, offset)


def _parameter(data: Any, *unused: Any) -> Tensor:
    if not isinstance(data, Tensor):
        raise UserError("refused: a parameter that is no tensor")
    return data


def _nothing(*arguments: Any) -> None:
    """Takes the place of what is of no use here, such as devices."""


def _ordered(items: Any = (), *unused: Any) -> PlainDict:
    """An OrderedDict as older protocols make it, of a list of pairs."""
    return PlainDict({pair[0]: pair[1] for pair in items if isinstance(pair, list | tuple) and isinstance(pair[0], str)})


def _reconstructed(kind: Any, *unused: Any) -> Any:
    """How the first protocols make an object."""
    if not isinstance(kind, Named):
        raise UserError("refused: an object of no class")
    return kind.make()


KNOWN: dict[str, Callable[..., Any]] = {
    **ARRAYS,
    "torch_utils.persistence._reconstruct_persistent_obj": _persistent,
    "dnnlib.util.EasyDict": _ordered,
    "dnnlib.EasyDict": _ordered,
    "collections.OrderedDict": _ordered,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
    "torch.storage._load_from_bytes": _Storage,
    "torch.device": _nothing,
    "torch.Size": lambda items=(), *unused: tuple(items) if isinstance(items, tuple | list) else (),
    **{f"{module}._reconstructor": _reconstructed for module in ("copyreg", "copy_reg")},
    **{f"{module}.object": _nothing for module in ("builtins", "__builtin__")},
    **{f"{module}.set": lambda items=(), *unused: items for module in ("builtins", "__builtin__")},
}


def _network(content: Any) -> Checkpoint:
    """The network of what a checkpoint holds."""
    held, loss = content, None
    if isinstance(content, dict):
        held = next((content[key] for key in HELD if isinstance(content.get(key), dict | Inert)), content)
        loss = content.get("loss_fn")
    beside: dict[str, Any] = {}
    if isinstance(loss, Inert):
        beside = {"loss_name": loss.class_name, "loss": _constants(loss)}
    if isinstance(held, Inert):
        tensors, dropouts = {}, [0.0]
        for name, module in _modules(held):
            dropout = module.state.get("dropout")
            dropouts += [dropout] if isinstance(dropout, float) and 0 <= dropout < 1 else []
            for kind in ("_parameters", "_buffers"):
                found = module.state.get(kind)
                for last, value in found.items() if isinstance(found, dict) else ():
                    if isinstance(value, Tensor):
                        tensors[f"{name}{last}"] = value
        if tensors:
            return Checkpoint(tensors, held.class_name, _constants(held), dropout=max(dropouts), **beside)
    if isinstance(held, dict):
        tensors = {name: value for name, value in held.items() if isinstance(name, str) and isinstance(value, Tensor)}
        if tensors:
            return Checkpoint(tensors, **beside)
    keys = f" with {', '.join(map(plain, list(content)[:6]))}" if isinstance(content, dict) else ""
    kind = "a dictionary" if isinstance(content, dict) else type(content).__name__
    raise UserError(f"no network in it: {kind}{keys} found, expected one under {', '.join(HELD)}")


def _constants(record: Inert) -> dict[str, Any]:
    """The numbers and texts of an object."""
    return {
        name: value
        for name, value in record.state.items()
        if isinstance(name, str) and not name.startswith("_") and isinstance(value, bool | int | float | str)
    }


def _modules(outermost: Inert) -> Iterator[tuple[str, Inert]]:
    """The modules of a tree with the beginnings of their tensors' names; each once."""
    waiting, seen = [("", outermost)], {id(outermost)}
    while waiting:
        prefix, module = waiting.pop()
        yield prefix, module
        children = module.state.get("_modules")
        for name, child in children.items() if isinstance(children, dict) else ():
            if not isinstance(child, Inert):
                continue
            full = f"{prefix}{plain(name)}."
            if id(child) in seen or len(seen) > MOST_MODULES or len(full) > LONGEST_NAME:
                raise UserError(f"refused: the module {plain(full)} is there twice, or one of too many")
            seen.add(id(child))
            waiting.append((full, child))


def _check_tensors(tensors: Mapping[str, Tensor], size: int) -> None:
    """Dense floating-point numbers, no more of them than the file holds."""
    for name, tensor in tensors.items():
        # In this order: a tensor of another layout has no storage to ask for.
        dense = tensor.layout is torch.strided and tensor.device.type == "cpu" and not tensor.is_quantized
        if not dense or not tensor.is_floating_point():
            raise UserError(f"refused: {plain(name)} is {tensor.dtype}, {tensor.layout}; dense floating-point numbers expected")
    total = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())
    if total > size:
        raise UserError(f"refused: tensors of {total:,} bytes in a file of {size:,}")


__all__ = ["Checkpoint", "read_checkpoint"]
