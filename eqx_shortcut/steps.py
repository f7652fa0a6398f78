"""Calling a field and stepping along it, for losses and samplers."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .rows import expand
from .types import Cond, Field, Number, Numbers, Points


def predict(field: Field, x: Points, t: Numbers, d: Numbers, cond: Cond) -> Points:
    """`field(x, t, d, cond)` in the dtype of `x`.

    Every call of a field goes through here: the annotation turns an output of another shape, which would broadcast
    silently, into a jaxtyping.TypeCheckError that names the axis.
    """
    return field(x, t, d, cond).astype(x.dtype)


def velocity_of(field: Field, x: Points, t: Numbers, cond: Cond) -> Points:
    """The velocity `field(x, t, 0, cond)`: an average over no time."""
    return predict(field, x, t, jnp.zeros_like(t), cond)


def precise(field: Field) -> Field:
    """The view of `field` that answers in float32 whatever its network computes in: `field.precise`, or `field` if it has none.

    Whatever divides a difference of two answers by the small distance between them asks this one: bfloat16 rounds answers of
    size 1 by some 0.004, which is most of a difference over 1/128 and all of one over 0.002.
    """
    return getattr(field, "precise", field)


def step(field: Field, x: Points, t: Numbers, d: Numbers, cond: Cond) -> Points:
    """The point `x + d field(x, t, d, cond)` at time `t + d`."""
    return x + expand(d, x) * predict(field, x, t, d, cond)


def heun_step(field: Field, x: Points, t: Numbers, d: Numbers, cond: Cond, *, last: bool | Bool[Array, ""]) -> Points:
    """The point at `t + d` along the mean of the velocities at `x` and where the first leads; along the first alone if `last`.

    The last step, to the data at time 1, is Euler's (Karras et al. 2022, algorithm 1). What of a point is noise moves by
    `-x/(1 - t)`, which Euler's step takes to 0 exactly; a correction, asked where no noise is left, would keep half of it.
    """
    first = velocity_of(field, x, t, cond)
    end = x + expand(d, x) * first

    def corrected():
        return x + expand(d, x) * (first + velocity_of(field, end, t + d, cond)) / 2

    return jax.lax.cond(last, lambda: end, corrected)


def two_steps(field: Field, x: Points, t: Numbers, d: Numbers, cond: Cond, *, clip: float | None) -> Points:
    """Average velocity over `[t, t + d]` from two half steps, the shortcut target (Frans et al. 2024, eq. 4).

    The point between the halves is clipped to `[-clip, clip]`, as in the reference code; None leaves it.
    """
    return split_steps(field, x, t, d, cond, 0.5, clip=clip)


def split_steps(
    field: Field,
    x: Points,
    t: Numbers,
    d: Numbers,
    cond: Cond,
    share: float | Number | Numbers,
    *,
    first: Points | None = None,
    clip: float | None,
) -> Points:
    """Average velocity over `[t, t + d]` from a step of `share d` and one of the rest: `share first + (1 - share) second`.

    The first is the velocity `first`, or the field's own; the point between is clipped to `[-clip, clip]`. With the exact
    first and second it is exact at any share (Guo et al. 2025).
    """
    share = jnp.broadcast_to(jnp.asarray(share, t.dtype), t.shape)
    part, left = share * d, (1 - share) * d
    first = predict(field, x, t, part, cond) if first is None else first
    middle = clipped(x + expand(part, x) * first, clip)
    second = predict(field, middle, t + part, left, cond)
    return expand(share, x) * first + expand(1 - share, x) * second


def clipped(x: Float[Array, "*shape"], limit: float | None) -> Float[Array, "*shape"]:
    """`x` limited to `[-limit, limit]`; None leaves it as it is."""
    return x if limit is None else jnp.clip(x, -limit, limit)
