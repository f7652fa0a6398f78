"""Samplers: from noise at time 0 to data at time 1 in any number of steps, one compiled loop for all of them."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from . import paths
from .rows import rows
from .steps import clipped, predict, step
from .types import Cond, Field


class StepRange(eqx.Module):
    """Of `of` equal steps those from number `first` to before number `last`: what is called noise is then the point there.

    The parts of a path one after another give what the whole gives.
    """

    of: int | Int[Array, ""]
    first: int | Int[Array, ""]
    last: int | Int[Array, ""]


Steps = int | Int[Array, ""] | StepRange
"""A number of steps, or a part of them; traced, one compilation serves every number."""

Renoise = Callable[[Int[Array, ""]], Float[Array, "batch *shape"]]
"""From the number of a step, from 0, to the new noise at its end."""


def euler(
    field: Field, noise: Float[Array, "batch *shape"], cond: Cond = None, *, steps: Steps
) -> Float[Array, "batch *shape"]:
    """`steps` equal steps `x <- x + d field(x, t, d, cond)` with `d = 1/steps`, from `t = 0` to `t = 1`.

    `steps` may be traced. The reference's sampler (Frans et al. 2024, algorithm 2).
    """

    def body(i, x):
        t, d = _time(i, steps, x)
        return step(field, x, t, d, cond)

    return _loop(steps, body, noise)


def consistency(
    field: Field, noise: Float[Array, "batch *shape"], cond: Cond = None, *, steps: Steps, renoise: Renoise
) -> Float[Array, "batch *shape"]:
    """`steps` jumps to the data `x + (1 - t) field(x, t, 1 - t, cond)`, each put back to `t + 1/steps` by new noise.

    The point put back is `t data + (1 - t) renoise(i)`. `steps` may be traced. Song et al. (2023), algorithm 1, on the linear
    path, as in the reference's inference.
    """

    def body(i, x):
        t, _ = _time(i, steps, x)
        data = step(field, x, t, 1 - t, cond)
        later, _ = _time(i + 1, steps, x)
        return rows(later, x) * data + rows(1 - later, x) * renoise(i)

    return _loop(steps, body, noise)


def ddim(
    field: Field, noise: Float[Array, "batch *shape"], cond: Cond = None, *, steps: Steps, clip: float | None = None
) -> Float[Array, "batch *shape"]:
    """Deterministic sampling of a `field` that predicts noise on the variance-preserving path: `euler` on its `ddim_field`."""
    return euler(ddim_field(field, clip=clip), noise, cond, steps=steps)


def ddim_field(field: Field, *, clip: float | None = None) -> Field:
    """The average velocity of a field that predicts noise: with predicted data `z = (x - s noise) / a`, to `a' z + s' noise`.

    `a, s` are the path's weights at `t`, `a', s'` those at `t + d` (`paths.variance_preserving`). `clip` limits the predicted
    data to `[-clip, clip]`. Song, Meng and Ermon (2021), eq. 12 with sigma 0.
    """

    def velocity(x, t, d, cond):
        a, s = (rows(part, x) for part in paths.variance_preserving(t))
        end = jnp.minimum(t + d, 1)  # the last step ends at 1 up to rounding, and beyond 1 there is no path: NaN
        a_later, s_later = (rows(part, x) for part in paths.variance_preserving(end))
        data = clipped((x - s * predict(field, x, t, d, cond)) / a, clip)
        return (a_later * data + s_later * (x - a * data) / s - x) / rows(d, x)

    return velocity


def _time(i, steps, x):
    def fill(value):
        return jnp.broadcast_to(jnp.asarray(value, x.dtype), (x.shape[0],))

    n = jnp.asarray(_part(steps).of, x.dtype)
    return fill(i.astype(x.dtype) / n), fill(1 / n)


def _loop(steps, body, x):
    first, last = _part(steps).first, _part(steps).last
    # Numbers known when tracing keep their loop differentiable in reverse.
    if isinstance(first, int) and isinstance(last, int):
        return jax.lax.fori_loop(first, last, lambda i, x: body(jnp.asarray(i), x), x)
    return jax.lax.fori_loop(jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32), body, x)


def _part(steps):
    return steps if isinstance(steps, StepRange) else StepRange(steps, 0, steps)
