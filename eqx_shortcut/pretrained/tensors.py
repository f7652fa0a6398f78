"""The one reader of safetensors files, and PyTorch's order of axes."""

import pathlib

import numpy as np
from jaxtyping import Shaped
from safetensors import safe_open


def read_safetensors(path: pathlib.Path) -> tuple[dict[str, Shaped[np.ndarray, "..."]], dict[str, str]]:
    """All tensors of a file by name, and its metadata. Raises ValueError if it is missing or not such a file."""
    if not path.is_file():
        raise ValueError(f"no file {path}: check the path")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except Exception as error:  # its errors have no common base
        raise ValueError(f"{path} cannot be read as safetensors ({error}): copy it again") from error


def torch_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a kernel `[in, out]` or `[rows, columns, in, out]`, or without `in` where channels are convolved alone, in PyTorch."""
    if len(shape) < 3:
        return shape[::-1]
    rows, columns, *inputs, outputs = shape
    return (outputs, *(inputs or [1]), rows, columns)
