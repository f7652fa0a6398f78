"""One-step and few-step generative models: shortcut models and their relatives, as pure functions on JAX arrays.

from eqx_shortcut import losses                    # costs jax, equinox, jaxtyping, beartype; nothing else
model = eqx_shortcut.load("runs/digits/shortcut")  # every part is imported on first use
images = eqx_shortcut.sample(model, key, 64, steps=1)
"""

import importlib
from typing import TYPE_CHECKING

from . import _typecheck

_typecheck.install(__name__)

if TYPE_CHECKING:
    from . import guidance, losses, paths, rows, samplers, steps, tangents, times, weights
    from .sampling import Sampling
    from .trained import Trained, load, sample
    from .types import Batch, Cond, Draws, Field, Metrics, Regression

__version__ = "0.2.0"

__all__ = [
    "Batch",
    "Cond",
    "Draws",
    "Field",
    "Metrics",
    "Regression",
    "Sampling",
    "Trained",
    "guidance",
    "load",
    "losses",
    "paths",
    "rows",
    "sample",
    "samplers",
    "steps",
    "tangents",
    "times",
    "weights",
]

_PLACES = {"Trained": ".trained", "load": ".trained", "sample": ".trained", "Sampling": ".sampling"}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module 'eqx_shortcut' has no attribute {name!r}")
    if name[0].islower() and name not in _PLACES:
        return importlib.import_module(f".{name}", __name__)
    return getattr(importlib.import_module(_PLACES.get(name, ".types"), __name__), name)
