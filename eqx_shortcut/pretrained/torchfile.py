"""Tensors of a file that `torch.save` wrote, read without torch and without running any of it.

Both formats are read: the archive that torch writes since 1.6, and the pickles in a row of before.
"""

import dataclasses
import io
import math
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Shaped

from ..errors import first_line
from .unpickle import OPCODES, Global, Handler, Machine, Rules, UnpickleError, are_sizes, load, load_first, short

STORAGES = {
    "torch.BFloat16Storage": jnp.bfloat16,
    "torch.BoolStorage": "?",
    "torch.ByteStorage": "<u1",
    "torch.CharStorage": "<i1",
    "torch.DoubleStorage": "<f8",
    "torch.FloatStorage": "<f4",
    "torch.HalfStorage": "<f2",
    "torch.IntStorage": "<i4",
    "torch.LongStorage": "<i8",
    "torch.ShortStorage": "<i2",
}
NAMES = frozenset(
    {
        "argparse.Namespace",  # what authors' scripts save their options as, beside the tensors; its fields are dropped
        "collections.OrderedDict",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_tensor_v2",
        *STORAGES,
    }
)
ARCHIVE = b"PK\x03\x04"
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
ROW = b"\x80\x02\x8a\x0a" + MAGIC.to_bytes(10, "little") + b"."
"""What begins a file of either format."""
SAVE = "save the tensors alone, with torch.save(model.state_dict(), path)"


@dataclasses.dataclass(eq=False)
class _Storage:
    """Numbers in a row, which tensors view; None until its bytes have come."""

    dtype: np.dtype
    count: int
    values: np.ndarray | None = None

    @property
    def size(self) -> int:
        return self.count * self.dtype.itemsize


@dataclasses.dataclass(frozen=True, eq=False)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def array(self) -> np.ndarray:
        assert self.storage.values is not None
        itemsize = self.storage.dtype.itemsize
        values = self.storage.values[self.offset :]
        return np.lib.stride_tricks.as_strided(values, self.shape, [s * itemsize for s in self.strides], writeable=False)


def is_torch(path: pathlib.Path) -> bool:
    """Whether the file begins as one of torch does."""
    with path.open("rb") as file:
        return file.read(len(ROW)).startswith((ARCHIVE, ROW))


def read_tensors(
    path: str | pathlib.Path, choose: Callable[[Mapping[str, Any]], Any] = lambda content: content
) -> dict[str, Shaped[np.ndarray, "..."]]:
    """The tensors of a state dictionary by name; of others beside it, as in a checkpoint of training, the one to `choose`.

    Only the chosen tensors' bytes are read. Raises ValueError naming the file and what it holds that is no tensor of plain
    numbers, or where it is damaged.
    """
    path = pathlib.Path(path)
    if not path.is_file():
        raise ValueError(f"no file {path}: check the path")
    try:
        with path.open("rb") as file:
            read = _read_archive if file.read(4) == ARCHIVE else _read_row
            return _tensors(read(file, lambda content: choose(content) if isinstance(content, dict) else content))
    except UnpickleError as error:
        raise ValueError(f"{path} cannot be read as a file of torch: {error}") from None
    except Exception as error:  # whatever damaged bytes bring about
        raise ValueError(f"{path} cannot be read as a file of torch ({first_line(error, 200)}): copy it again") from error


def _read_archive(file: io.BufferedIOBase, choose: Callable[[Any], Any]) -> Any:
    with zipfile.ZipFile(file) as archive:
        inner = [name for name in archive.namelist() if name.endswith("/data.pkl")]
        if len(inner) != 1:
            raise UnpickleError(f"the archive holds {len(inner)} data.pkl, and should hold one: {SAVE}")
        folder = inner[0].removesuffix("data.pkl")
        if f"{folder}byteorder" in archive.namelist() and _entry(archive, f"{folder}byteorder") != b"little":
            raise UnpickleError("its numbers are in big-endian order, and only little-endian is read: save it again elsewhere")
        storages: dict[str, _Storage] = {}
        content = choose(load(io.BytesIO(_entry(archive, inner[0])), _rules(storages)))
        for key, storage in _asked(storages, content).items():
            raw = _entry(archive, f"{folder}data/{key}")
            if len(raw) != storage.size:
                raise UnpickleError(f"storage {key[:50]} has {len(raw)} bytes, not {storage.size}: copy the file again")
            storage.values = np.frombuffer(raw, storage.dtype)
    return content


def _asked(storages: dict[str, _Storage], content: Any) -> dict[str, _Storage]:
    """Those that the tensors of a state dictionary view; all where it is none, which is refused afterwards."""
    values = content.values() if isinstance(content, dict) else ()
    viewed = {id(value.storage) for value in values if isinstance(value, _Tensor)}
    return {key: storage for key, storage in storages.items() if id(storage) in viewed}


