"""One-step and few-step generative models: shortcut models and their relatives, as pure functions on JAX arrays.

from eqx_shortcut import losses                    # costs jax, equinox, jaxtyping, beartype; nothing else
model = eqx_shortcut.load("runs/digits/shortcut")  # the heavier parts are imported on first use
images = eqx_shortcut.sample(model, key, 64, steps=1)
"""

from typing import TYPE_CHECKING

# Before the hook: modules imported while it is in place pass through it, which doubles the time that JAX takes to import.
import equinox as equinox
from jaxtyping import install_import_hook

from . import _typecheck as _typecheck

# Every annotation below this package is checked at trace time; JAXTYPING_DISABLE=1 turns that off.
install_import_hook("eqx_shortcut", "eqx_shortcut._typecheck.check")

from . import guidance, losses, paths, rows, samplers, steps, tangents, times, weights  # noqa: E402
from .types import Batch, Cond, Draws, Field, Metrics, Regression  # noqa: E402

if TYPE_CHECKING:
    from .trained import Trained, load, sample

__version__ = "0.1.0"

__all__ = [
    "Batch",
    "Cond",
    "Draws",
    "Field",
    "Metrics",
    "Regression",
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


def __getattr__(name: str):
    if name in ("Trained", "load", "sample"):
        from . import trained

        return getattr(trained, name)
    raise AttributeError(f"module 'eqx_shortcut' has no attribute {name!r}")
