"""What any loss must take: a plain function as field, examples of every rank, conditions of every kind."""

import jax
import jax.numpy as jnp

from eqx_shortcut import Batch
from eqx_shortcut.rows import expand

N = 24
SHAPES = [(), (3,), (2, 3), (2, 1, 3)]
SHAPES_AND_KINDS = [((), "none"), ((3,), "labels"), ((2, 3), "vectors"), ((2, 1, 3), "dict")]
PARAMETERS = {"a": jnp.float32(0.5), "b": jnp.float32(-0.3)}
TEACHER = {"a": jnp.float32(-0.2), "b": jnp.float32(0.9)}
NULL = jnp.array(99)


def conditions(kind: str):
    """A condition of `N` rows and its null."""
    return {
        "none": (None, None),
        "labels": (jnp.arange(N), NULL),
        "vectors": (jnp.linspace(0, 1, 2 * N).reshape(N, 2), jnp.array([5.0, 5.0])),
        "dict": ({"text": jnp.ones((N, 2)), "label": jnp.arange(N)}, {"text": jnp.zeros(2), "label": 3}),
    }[kind]


def field_of(parameters):
    """A plain function as field: `a x + b (t - d) + mean(cond) / 10`."""

    def field(x, t, d, cond):
        shift = sum(jnp.mean(c.reshape(c.shape[0], -1).astype(x.dtype), axis=1) for c in jax.tree.leaves(cond))
        return parameters["a"] * x + expand(parameters["b"] * (t - d) + shift / 10, x)

    return field


def batch_of(key, shape=(3,), kind: str = "labels") -> Batch:
    return Batch(1 + jax.random.normal(key, (N, *shape)), conditions(kind)[0])


class Recorded:
    """The field of some parameters, keeping what it was asked."""

    def __init__(self, parameters=PARAMETERS):
        self.asked, self._field = [], field_of(parameters)

    def __call__(self, x, t, d, cond):
        self.asked.append((x, t, d, cond))
        return self._field(x, t, d, cond)