def _entry(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # what is packed might unpack to any size
        raise UnpickleError(
            f"the entry {name[:100]} of the archive is compressed, which torch never does: do not use this file"
        )
    return archive.read(name)


def _read_row(file: io.BufferedIOBase, choose: Callable[[Any], Any]) -> Any:
    """A number, a version, the machine's ways, the content, the storages' keys, and then each one's count and bytes."""
    end = file.seek(0, io.SEEK_END)
    file.seek(0)
    if file.read(len(ROW)) != ROW:
        raise UnpickleError(f"it does not begin as torch.save writes: {SAVE}")
    if (version := load_first(file, Rules())) != PROTOCOL:
        raise UnpickleError(f"it is of version {short(version)}, and only {PROTOCOL} is known: {SAVE}")
    match load_first(file, Rules()):
        case {"little_endian": True}:
            pass
        case _:
            raise UnpickleError(
                "its numbers are not said to be little-endian, and only these are read: save it again elsewhere"
            )
    storages: dict[str, _Storage] = {}
    content = choose(load_first(file, _rules(storages)))
    keys = load_first(file, _rules({}))
    if not isinstance(keys, list) or sorted(map(str, keys)) != sorted(storages):
        raise UnpickleError("the storages it lists are not those of its tensors: copy the file again")
    asked = _asked(storages, content)
    for key in keys:
        storage = storages[key]
        head = file.read(8)
        if head != storage.count.to_bytes(8, "little") or storage.size > end - file.tell():
            raise UnpickleError(f"the file ends, or differs from its own list, in storage {key[:50]}: copy it again")
        raw = file.read(storage.size)
        if key in asked:
            storage.values = np.frombuffer(raw, storage.dtype)
    if file.read(1):
        raise UnpickleError(f"more bytes follow the end at byte {file.tell() - 1}: copy the file again")
    return content


def _rules(storages: dict[str, _Storage]) -> Rules:
    """Those of torch; the storages that tensors view are noted by key."""

    def persistent(machine: Machine, _: None) -> None:
        (identity,) = machine.pop()
        match identity:
            case ("storage", Global(name), str(key), str(), int(count), *rest) if name in STORAGES and rest in ([], [None]):
                new = _Storage(np.dtype(STORAGES[name]), count)
            case _:
                raise UnpickleError(f"refers to {short(identity)}, which is no storage of plain numbers: {SAVE}")
        known = storages.setdefault(key, new)
        if not 0 <= count < 2**63 or (known.dtype, known.count) != (new.dtype, new.count):
            raise UnpickleError(
                f"describes storage {key[:50]} in two ways, or with less than nothing in it: copy the file again"
            )
        machine.push(known)

    more: dict[str, Handler] = {
        "BINPERSID": persistent,
        "EMPTY_LIST": lambda machine, _: machine.push([]),
        "APPEND": lambda machine, _: _extend(machine, machine.pop()),
        "APPENDS": lambda machine, _: _extend(machine, machine.pop_mark()),
        "SETITEM": lambda machine, _: _store(machine, machine.pop(2)),
        "SETITEMS": lambda machine, _: _store(machine, machine.pop_mark()),
    }
    return Rules(NAMES, _call, _build, opcodes={**OPCODES, **more})


def _store(machine: Machine, items: list[Any]) -> None:
    """As in other pickles, and small numbers as keys too, by which optimizers count parameters."""
    target, names = machine.top(), items[::2]
    known = all(isinstance(name, str) or (type(name) is int and 0 <= name < 2**31) for name in names)
    if not isinstance(target, dict) or len(items) % 2 or not known:
        raise UnpickleError("stores what is not pairs of a string or a number and a value, or not in a dictionary")
    target.update(zip(names, items[1::2], strict=True))


def _extend(machine: Machine, items: list[Any]) -> None:
    target = machine.top()
    if not isinstance(target, list):
        raise UnpickleError("appends to what is no list")
    target.extend(items)


def _call(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case Global("collections.OrderedDict" | "argparse.Namespace"), ():
            return {}
        case Global("torch._utils._rebuild_tensor_v2"), (
            _Storage() as storage,
            int(offset),
            shape,
            strides,
            bool(),
            dict(),
            *_,
        ):
            return _tensor(storage, offset, shape, strides)
        case Global("torch._utils._rebuild_parameter"), (_Tensor() as tensor, bool(), dict()):
            return tensor
    raise UnpickleError(f"calls {short(function)} with arguments that no state dictionary holds")


def _build(value: Any, state: Any) -> Any:
    """A state dictionary is given the versions of its modules, which say nothing of its tensors."""
    if isinstance(value, dict) and isinstance(state, dict):
        return value
    raise UnpickleError(f"gives {short(value)} a state that no state dictionary holds")


def _tensor(storage: _Storage, offset: int, shape: Any, strides: Any) -> _Tensor:
    sizes = are_sizes(shape) and are_sizes(strides) and len(shape) == len(strides) and type(offset) is int and offset >= 0
    if not sizes or math.prod(shape) > storage.count:
        raise UnpickleError(f"has a tensor of shape {short(shape)} in a storage of {storage.count} numbers")
    last = offset + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    if math.prod(shape) and last >= storage.count:
        raise UnpickleError(f"has a tensor that ends at number {last} of a storage of {storage.count}")
    return _Tensor(storage, offset, shape, strides)


def _tensors(content: Any) -> dict[str, np.ndarray]:
    if not isinstance(content, dict) or not content:
        raise UnpickleError(f"it holds no dictionary of tensors: {SAVE}")
    for name, value in content.items():
        if not isinstance(name, str):
            raise UnpickleError(f"it holds {short(value)} under {name}, which is no name: {SAVE}")
        if not isinstance(value, _Tensor):
            raise UnpickleError(f"it holds {short(value)} as {name[:100]!r}, which is no tensor: {SAVE}")
    return {name: value.array() for name, value in content.items()}
