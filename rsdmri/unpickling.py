r"""Pickles without execution: a small machine for their opcodes, in which every object is inert.

Python's own unpickler, even one that looks names up in a short list, lets a file call what is on the list with any argument and set the
state of what it made, and numpy and torch believe such states. Here a file can make numbers, text, lists, tuples and dictionaries, and name
things. What is named becomes, when it is called or filled with a state, what the caller's table makes of it, or an :class:`Inert` record;
names that are not in the table are refused before anything else happens.
"""

import pickletools
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

MOST_OPCODES = 5_000_000  # the public checkpoints have some ten thousand
LONGEST_NAME = 80  # letters of a name that an error shows
CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
VALUES = {
    *("INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
STRINGS = {"STRING", "BINSTRING", "SHORT_BINSTRING"}  # of Python 2


class Inert:
    """What is left of an object: its class's name and its state."""

    def __init__(self, class_name: str = "", *arguments: Any) -> None:
        self.class_name = class_name
        self.state: Mapping[Any, Any] = MappingProxyType({})

    def fill(self, state: Any) -> None:
        """Takes the state that the file gives; what is no dictionary is not kept."""
        self.state = state if isinstance(state, dict) else {}


class PlainDict(dict[Any, Any]):
    """A dictionary; attributes that it was pickled with are left out."""

    def fill(self, state: Any) -> None:
        pass


class Named:
    """What a name that the file asked for makes when it is called."""

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make


class _Mark:
    pass


def plain(name: object) -> str:
    """Text from a file as an error may show it: short, and without control characters."""
    text = "".join(letter if letter.isprintable() else "?" for letter in str(name)[: LONGEST_NAME + 1])
    return text if len(text) <= LONGEST_NAME else text[:LONGEST_NAME] + "..."


def unpickle(content: bytes, table: Callable[[str], Callable[..., Any] | None], text: bool = True) -> Any:
    """What a pickle holds, with its names made into what ``table`` gives for "module.name"; None refuses.

    ``text``: strings of Python 2 are text, else bytes. Whatever is wrong is a :class:`UserError`.
    """
    try:
        return _Machine(table, text).run(content)
    except UserError:
        raise
    except Exception as error:  # a damaged pickle may do anything to the machine
        raise UserError(f"not a whole pickle ({plain(error)})") from None


class _Machine:
    def __init__(self, table: Callable[[str], Callable[..., Any] | None], text: bool) -> None:
        self.table, self.text = table, text
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def run(self, content: bytes) -> Any:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
            if count > MOST_OPCODES:
                raise UserError(f"refused: a pickle of more than {MOST_OPCODES:,} steps")
            if opcode.name == "STOP":
                return self.stack.pop()
            self.step(opcode.name, argument)
        raise UserError("not a whole pickle")

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in VALUES:
            stack.append(argument)
        elif name in STRINGS:
            stack.append(argument if self.text else argument.encode("latin-1"))
        elif name in CONSTANTS:
            stack.append(CONSTANTS[name])
        elif name == "MARK":
            stack.append(_Mark)
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name in ("PROTO", "FRAME"):
            pass
        elif name in ("POP", "POP_MARK"):
            _ = stack.pop() if name == "POP" else self.marked()
        else:
            self.build(name, argument)

    def build(self, name: str, argument: Any) -> None:
        """The opcodes that make something of what lies on the stack."""
        stack = self.stack
        if name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            length = int(name[-1])
            stack[-length:] = [tuple(stack[-length:])]
        elif name in ("TUPLE", "LIST", "FROZENSET"):
            stack.append(tuple(self.marked()) if name == "TUPLE" else self.marked())
        elif name in ("EMPTY_LIST", "EMPTY_SET"):  # a set is as good as a list, and needs nothing of its members
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append(PlainDict())
        elif name == "DICT":
            stack.append(self.filled(PlainDict(), self.marked()))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [stack.pop()] if name == "APPEND" else self.marked()
            _of(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self.marked()
            self.filled(_of(stack[-1], PlainDict), items)
        elif name in ("GLOBAL", "STACK_GLOBAL"):
            parts = argument.split(" ", 1) if name == "GLOBAL" else [stack.pop(-2), stack.pop()]
            stack.append(self.named(*(_of(part, str) for part in parts)))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = _of(stack.pop(), tuple)
            stack.append(_of(stack.pop(), Named).make(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            _of(stack[-1], Inert | PlainDict).fill(state)
        else:
            raise UserError(f"refused: a pickle that uses {name}, which no known file does")

    def marked(self) -> list[Any]:
        """What lies above the last mark, taken off with it."""
        # By identity: tensors compare in their own way.
        at = next((at for at in range(len(self.stack) - 1, -1, -1) if self.stack[at] is _Mark), None)
        if at is None:
            raise UserError("not a whole pickle: an end without its beginning")
        items = self.stack[at + 1 :]
        del self.stack[at:]
        return items

    def filled(self, target: PlainDict, items: list[Any]) -> PlainDict:
        for key, value in zip(items[::2], items[1::2], strict=True):
            # A tuple of tuples would be hashed to the bottom.
            target[key if isinstance(key, str | bytes | int | float | None) else f"({type(key).__name__})"] = value
        return target

    def named(self, module: str, name: str) -> Named:
        full = f"{module}.{name}"
        make = self.table(full)
        if make is None:
            raise UserError(f"refused: it asks for {plain(full)}, which is not needed for numbers; nothing was run")
        return Named(make)


def _of(value: Any, kind: Any) -> Any:
    if not isinstance(value, kind):
        raise UserError(f"refused: a pickle that takes {type(value).__name__} for something else")
    return value


# Arrays.


class DType(Inert):
    """numpy.dtype of plain numbers: its code and byte order."""

    def __init__(self, code: Any = "", *flags: Any) -> None:
        super().__init__("dtype")
        self.code, self.order = code, "<"

    def fill(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] in ("<", ">", "|", "="):
            self.order = state[1]
        if isinstance(state, tuple) and any(part not in (None, (), {}) for part in state[2:5]):
            raise UserError("refused: an array of records; plain numbers expected")

    def numpy(self) -> "np.dtype[Any]":
        code = self.code.decode("ascii") if isinstance(self.code, bytes) else self.code
        if not isinstance(code, str) or code not in ("b1", *(f"{kind}{size}" for kind in "iuf" for size in (1, 2, 4, 8))):
            raise UserError(f"refused: an array of {plain(code)}; plain numbers expected")
        return np.dtype(self.order.replace("|", "=") + code)


class Array(Inert):
    """A numpy array, as bytes until it is asked for."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__("ndarray")
        self.array: NDArray[Any] = np.empty(0)

    def fill(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        self.array = numbers(dtype, content, shape, bool(fortran))


def numbers(dtype: Any, content: Any, shape: Any = (), fortran: bool = False) -> NDArray[Any]:
    """Bytes as numbers of a shape that they fill exactly."""
    kind = _of(dtype, DType).numpy()
    flat = np.frombuffer(_of(content, bytes), kind)
    if not all(isinstance(length, int) and 0 <= length <= len(flat) for length in _of(shape, tuple)) or len(shape) > 32:
        raise UserError("refused: an array whose shape does not fit its content")
    array: NDArray[Any] = flat.reshape(shape, order="F" if fortran else "C")
    return array


def _encode(text: Any, encoding: Any = "latin1", *unused: Any) -> bytes:
    """How Python 3 pickles bytes for Python 2."""
    if encoding not in ("latin1", "latin-1"):
        raise UserError(f"refused: text encoded as {plain(encoding)}")
    return bytes(_of(text, str).encode("latin-1"))


def _scalar(dtype: Any, content: Any) -> Any:
    return numbers(dtype, content, ()).item()


#: What arrays are pickled with.
ARRAYS: dict[str, Callable[..., Any]] = {
    "numpy.ndarray": Array,
    "numpy.dtype": DType,
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": Array for core in ("core", "_core")},
    **{f"numpy.{core}.multiarray.scalar": _scalar for core in ("core", "_core")},
}
