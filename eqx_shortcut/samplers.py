"""Samplers: from noise at time 0 to data at time 1 in any number of steps, one compiled loop for all of them."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .steps import step
from .types import Cond, Field


def euler(
    field: Field, noise: Float[Array, "batch *shape"], cond: Cond = None, *, steps: int | Int[Array, ""]
) -> Float[Array, "batch *shape"]:
    """`steps` equal steps `x <- x + d field(x, t, d, cond)` with `d = 1/steps`, from `t = 0` to `t = 1`.

    `steps` may be traced: under `jax.jit` one compilation then serves every number of steps. The reference's sampler
    (Frans et al. 2024, algorithm 2).
    """
    n = noise.shape[0]
    d = jnp.broadcast_to(1 / jnp.asarray(steps, noise.dtype), (n,))

    def body(i, x):
        t = jnp.broadcast_to(i.astype(x.dtype) / jnp.asarray(steps, x.dtype), (n,))
        return step(field, x, t, d, cond)

    return jax.lax.fori_loop(jnp.int32(0), jnp.asarray(steps, jnp.int32), body, noise)
