"""The reference's pickled checkpoints as inert values: a small stack machine in place of `pickle`, which runs what it reads.

It knows only the opcodes and the names that such a checkpoint holds. No name is ever imported: each stands for a rule
of this file, and what comes out are dictionaries, tuples, numbers, strings, and arrays that view the bytes read.
"""

import dataclasses
import math
import os
import pickletools
import re
import reprlib
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

import numpy as np

from ._errors import ReferenceCheckpointError

GLOBALS = frozenset(
    {
        "jax._src.array._reconstruct_array",
        "numpy._core.multiarray._reconstruct",
        "numpy._core.multiarray.scalar",
        "numpy._core.numeric._frombuffer",
        "numpy.core.multiarray._reconstruct",
        "numpy.core.multiarray.scalar",
        "numpy.core.numeric._frombuffer",
        "numpy.dtype",
        "numpy.ndarray",
        "optax._src.base.EmptyState",
        "optax._src.transform.ScaleByAdamState",
        "optax._src.transform.ScaleByScheduleState",
    }
)
"""The names a checkpoint may hold, each with one meaning here: see `_call` and `_new`."""

KNOWN = {opcode.code: opcode for opcode in pickletools.opcodes}
PLAIN = re.compile(r"f[248]|[iu][1248]|b1")
MOST_ENTRIES = 1_000_000
"""Opcodes in one file: the largest published size needs about 50,000, and each may take memory."""
MOST_AXES = 8


@dataclasses.dataclass(frozen=True)
class Node:
    """One of the reference's namedtuples by its class's name, with its fields in order."""

    kind: str
    fields: tuple[Any, ...]


@dataclasses.dataclass(frozen=True)
class _Global:
    name: str

    @property
    def last(self) -> str:
        return self.name.rpartition(".")[2]


@dataclasses.dataclass
class _DType:
    """A pickle makes a dtype in two goes, and refers to it in between; arrays likewise."""

    code: str
    order: str = "="


@dataclasses.dataclass(eq=False)
class Leaf:
    """An array of plain numbers; None until its bytes have come."""

    value: np.ndarray | None = None


class _Bounded:
    """A file of which no more is asked for than there is: a count that lies would reserve its memory before it fails."""

    def __init__(self, file: BinaryIO, size: int):
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.file.tell()))

    def readline(self) -> bytes:
        return self.file.readline()


@dataclasses.dataclass
class _Machine:
    stack: list[Any] = dataclasses.field(default_factory=list)
    below: list[list[Any]] = dataclasses.field(default_factory=list)
    """The stacks under each mark."""
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)

    def pop(self, count: int = 1) -> list[Any]:
        if len(self.stack) < count:
            raise ReferenceCheckpointError("takes more values than there are")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop_mark(self) -> list[Any]:
        if not self.below:
            raise ReferenceCheckpointError("looks for a mark that was never set")
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def top(self) -> Any:
        if not self.stack:
            raise ReferenceCheckpointError("takes a value where there is none")
        return self.stack[-1]


def load(file: BinaryIO) -> Any:
    """The one value that a pickle of protocol 3 to 5 holds; arrays are `Leaf`, namedtuples `Node`.

    Raises ReferenceCheckpointError naming the byte at which the file ends early, or holds what no checkpoint holds.
    """
    machine = _Machine()
    for at, name, argument in _opcodes(file):
        try:
            OPCODES[name](machine, argument)
        except ReferenceCheckpointError as error:
            raise ReferenceCheckpointError(f"the entry {name} at byte {at} {error}") from None
    if file.read(1):
        raise ReferenceCheckpointError(f"more bytes follow the end at byte {file.tell() - 1}: copy the file again")
    (value,) = machine.pop()
    if machine.stack or machine.below:
        raise ReferenceCheckpointError("the file holds more than one value: it is no checkpoint")
    return value


