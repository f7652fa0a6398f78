"""Files as torch.save writes them, in both formats, made without torch."""

import collections
import io
import pickle
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

STORAGES = {
    "f2": "Half",
    "f4": "Float",
    "f8": "Double",
    "i1": "Char",
    "i2": "Short",
    "i4": "Int",
    "i8": "Long",
    "u1": "Byte",
    "b1": "Bool",
}
MAGIC, PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
LITTLE = {"protocol_version": PROTOCOL, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}


class Name:
    """A global of a module that is not there."""

    def __init__(self, module: str, name: str):
        self.module, self.name = module, name

    def __call__(self):
        raise AssertionError("only its name is written")


class Storage:
    """Numbers in a row, under a key."""

    def __init__(self, key: str, values: np.ndarray, *, kind: str | None = None, count: int | None = None):
        self.key, self.values = key, values
        self.kind = kind or f"{STORAGES[values.dtype.str[1:]]}Storage"
        self.count = values.size if count is None else count


class Tensor:
    """A view of a storage."""

    def __init__(self, storage: Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
        self.call = storage, offset, shape, strides, False, collections.OrderedDict()

    def __reduce__(self):
        return Name("torch._utils", "_rebuild_tensor_v2"), self.call


class Pickler(pickle._Pickler):  # pyright: ignore[reportAttributeAccessIssue]
    """Writes names of what is not there, and references to storages."""

    def __init__(self, file, *, legacy: bool):
        super().__init__(file, 2)
        self.legacy, self.storages = legacy, {}

    def persistent_id(self, obj):
        if not isinstance(obj, Storage):
            return None
        self.storages[obj.key] = obj
        identity = ("storage", Name("torch", obj.kind), obj.key, "cpu", obj.count)
        return (*identity, None) if self.legacy else identity

    def save(self, obj, *arguments, **keywords):
        if isinstance(obj, Name):
            return self.write(  # pyright: ignore[reportAttributeAccessIssue]
                f"c{obj.module}\n{obj.name}\n".encode()
            )
        return super().save(obj, *arguments, **keywords)  # pyright: ignore[reportAttributeAccessIssue]


def tensors(arrays: Mapping[str, np.ndarray]) -> dict[str, Tensor]:
    """Each array as a tensor with a storage of its own."""
    found = collections.OrderedDict()
    for number, (name, array) in enumerate(arrays.items()):
        strides = tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).strides[: array.ndim])
        found[name] = Tensor(Storage(str(number), array.reshape(-1)), 0, array.shape, strides)
    return found


def pickled(content: Any, *, legacy: bool) -> tuple[bytes, dict[str, Storage]]:
    file = io.BytesIO()
    pickler = Pickler(file, legacy=legacy)
    pickler.dump(content)
    return file.getvalue(), pickler.storages


def archive(
    arrays: Mapping[str, np.ndarray] | None = None, *, content: Any = None, packed: bool = False, order: str = "little"
) -> bytes:
    """The format since torch 1.6."""
    data, storages = pickled(tensors(arrays) if arrays is not None else content, legacy=False)
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED) as written:
        written.writestr("weights/data.pkl", data)
        written.writestr("weights/byteorder", order)
        for key, storage in storages.items():
            written.writestr(f"weights/data/{key}", storage.values.tobytes())
    return file.getvalue()


def row(
    arrays: Mapping[str, np.ndarray] | None = None, *, content: Any = None, version: int = PROTOCOL, info: Any = LITTLE
) -> bytes:
    """The format before."""
    data, storages = pickled(tensors(arrays) if arrays is not None else content, legacy=True)
    parts = [pickle.dumps(value, 2) for value in (MAGIC, version, info)]
    parts += [data, pickle.dumps(sorted(storages), 2)]
    for key in sorted(storages):
        parts += [struct.pack("<q", storages[key].count), storages[key].values.tobytes()]
    return b"".join(parts)
