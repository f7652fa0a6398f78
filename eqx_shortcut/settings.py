"""Dataclasses of settings as JSON and back, and what differs between two of them."""

import dataclasses
import importlib
import json
import pathlib
import typing
from typing import Any

from . import storage

# Where earlier versions had the classes of settings, and where they are. Records of runs and tables keep the old names.
MOVED = {"config": "eqx_shortcut.experiment.config"}


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
    # By the package that exports it, so that a record does not depend on the files within.
    return f"{found.__module__.partition('._')[0]}:{found.__qualname__}"


def parse(value: Any) -> Any:
    """The inverse of `dump` for dataclasses of numbers, strings and dataclasses, the reader's own included.

    The class is imported by its name. Raises ValueError if it is no dataclass or lacks a field that was stored.
    """
    if not (isinstance(value, dict) and "kind" in value):
        return value
    kind = find_class(value["kind"])
    hints = typing.get_type_hints(kind)
    stored = {key: _parse_field(item, hints.get(key)) for key, item in value.items() if key != "kind"}
    unknown = stored.keys() - {field.name for field in dataclasses.fields(kind)}
    if unknown:
        raise ValueError(f"{value['kind']} has no field {', '.join(sorted(unknown))}: stored by another version")
    return kind(**stored)


def _parse_field(value: Any, hint: Any) -> Any:
    if isinstance(value, str) and any(_is_path(part) for part in (hint, *typing.get_args(hint))):
        return storage.as_path(value)
    found = parse(value)
    return tuple(found) if isinstance(found, list) else found


def _is_path(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, pathlib.PurePath)


def current(kind: str) -> str:
    """The name now of a class that was stored as "module:Class"."""
    module, _, name = kind.partition(":")
    return f"{MOVED[module]}:{name}" if module in MOVED else kind


def find_class(kind: str) -> type:
    """The dataclass stored as "module:Class". Raises ValueError if it cannot be imported or is no dataclass."""
    module, _, name = current(kind).partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"settings name the class {kind}, which cannot be imported here: {error}") from error
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        raise ValueError(f"settings name {kind}, which is not a dataclass of settings")
    return found


def read(path: storage.Path) -> dict[str, Any]:
    """Dumped settings from their file, with the present names of classes. Raises ValueError, naming it, if it holds none."""
    try:
        found = json.loads(path.read_text(), object_hook=_renamed)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read as settings ({error}): restore it from a copy") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds no settings: restore it from a copy")
    return found


def _renamed(found: dict[str, Any]) -> dict[str, Any]:
    return found | {"kind": current(found["kind"])} if isinstance(found.get("kind"), str) else found


def settle(path: storage.Path, value: dict[str, Any], other: str, remedy: str) -> None:
    """Writes settings to a file, or makes sure that the one found holds the same; raises ValueError naming what differs.

    The sentence is "FOLDER holds OTHER: what differs. REMEDY".
    """
    if storage.exists(path) and (different := differences(read(path), value)):
        raise ValueError(f"{path.parent} holds {other}: {named(different)}. {remedy}")
    path.parent.mkdir(parents=True, exist_ok=True)
    storage.write(path, json.dumps(value, indent=1))


def named(different: dict[str, tuple[Any, Any]]) -> str:
    """What differs between stored and new settings, in words."""
    return "; ".join(f"{key} is {new!r}, there it is {old!r}" for key, (old, new) in different.items())


def differences(old: Any, new: Any, path: str = "") -> dict[str, tuple[Any, Any]]:
    """Dotted path of each entry that differs between two dumped settings, with both values; None where one lacks it."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return {} if old == new else {path: (old, new)}
    found = {}
    for key in [*old, *(key for key in new if key not in old)]:
        found |= differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
    return found
