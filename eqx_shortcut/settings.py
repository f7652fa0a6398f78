"""Dataclasses of settings, and PyTrees of arrays, as JSON and back, and what differs between two of them."""

import dataclasses
import functools
import importlib
import json
import pathlib
import sys
import typing
from typing import Any

import numpy as np

from . import storage

# Where earlier versions had the classes of settings, and where they are. Records of runs and tables keep the old names.
MOVED = {"config": "eqx_shortcut.experiment.config"}
RENAMED = {"eqx_shortcut.experiment.config:LatentConfig": "eqx_shortcut.experiment.config:Config"}
LATENTS = ("vae", "cache", "encode_batch")


def dump(value: Any) -> Any:
    """A dataclass as `{"kind": "module:Class", field: ...}`, nested; paths as strings, tuples as lists."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: dump(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"kind": _kind(type(value)), **fields}
    if isinstance(value, dict):
        return {key: dump(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [dump(item) for item in value]
    return str(value) if isinstance(value, pathlib.PurePath) else value


def _kind(found: type) -> str:
    # By the package that exports it, if one does, so that a record does not depend on the files within.
    public = found.__module__.partition("._")[0]
    exported = getattr(sys.modules.get(public), found.__qualname__, None) is found
    return f"{public if exported else found.__module__}:{found.__qualname__}"


def parse(value: Any) -> Any:
    """The inverse of `dump` for dataclasses of numbers, strings and dataclasses, the reader's own included.

    The class is imported by its name. Raises ValueError if it is no dataclass or lacks a field that was stored.
    """
    if not (isinstance(value, dict) and "kind" in value):
        return value
    value = _renamed(value)
    kind = find_class(value["kind"])
    hints = typing.get_type_hints(kind)
    stored = {key: _parse_field(item, hints.get(key)) for key, item in value.items() if key != "kind"}
    unknown = stored.keys() - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise ValueError(f"{value['kind']} has no field {', '.join(sorted(unknown))}: stored by another version")
    return kind(**stored)


def _parse_field(value: Any, hint: Any) -> Any:
    kinds = (kind for kind in (hint, *typing.get_args(hint)) if isinstance(kind, type))
    if isinstance(value, str) and any(issubclass(kind, pathlib.PurePath) for kind in kinds):
        return storage.as_path(value)
    return tuple(_parse_field(item, None) for item in value) if isinstance(value, list) else parse(value)


def current(kind: str) -> str:
    """The present name of a class that was stored as "module:Class"."""
    module, _, name = kind.partition(":")
    kind = f"{MOVED[module]}:{name}" if module in MOVED else kind
    return RENAMED.get(kind, kind)


def find_class(kind: str) -> type:
    """The dataclass stored as "module:Class". Raises ValueError if it cannot be imported or is no dataclass."""
    module, _, name = current(kind).partition(":")
    try:
        named = functools.reduce(getattr, name.split("."), importlib.import_module(module))
    except Exception as error:  # a module of the user's raises what it will
        raise ValueError(
            f"settings name the class {kind}, which cannot be imported here ({error}): run where its module lies, or name the "
            "folder in PYTHONPATH"
        ) from error
    if not (isinstance(named, type) and dataclasses.is_dataclass(named)):
        raise ValueError(f"settings name {kind}, which is not a dataclass of settings")
    return named


def check_importable(value: Any, name: str = "settings") -> None:
    """Raises ValueError unless `dump` can record settings such that `parse` finds each of their classes again.

    For the start of a run: a class in the script that runs, or in a function, could not be imported when the run is opened.
    `name` is what a sentence calls them.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        _check_class(type(value))
        for field in dataclasses.fields(value):
            check_importable(getattr(value, field.name), f"{name}.{field.name}")
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            check_importable(item, name)
    elif not isinstance(value, str | int | float | pathlib.PurePath | None):
        raise ValueError(
            f"{name} is a {type(value).__name__}, which config.json cannot hold: settings are numbers, strings, paths, tuples "
            "and dataclasses of these"
        )


def _check_class(found: type) -> None:
    module, name = found.__module__, found.__qualname__
    if module == "__main__" or "<locals>" in name:
        where = "the script that runs" if module == "__main__" else f"a function of {module}"
        raise ValueError(
            f"{name} is defined in {where}, from where it cannot be imported when the run is opened: move it to a module of "
            "its own and import it"
        )
    if find_class(_kind(found)) is not found:
        raise ValueError(f"{_kind(found)} is another class when it is imported: give the two classes different names")


def dump_arrays(tree: Any) -> Any:
    """A PyTree of dicts, tuples, lists, arrays, numbers and None for JSON; of an array of zeros, dtype and shape alone.

    Raises ValueError for anything else.
    """
    if tree is None or type(tree) in (bool, int, float):
        return tree
    if type(tree) is dict and all(isinstance(key, str) for key in tree):
        return {"dict": {key: dump_arrays(item) for key, item in tree.items()}}
    if type(tree) in (tuple, list):
        return {type(tree).__name__: [dump_arrays(item) for item in tree]}
    array = np.asarray(tree)
    if array.dtype == object or not hasattr(tree, "shape"):
        raise ValueError(f"a condition holds a {type(tree).__name__}: build it of dicts by name, tuples, lists and arrays")
    header = {"array": array.dtype.name, "shape": list(array.shape)}
    return header | {"values": array.tolist()} if array.any() else header


def parse_arrays(value: Any) -> Any:
    """The inverse of `dump_arrays`, arrays as NumPy's."""
    if not isinstance(value, dict):
        return value
    if "array" in value:
        return np.full(value["shape"], value.get("values", 0), value["array"])
    ((kind, items),) = value.items()
    if kind == "dict":
        return {key: parse_arrays(item) for key, item in items.items()}
    return {"tuple": tuple, "list": list}[kind](map(parse_arrays, items))


def read(path: storage.Path) -> dict[str, Any]:
    """Dumped settings from their file, with the present names of classes. Raises ValueError, naming it, if it holds none."""
    try:
        stored = json.loads(path.read_bytes(), object_hook=_renamed)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as settings ({error}): restore it from a copy") from error
    if not isinstance(stored, dict):
        raise ValueError(f"{path} holds no settings: restore it from a copy")
    return stored


def _renamed(found: dict[str, Any]) -> dict[str, Any]:
    if isinstance(found.get("kind"), str):
        found = found | {"kind": current(found["kind"])}
    if not {"data", "vae"} <= found.keys():
        return found
    # Settings of a run on latents, as they were before its autoencoder and cache became part of its data.
    taken = {name: found[name] for name in LATENTS if name in found}
    data = {"kind": "eqx_shortcut.data:LatentImages", "images": found["data"], **taken}
    return {name: value for name, value in found.items() if name not in taken} | {"data": data}


def match_or_write(path: storage.Path, value: dict[str, Any], other: str, remedy: str) -> None:
    """Writes settings to a file, or makes sure that the one found holds the same; raises ValueError naming what differs.

    The sentence is "FOLDER holds OTHER: what differs. REMEDY".
    """
    if storage.exists(path) and (different := differences(read(path), value)):
        raise ValueError(f"{path.parent} holds {other}: {named(different)}. {remedy}")
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, json.dumps(value, indent=1))


def named(different: dict[str, tuple[Any, Any]]) -> str:
    """The differences between stored and new settings, in words."""
    return "; ".join(f"{key} is {new!r}, there it is {old!r}" for key, (old, new) in different.items())


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted path of each entry that differs between two dumped settings, with both values; None where one lacks it."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {path: (old, new)}
    different = {}
    for key in [*old, *(key for key in new if key not in old)]:
        different |= differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    return different
