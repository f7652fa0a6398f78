"""Checkpoints as the reference writes them, of a tiny network with every number another."""

import functools
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from eqx_shortcut import reference
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.models.dit import DiT

CONFIG, SHAPE, CLASSES = DiTConfig(hidden=8, depth=2, heads=2, patch=2, mlp_ratio=2), (4, 4, 1), 3
STEP, COUNT = 6, 5


@functools.cache
def named(seed: int) -> dict[str, np.ndarray]:
    """Random parameters by name, positive so that they may be means of squares too."""

    def build(key):
        return reference.to_parameters(DiT(CONFIG, SHAPE, CLASSES, key=key))

    shapes, rng = jax.eval_shape(build, jax.random.key(0)), np.random.default_rng(seed)
    return {name: 0.1 * rng.random(leaf.shape, np.float32) for name, leaf in shapes.items()}


def trees() -> dict[str, dict[str, np.ndarray]]:
    """What `reference.read` must find."""
    return {name: named(seed) for seed, name in enumerate(("parameters", "average", "mu", "nu"))}


def content(convert=np.asarray, most: int | None = None) -> dict[str, Any]:
    """The dictionary that the reference pickles, its arrays made by `convert`; of `most` of the parameters, or all."""
    params, params_ema, mu, nu = (
        reference.nested({name: convert(value) for name, value in [*tree.items()][:most]}) for tree in trees().values()
    )
    count, step = convert(np.asarray(COUNT, np.int32)), convert(np.asarray(STEP, np.int32))
    adam = optax.ScaleByAdamState(count, mu, nu)
    opt_state = ((adam, optax.EmptyState(), optax.ScaleByScheduleState(count)),)
    state = {"params": params, "params_ema": params_ema, "opt_state": opt_state, "step": step}
    return {"train_state": state, "_timestamp": 1.5}


def read_only(value: np.ndarray) -> np.ndarray:
    """Host arrays of JAX are so, and protocol 5 writes them another way."""
    copy = value.copy()
    copy.flags.writeable = False
    return copy


def column_major(value: np.ndarray) -> np.ndarray:
    return np.asarray(value, order="F")


def big_endian(value: np.ndarray) -> np.ndarray:
    return value.astype(value.dtype.newbyteorder(">"))


def scalars(value: np.ndarray) -> Any:
    """Counters as NumPy's scalars, which have a pickle of their own."""
    return value[()] if value.ndim == 0 else value


CONVERSIONS = {
    "numpy": np.asarray,
    "read-only": read_only,
    "column-major": column_major,
    "big-endian": big_endian,
    "scalars": scalars,
    "jax": jnp.asarray,
}


def pickled(conversion: str = "numpy", protocol: int = 4) -> bytes:
    return pickle.dumps(content(CONVERSIONS[conversion]), protocol)
