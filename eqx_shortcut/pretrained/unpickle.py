"""Pickles of arrays as inert values: a small stack machine in place of `pickle`, which runs what it reads.

It knows only the opcodes and the names that its caller's `Rules` hold. No name is ever imported: each stands for a case in
those rules, and what comes out are dictionaries, tuples, numbers, strings, and arrays that view the bytes read.
"""

import dataclasses
import io
import math
import os
import pickletools
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

NUMPY = frozenset(
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
    }
)
"""The names that arrays of NumPy and JAX need, each with one meaning here: see `call_numpy` and `build_numpy`."""

KNOWN = {opcode.code: opcode for opcode in pickletools.opcodes}
PLAIN = re.compile(r"f[248]|[iu][1248]|b1")
MOST_ENTRIES = 1_000_000
"""Opcodes in one file: the largest published size needs about 50,000, and each may take memory."""
MOST_AXES = 8
DEEPEST = 8
"""Levels of nested dictionaries; published files have four."""
LONGEST = 100
"""Characters of one name."""


class UnpickleError(ValueError):
    """A pickle that ends early, or holds what its rules do not allow."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A name in a pickle, and nothing that it might be the name of."""

    name: str

    @property
    def last(self) -> str:
        """The name without its module."""
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


def call_numpy(function: Any, arguments: Any) -> _DType | Leaf:
    """The value of a call in a pickle of arrays."""
    match function, arguments:
        case Global(last="dtype"), (str(code), bool(), bool()):
            return _DType(code)
        case Global(last="_reconstruct"), (Global(last="ndarray"), *_):
            return Leaf()
        case Global(last="_reconstruct_array"), (Global(last="_reconstruct"), tuple(), tuple(state), dict()):
            return build_numpy(Leaf(), state)
        case Global(last="scalar"), (_DType() as dtype, bytes(raw)):
            return Leaf(_array(raw, dtype, (), "C"))
        case Global(last="_frombuffer"), (bytes() | bytearray() as raw, _DType() as dtype, tuple(shape), "C" | "F" as order):
            return Leaf(_array(raw, dtype, shape, order))
    raise UnpickleError(f"calls {short(function)} with arguments that no checkpoint holds")


def build_numpy(value: Any, state: Any) -> Any:
    """A value with its state, in a pickle of arrays."""
    match value, state:
        case _DType(), (_, "<" | ">" | "|" | "=" as order, None, None, None, *_):
            value.order = order
            return value
        case Leaf(value=None), (_, tuple(shape), _DType() as dtype, bool(fortran), bytes(raw)):
            value.value = _array(raw, dtype, shape, "F" if fortran else "C")
            return value
        case Leaf(value=None), (_, tuple(), _DType(code=code), *_):
            raise UnpickleError(f"gives an array of type {short(code)} what are not bytes")
    raise UnpickleError(f"gives {short(value)} a state that no checkpoint holds")


def _array(raw: bytes | bytearray, dtype: _DType, shape: tuple[Any, ...], order: str) -> np.ndarray:
    if not PLAIN.fullmatch(dtype.code):
        raise UnpickleError(f"holds an array of type {short(dtype.code)}, and only plain numbers are allowed")
    plain = np.dtype(dtype.order + dtype.code)
    if not are_sizes(shape) or math.prod(shape) * plain.itemsize != len(raw):
        raise UnpickleError(f"has {len(raw)} bytes for an array of shape {short(shape)} and type {dtype.code}")
    array = np.frombuffer(raw, plain).reshape(shape, order="F" if order == "F" else "C")
    return array.astype(plain.newbyteorder("="), copy=False)


def are_sizes(shape: Any) -> bool:
    """Whether this is a tuple of a few whole numbers from 0 on."""
    return isinstance(shape, tuple) and len(shape) <= MOST_AXES and all(type(size) is int and size >= 0 for size in shape)


def short(value: Any) -> str:
    """A few words on a value, whose own repr might be endless."""
    if isinstance(value, Global):
        return value.name
    if isinstance(value, _DType):
        return f"the type {value.code[:120]}"
    if isinstance(value, tuple) and all(type(item) is int for item in value):
        return reprlib.repr(value)
    if isinstance(value, Leaf):
        return "an array"
    return value[:120] if isinstance(value, str) else f"what is of type {type(value).__name__}"


