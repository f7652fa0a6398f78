"""Exponential moving averages of parameters."""

import equinox as eqx
import jax
from jaxtyping import PyTree


def update(average: PyTree, online: PyTree, decay: float) -> PyTree:
    """`decay * average + (1 - decay) * online` on every inexact array; other leaves are taken from `average`."""

    def blend(a, b):
        return decay * a + (1 - decay) * b if eqx.is_inexact_array(a) else a

    return jax.tree.map(blend, average, online)
