"""Regression of a field on a stopped target, and what each row counts: the common end of every method."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..rows import merge_rows, split_rows
from ..steps import predict
from ..types import Field, Loss, Number, Numbers, Points, Reduction, Regression, Weigh


def regress(field: Field, rows: Regression) -> Numbers:
    """Mean squared error of each row, `mean |field(x, t, d, cond) - stop_gradient(u)|^2` over its elements."""
    return row_error(predict(field, rows.x, rows.t, rows.d, rows.cond), rows.u)


def row_error(u: Points, target: Points) -> Numbers:
    """`mean |u - stop_gradient(target)|^2` of each row over its elements."""
    error = u - jax.lax.stop_gradient(target)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def weighed(error: Numbers, rows: Regression, weigh: tuple[Weigh, ...], reduction: Reduction) -> Loss:
    """Loss and metrics of the errors of `rows`: each of `weigh` is applied in turn, then the mean is taken."""
    loss = functools.reduce(lambda loss, weight: weight(loss, rows), weigh, error)
    return loss if reduction is None else jnp.mean(loss), {"loss": jnp.mean(loss), "velocity": rms(rows.u)}


def weighed_both(error: Numbers, rows: Regression, every: int, weigh: tuple[Weigh, ...], reduction: Reduction) -> Loss:
    """`weighed` of a batch with a bootstrap row in `every` rows; the metrics tell the two kinds apart."""
    loss, metrics = weighed(error, rows, weigh, reduction)
    (error_bootstrap, u_bootstrap), (error_flow, u_flow) = split_rows((error, rows.u), every)
    return loss, metrics | {
        "loss_flow": jnp.mean(error_flow),
        "loss_bootstrap": jnp.mean(error_bootstrap),
        "velocity": rms(u_flow),
        "velocity_bootstrap": rms(u_bootstrap),
    }


def weighed_steps(
    field: Field,
    steps: tuple[Float[Array, " steps"], Regression],
    lines: Regression,
    every: int,
    weigh: tuple[Weigh, ...],
    reduction: Reduction,
) -> Loss:
    """`weighed_both` of the errors of steps, and of `field` on the velocities of `lines`, the rows of `d = 0`."""
    error, rows = merge_rows(steps, (regress(field, lines), lines), every)
    loss, metrics = weighed_both(error, rows, every, weigh, reduction)
    return loss, metrics | {"error": jnp.mean(error)}


def rms(x: Float[Array, "*shape"]) -> Number:
    """Root mean square over everything, the metric of magnitudes."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))