def _opcodes(file: BinaryIO) -> Iterator[tuple[int, str, Any]]:
    bounded: Any = _Bounded(file, os.fstat(file.fileno()).st_size)
    for number in range(MOST_ENTRIES):
        at = file.tell()
        opcode = KNOWN.get(file.read(1).decode("latin-1"))
        if opcode is None and file.tell() == at:
            raise ReferenceCheckpointError(f"the file ends at byte {at} before the checkpoint does: copy it again")
        if number == 0 and (opcode is None or opcode.name != "PROTO"):
            raise ReferenceCheckpointError("the file is no pickle of protocol 2 or later: name the checkpoint itself")
        # Looked up before its argument is read, so that only a few well-known forms of argument are ever parsed.
        if opcode is None or opcode.name not in OPCODES:
            name = "unknown" if opcode is None else opcode.name
            raise ReferenceCheckpointError(f"the entry at byte {at} is {name}, which no checkpoint holds: do not use this file")
        try:
            argument = opcode.arg and opcode.arg.reader(bounded)
        except ValueError as error:
            if file.tell() < bounded.size:
                raise
            raise ReferenceCheckpointError(
                f"the file ends at byte {bounded.size} inside the entry {opcode.name}, which starts at byte {at}: copy it again"
            ) from error
        yield at, opcode.name, argument
        if opcode.name == "STOP":
            return
    raise ReferenceCheckpointError(f"the file has more than {MOST_ENTRIES:,} entries: do not use this file")


def _protocol(machine: _Machine, version: int) -> None:
    if not 2 <= version <= 5:
        raise ReferenceCheckpointError(f"asks for protocol {version}, of which 2 to 5 are known: save it with another")


def _push(machine: _Machine, value: Any) -> None:
    machine.stack.append(value)


def _constant(value: Any) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(value)


def _mark(machine: _Machine, _: None) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _tuple(machine: _Machine, _: None) -> None:
    items = machine.pop_mark()
    machine.stack.append(tuple(items))


def _tuple_of(count: int) -> Callable[[_Machine, Any], None]:
    return lambda machine, _: machine.stack.append(tuple(machine.pop(count)))


def _set_item(machine: _Machine, _: None) -> None:
    _store(machine, machine.pop(2))


def _set_items(machine: _Machine, _: None) -> None:
    _store(machine, machine.pop_mark())


def _store(machine: _Machine, items: list[Any]) -> None:
    names, values, target = items[::2], items[1::2], machine.top()
    # Strings alone: their hashes are salted, so that no choice of keys makes a dictionary slow.
    if not isinstance(target, dict) or len(names) != len(values) or not all(isinstance(name, str) for name in names):
        raise ReferenceCheckpointError("stores what is not pairs of a string and a value, or not in a dictionary")
    target.update(zip(names, values, strict=True))


