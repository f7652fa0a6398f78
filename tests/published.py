"""Random weights of published transformers under their names, the same wherever they are made, and inputs to ask them."""

import json
import pathlib
import re
from collections.abc import Mapping

import numpy as np

GOLDEN = pathlib.Path(__file__).parent / "golden"

SIZE, CHANNELS, PATCH, WIDTH, DEPTH, HEADS, CLASSES = 8, 4, 2, 24, 2, 2, 5
"""The small network; a head has 12 dimensions, no power of 4, so that the root is no power of 2."""
SETTINGS = {
    "input_size": SIZE,
    "patch_size": PATCH,
    "in_channels": CHANNELS,
    "hidden_size": WIDTH,
    "depth": DEPTH,
    "num_heads": HEADS,
    "num_classes": CLASSES,
}
T = np.array([0.0, 0.25, 0.7, 0.99], np.float32)
D = np.array([1.0, 0.5, 0.3, 0.01], np.float32)
SCALE = np.array([1.0, 2.5, 7.0, 4.0], np.float32)
START = np.array([0.0, 0.1, 0.45, 0.3], np.float32)
STOP = np.array([1.0, 0.9, 0.55, 0.8], np.float32)
LEVELS = np.array([0, 10, 500, 999])
LABELS = np.array([0, 3, CLASSES, 1])


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, np.ndarray]:
    """Normal numbers, none of them at the zeros of an initialisation, drawn in the order of the names."""
    rng = np.random.default_rng(seed)
    return {name: (0.2 * rng.standard_normal(shapes[name])).astype(np.float32) for name in sorted(shapes)}


def images() -> np.ndarray:
    """One a time, channels last."""
    return np.random.default_rng(1).standard_normal((len(T), SIZE, SIZE, CHANNELS)).astype(np.float32)


Shapes = dict[str, tuple[int, ...]]
BLOCK = re.compile(r"((?:blocks|heads)(?:\.|_|/layers_))\d+")


def stacked(shapes: Mapping[str, tuple[int, ...]]) -> Shapes:
    """Blocks under one name, `*` for their number and first in a shape how many; all of a name have one shape."""
    alike: dict[str, list[tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        alike.setdefault(BLOCK.sub(r"\1*", name), []).append(tuple(shape))
    assert all(len(set(found)) == 1 for found in alike.values())
    return {name: (len(found), *found[0]) if "*" in name else found[0] for name, found in alike.items()}


def shapes(file: str) -> dict[str, Shapes]:
    """By network, names and shapes of its tensors, of which a file of golden/ holds the stacked."""
    return {name: _apart(found) for name, found in json.loads((GOLDEN / file).read_text()).items()}


def _apart(found: dict[str, list[int]]) -> Shapes:
    apart: Shapes = {name: tuple(shape) for name, shape in found.items() if "*" not in name}
    blocks = ((name, shape) for name, shape in found.items() if "*" in name)
    return apart | {name.replace("*", str(i)): tuple(shape[1:]) for name, shape in blocks for i in range(shape[0])}
