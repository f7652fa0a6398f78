"""What losses and samplers share: calling a field, and stepping along it."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .rows import rows
from .types import Cond, Field


def predict(
    field: Field, x: Float[Array, "batch *shape"], t: Float[Array, " batch"], d: Float[Array, " batch"], cond: Cond
) -> Float[Array, "batch *shape"]:
    """`field(x, t, d, cond)` in the dtype of `x`.

    Every call of a field goes through here: the annotation turns an output of another shape, which would broadcast
    silently, into a jaxtyping.TypeCheckError that names the axis.
    """
    return field(x, t, d, cond).astype(x.dtype)


def step(
    field: Field, x: Float[Array, "batch *shape"], t: Float[Array, " batch"], d: Float[Array, " batch"], cond: Cond
) -> Float[Array, "batch *shape"]:
    """The point `x + d field(x, t, d, cond)` at time `t + d`."""
    return x + rows(d, x) * predict(field, x, t, d, cond)


def two_steps(
    field: Field,
    x: Float[Array, "batch *shape"],
    t: Float[Array, " batch"],
    d: Float[Array, " batch"],
    cond: Cond,
    *,
    clip: float | None,
) -> Float[Array, "batch *shape"]:
    """Average velocity over `[t, t + d]` from two half steps, the shortcut target (Frans et al. 2024, eq. 4).

    The point between the halves is clipped to `[-clip, clip]`, as in the reference code; None leaves it.
    """
    half = d / 2
    first = predict(field, x, t, half, cond)
    middle = clipped(x + rows(half, x) * first, clip)
    second = predict(field, middle, t + half, half, cond)
    return (first + second) / 2


def clipped(x: Float[Array, "*shape"], limit: float | None) -> Float[Array, "*shape"]:
    """`x` limited to `[-limit, limit]`; None leaves it as it is."""
    return x if limit is None else jnp.clip(x, -limit, limit)