def _put(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.top()


def _memoize(machine: _Machine, _: None) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _get(machine: _Machine, index: int) -> None:
    if index not in machine.memo:
        raise ReferenceCheckpointError(f"refers to value {index}, which was never stored")
    machine.stack.append(machine.memo[index])


def _global(machine: _Machine, name: str) -> None:
    dotted = name.replace(" ", ".")
    if dotted not in GLOBALS:
        raise ReferenceCheckpointError(
            f"names the global {_short(dotted)}, and only {', '.join(sorted(GLOBALS))} are allowed: do not use this file"
        )
    machine.stack.append(_Global(dotted))


def _stack_global(machine: _Machine, _: None) -> None:
    module, name = machine.pop(2)
    if not (isinstance(module, str) and isinstance(name, str)):
        raise ReferenceCheckpointError("names a global by what are not strings")
    _global(machine, f"{module}.{name}")


def _reduce(machine: _Machine, _: None) -> None:
    function, arguments = machine.pop(2)
    machine.stack.append(_call(function, arguments))


def _call(function: Any, arguments: Any) -> _DType | Leaf:
    match function, arguments:
        case _Global(last="dtype"), (str(code), bool(), bool()):
            return _DType(code)
        case _Global(last="_reconstruct"), (_Global(last="ndarray"), *_):
            return Leaf()
        case _Global(last="_reconstruct_array"), (_Global(last="_reconstruct"), tuple(), tuple(state), dict()):
            return _build(Leaf(), state)
        case _Global(last="scalar"), (_DType() as dtype, bytes(raw)):
            return Leaf(_array(raw, dtype, (), "C"))
        case _Global(last="_frombuffer"), (bytes() | bytearray() as raw, _DType() as dtype, tuple(shape), "C" | "F" as order):
            return Leaf(_array(raw, dtype, shape, order))
    raise ReferenceCheckpointError(f"calls {_short(function)} with arguments that no checkpoint holds")


def _set_state(machine: _Machine, _: None) -> None:
    (state,) = machine.pop()
    machine.stack[-1:] = [_build(machine.top(), state)]


def _build(value: Any, state: Any) -> _DType | Leaf:
    match value, state:
        case _DType(), (_, "<" | ">" | "|" | "=" as order, None, None, None, *_):
            value.order = order
            return value
        case Leaf(value=None), (_, tuple(shape), _DType() as dtype, bool(fortran), bytes(raw)):
            value.value = _array(raw, dtype, shape, "F" if fortran else "C")
            return value
        case Leaf(value=None), (_, tuple(), _DType(code=code), *_):
            raise ReferenceCheckpointError(f"gives an array of type {_short(code)} what are not bytes")
    raise ReferenceCheckpointError(f"gives {_short(value)} a state that no checkpoint holds")


def _new(machine: _Machine, _: None) -> None:
    kind, fields = machine.pop(2)
    match kind, fields:
        case _Global(last="EmptyState" | "ScaleByAdamState" | "ScaleByScheduleState"), tuple():
            machine.stack.append(Node(kind.last, fields))
        case _:
            raise ReferenceCheckpointError(f"makes an object of {_short(kind)}, which no checkpoint holds")


def _array(raw: bytes | bytearray, dtype: _DType, shape: tuple[Any, ...], order: str) -> np.ndarray:
    if not PLAIN.fullmatch(dtype.code):
        raise ReferenceCheckpointError(f"holds an array of type {_short(dtype.code)}, and only plain numbers are allowed")
    plain = np.dtype(dtype.order + dtype.code)
    sizes = len(shape) <= MOST_AXES and all(type(size) is int and size >= 0 for size in shape)
    if not sizes or math.prod(shape) * plain.itemsize != len(raw):
        raise ReferenceCheckpointError(f"has {len(raw)} bytes for an array of shape {_short(shape)} and type {dtype.code}")
    array = np.frombuffer(raw, plain).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(plain.newbyteorder("="), copy=False)


def _short(value: Any) -> str:
    """A few words on a value, whose own repr might be endless."""
    if isinstance(value, _Global):
        return value.name
    if isinstance(value, _DType):
        return f"the type {value.code[:120]}"
    if isinstance(value, tuple) and all(type(item) is int for item in value):
        return reprlib.repr(value)
    if isinstance(value, Leaf):
        return "an array"
    return value[:120] if isinstance(value, str) else f"what is of type {type(value).__name__}"


def _nothing(machine: _Machine, argument: Any) -> None:
    """A hint on reading ahead, or the end."""


OPCODES: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _protocol,
    **dict.fromkeys(("FRAME", "STOP"), _nothing),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), _push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), _push),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _mark,
    "EMPTY_TUPLE": _constant(()),
    "TUPLE": _tuple,
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_DICT": lambda machine, _: machine.stack.append({}),
    "SETITEM": _set_item,
    "SETITEMS": _set_items,
    "MEMOIZE": _memoize,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    "REDUCE": _reduce,
    "BUILD": _set_state,
    "NEWOBJ": _new,
}
"""What each opcode does; those that protocols 3 to 5 write for a checkpoint, and no others."""
