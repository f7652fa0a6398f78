"""Random weights of published transformers under their names, the same wherever they are made, and inputs to ask them."""

from collections.abc import Mapping

import numpy as np

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