def leaves(tree: Any, what: str) -> Iterator[tuple[str, Any]]:
    """The values in nested dictionaries, by their names with `/` between levels.

    Raises UnpickleError if `what` this is holds itself or a part twice, is nested too deep, or has other names.
    """
    if not isinstance(tree, dict):
        raise UnpickleError(f"{what} is no dictionary of arrays: it is no checkpoint of training")
    yield from _leaves(tree, what, "", 0, set())


def _leaves(tree: dict[Any, Any], what: str, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    # Each dictionary once: references back would never end, and references across could double at every level.
    if id(tree) in seen or depth > DEEPEST:
        raise UnpickleError(f"{what} at {path!r} holds itself, or a part twice, or is too deep: do not use it")
    seen.add(id(tree))
    for name, value in tree.items():
        if "/" in name or len(name) > LONGEST:
            raise UnpickleError(f"{what} has a part named {name[:LONGEST]!r}: a name is short and without '/'")
        if isinstance(value, dict):
            yield from _leaves(value, what, f"{path}{name}/", depth + 1, seen)
        else:
            yield f"{path}{name}", value


class _Bounded:
    """A file that refuses to read past its end, so that a forged length cannot reserve memory."""

    def __init__(self, file: io.BufferedIOBase, size: int):
        self.file, self.size = file, size

    def read(self, count: int) -> bytes:
        return self.file.read(min(count, self.size - self.file.tell()))

    def readline(self) -> bytes:
        return self.file.readline()


@dataclasses.dataclass
class Machine:
    """The stack and memo of a pickle that is being read."""

    rules: "Rules"
    stack: list[Any] = dataclasses.field(default_factory=list)
    below: list[list[Any]] = dataclasses.field(default_factory=list)
    """The stacks under each mark."""
    memo: dict[int, Any] = dataclasses.field(default_factory=dict)

    def push(self, value: Any) -> None:
        """Puts a value on top."""
        self.stack.append(value)

    def pop(self, count: int = 1) -> list[Any]:
        """The last values."""
        if len(self.stack) < count:
            raise UnpickleError("takes more values than there are")
        taken = self.stack[-count:]
        del self.stack[-count:]
        return taken

    def pop_mark(self) -> list[Any]:
        """All values since the last mark."""
        if not self.below:
            raise UnpickleError("looks for a mark that was never set")
        taken, self.stack = self.stack, self.below.pop()
        return taken

    def top(self) -> Any:
        """The last value, which stays."""
        if not self.stack:
            raise UnpickleError("takes a value where there is none")
        return self.stack[-1]


Handler = Callable[[Machine, Any], None]


def load(file: io.BufferedIOBase, rules: "Rules") -> Any:
    """The one value that a pickle of protocol 2 to 5 holds; arrays are `Leaf`.

    Raises UnpickleError naming the byte at which the file ends early, or holds what the rules do not allow.
    """
    value = load_first(file, rules)
    if file.read(1):
        raise UnpickleError(f"more bytes follow the end at byte {file.tell() - 1}: copy the file again")
    return value


def load_first(file: io.BufferedIOBase, rules: "Rules") -> Any:
    """As `load`, of a pickle that other bytes follow: the file is left at the first of these."""
    machine = Machine(rules)
    for at, name, argument in _opcodes(file, rules):
        try:
            rules.opcodes[name](machine, argument)
        except UnpickleError as error:
            raise UnpickleError(f"the entry {name} at byte {at} {error}") from None
    (value,) = machine.pop()
    if machine.stack or machine.below:
        raise UnpickleError("the file holds more than one value: it is no checkpoint")
    return value


def _opcodes(file: io.BufferedIOBase, rules: "Rules") -> Iterator[tuple[int, str, Any]]:
    start = file.tell()
    bounded: Any = _Bounded(file, file.seek(0, os.SEEK_END))
    file.seek(start)
    for number in range(MOST_ENTRIES):
        at = file.tell()
        opcode = KNOWN.get(file.read(1).decode("latin-1"))
        if opcode is None and file.tell() == at:
            raise UnpickleError(f"the file ends at byte {at} before the checkpoint does: copy it again")
        if number == 0 and (opcode is None or opcode.name != "PROTO"):
            raise UnpickleError("the file is no pickle of protocol 2 or later: name the checkpoint itself")
        # Looked up before its argument is read, so that only a few well-known forms of argument are ever parsed.
        if opcode is None or opcode.name not in rules.opcodes:
            name = "unknown" if opcode is None else opcode.name
            raise UnpickleError(f"the entry at byte {at} is {name}, which no checkpoint holds: do not use this file")
        try:
            argument = opcode.arg and opcode.arg.reader(bounded)
        except ValueError as error:
            if file.tell() < bounded.size:
                raise
            raise UnpickleError(
                f"the file ends at byte {bounded.size} inside the entry {opcode.name}, which starts at byte {at}: copy it again"
            ) from error
        yield at, opcode.name, argument
        if opcode.name == "STOP":
            return
    raise UnpickleError(f"the file has more than {MOST_ENTRIES:,} entries: do not use this file")


def _protocol(machine: Machine, version: int) -> None:
    if not 2 <= version <= 5:
        raise UnpickleError(f"is of protocol {version}, but only 2 to 5 are read: save it with another")


def _constant(value: Any) -> Handler:
    return lambda machine, _: machine.push(value)


def _mark(machine: Machine, _: None) -> None:
    machine.below.append(machine.stack)
    machine.stack = []


def _tuple_of(count: int) -> Handler:
    return lambda machine, _: machine.push(tuple(machine.pop(count)))


def _store(machine: Machine, items: list[Any]) -> None:
    names, values, target = items[::2], items[1::2], machine.top()
    # Strings alone: their hashes are salted, so that no choice of keys makes a dictionary slow.
    if not isinstance(target, dict) or len(names) != len(values) or not all(isinstance(name, str) for name in names):
        raise UnpickleError("stores what is not pairs of a string and a value, or not in a dictionary")
    target.update(zip(names, values, strict=True))


def _put(machine: Machine, index: int) -> None:
    machine.memo[index] = machine.top()


def _memoize(machine: Machine, _: None) -> None:
    machine.memo[len(machine.memo)] = machine.top()


def _get(machine: Machine, index: int) -> None:
    if index not in machine.memo:
        raise UnpickleError(f"refers to value {index}, which was never stored")
    machine.push(machine.memo[index])


def _global(machine: Machine, name: str) -> None:
    dotted, allowed = name.replace(" ", "."), machine.rules.names
    if dotted not in allowed:
        raise UnpickleError(
            f"names the global {short(dotted)}, and only {', '.join(sorted(allowed))} are allowed: do not use this file"
        )
    machine.push(Global(dotted))


def _stack_global(machine: Machine, _: None) -> None:
    module, name = machine.pop(2)
    if not (isinstance(module, str) and isinstance(name, str)):
        raise UnpickleError("names a global by what are not strings")
    _global(machine, f"{module}.{name}")


def _set_state(machine: Machine, _: None) -> None:
    (state,) = machine.pop()
    machine.stack[-1:] = [machine.rules.build(machine.top(), state)]


OPCODES: dict[str, Handler] = {
    "PROTO": _protocol,
    # A hint on reading ahead, and the end.
    **dict.fromkeys(("FRAME", "STOP"), lambda machine, _: None),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), Machine.push),
    **dict.fromkeys(("SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"), Machine.push),
    **dict.fromkeys(("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"), Machine.push),
    "NONE": _constant(None),
    "NEWTRUE": _constant(True),
    "NEWFALSE": _constant(False),
    "MARK": _mark,
    "EMPTY_TUPLE": _constant(()),
    "TUPLE": lambda machine, _: machine.push(tuple(machine.pop_mark())),
    "TUPLE1": _tuple_of(1),
    "TUPLE2": _tuple_of(2),
    "TUPLE3": _tuple_of(3),
    "EMPTY_DICT": lambda machine, _: machine.push({}),
    "SETITEM": lambda machine, _: _store(machine, machine.pop(2)),
    "SETITEMS": lambda machine, _: _store(machine, machine.pop_mark()),
    "MEMOIZE": _memoize,
    **dict.fromkeys(("BINPUT", "LONG_BINPUT"), _put),
    **dict.fromkeys(("BINGET", "LONG_BINGET"), _get),
    "GLOBAL": _global,
    "STACK_GLOBAL": _stack_global,
    # A call, and an object made of a class: what each means is said by the same rule.
    **dict.fromkeys(("REDUCE", "NEWOBJ"), lambda machine, _: machine.push(machine.rules.call(*machine.pop(2)))),
    "BUILD": _set_state,
}
"""What each opcode does; those that protocols 3 to 5 write for arrays in dictionaries, and no others."""


@dataclasses.dataclass(frozen=True)
class Rules:
    """The names that a pickle may hold, and the meaning of calls, objects and states of these."""

    names: frozenset[str] = NUMPY
    call: Callable[[Any, Any], Any] = call_numpy
    build: Callable[[Any, Any], Any] = build_numpy
    opcodes: Mapping[str, Handler] = dataclasses.field(default_factory=lambda: OPCODES)
