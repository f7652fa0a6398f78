"""Networks as safetensors files, which other frameworks read."""

import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from .. import settings, storage
from ..errors import first_line
from ..models.dit import DiT, DiTConfig
from ..pretrained.tensors import read_safetensors
from . import architecture, from_parameters, to_parameters

HEADER = "eqx_shortcut"
"""The key of the file's metadata that holds ours, as JSON."""
PACKAGE = __name__.partition(".")[0]


def save(path: str | pathlib.Path, network: DiT, metadata: Mapping[str, Any]) -> None:
    """Writes the network, and `metadata` of plain values and dumped settings, such that `load` needs nothing else.

    Tensors bear the reference's names (see Parameters): dense kernels are `[in, out]`, so PyTorch's Linear takes the
    transpose.
    """
    path = pathlib.Path(path)
    tensors = {name: np.ascontiguousarray(value) for name, value in to_parameters(network).items()}
    header = {"network": settings.dump(network.config), "shape": list(network.shape), "classes": network.classes}
    with storage.draft_of(path) as draft:
        save_file(tensors, draft, metadata={HEADER: json.dumps({**header, "metadata": settings.dump(dict(metadata))})})


def load(path: str | pathlib.Path) -> tuple[DiT, dict[str, Any]]:
    """The network of a file that `save` wrote, and its metadata; settings in it stay dumped (see settings.parse).

    Raises ValueError if the file is of another format or writer, or naming a tensor that is missing, left over or of
    another shape.
    """
    path = pathlib.Path(path)
    tensors, stored = read_safetensors(path)
    if (header := stored.get(HEADER)) is None:
        raise ValueError(f"{path} has no metadata {HEADER!r}: only files that {HEADER} wrote tell the network's settings")
    config, shape, classes, metadata = _settings(path, header)
    try:
        depth = architecture(tensors, heads=config.heads)[0].depth
        if depth != config.depth:
            raise ValueError(f"its tensors are of {depth} blocks, its settings of {config.depth}")
        return from_parameters(tensors, config, shape, classes), metadata
    except ValueError as error:
        raise ValueError(f"{path} does not hold the network that its metadata describes: {error}") from error


def _settings(path: pathlib.Path, header: str) -> tuple[DiTConfig, tuple[int, int, int], int, dict[str, Any]]:
    try:
        stored = json.loads(header)
        foreign = sorted({str(kind) for kind in _kinds(stored) if not str(kind).startswith(f"{PACKAGE}.")})
        # Parsing imports what a file names; a file from elsewhere may name nothing but our own settings.
        if foreign:
            raise ValueError(f"it names {', '.join(foreign)}, and only classes of {PACKAGE} are allowed")
        config, metadata = settings.parse(stored["network"]), stored["metadata"]
        height, width, channels = stored["shape"]
        sizes = (height, width, channels, stored["classes"])
        if not (isinstance(config, DiTConfig) and isinstance(metadata, dict) and all(type(n) is int and n > 0 for n in sizes)):
            raise ValueError("it describes no network")
    except Exception as error:  # whatever a header of another making leads to
        raise ValueError(
            f"the metadata of {path} cannot be used ({first_line(error, 200)}): write the file again with this version"
        ) from error
    return config, (height, width, channels), stored["classes"], metadata


def _kinds(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from [value["kind"]] if "kind" in value else []
        for item in value.values():
            yield from _kinds(item)
    elif isinstance(value, list):
        for item in value:
            yield from _kinds(item)
