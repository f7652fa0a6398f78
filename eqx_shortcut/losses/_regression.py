"""Regression of a field on a stopped target: the common end of most methods."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .. import weights
from ..rows import merge_rows, split_rows
from ..steps import predict
from ..types import Field, Metrics, Regression

Weight = Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]]
Reduction = Literal["mean"] | None


def regress(field: Field, rows: Regression) -> Float[Array, " batch"]:
    """Mean squared error of each row, `mean |field(x, t, d, cond) - stop_gradient(u)|^2` over its elements."""
    return row_error(predict(field, rows.x, rows.t, rows.d, rows.cond), rows.u)


def row_error(u: Float[Array, "batch *shape"], target: Float[Array, "batch *shape"]) -> Float[Array, " batch"]:
    """`mean |u - stop_gradient(target)|^2` of each row over its elements."""
    error = u - jax.lax.stop_gradient(target)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def reduce(
    error: Float[Array, " batch"], rows: Regression, weight: Weight | None, reduction: Reduction
) -> Float[Array, ""] | Float[Array, " batch"]:
    """`error * weight(t, d)`, as its mean or, with `reduction=None`, row by row."""
    weighted = error if weight is None else error * weight(rows.t, rows.d)
    return weighted if reduction is None else jnp.mean(weighted)


def regress_both(
    field: Field, bootstrap: Regression, flow: Regression, every: int, weight: Weight | None, reduction: Reduction
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """Loss and metrics of a batch of which each `every`-th row is a bootstrap row, in one call of the field."""
    rows = merge_rows(bootstrap, flow, every)
    error = regress(field, rows)
    loss = reduce(error, rows, weight, reduction)
    error_bootstrap, error_flow = split_rows(error, every)
    return loss, {
        "loss": jnp.mean(loss),
        "loss_flow": jnp.mean(error_flow),
        "loss_bootstrap": jnp.mean(error_bootstrap),
        "velocity": rms(flow.u),
        "velocity_bootstrap": rms(bootstrap.u),
    }


def balance(
    error: Float[Array, " batch"],
    t: Float[Array, " batch"],
    d: Float[Array, " batch"],
    *,
    elements: int,
    power: float = 0.0,
    eps: float | Float[Array, ""] = 0.0,
    unit: float | Float[Array, " batch"] = 1.0,
    log_variance: Weight | None = None,
    weight: Weight | None = None,
) -> Float[Array, " batch"]:
    """What each row's mean squared error over so many `elements` counts.

    Times `weights.adaptive` of the error in units of `unit` squared (`eps` is compared with the sum over the elements, as in
    the papers), over `unit`; then `weights.learned` with `log_variance(t, d)`; then times `weight(t, d)`.
    """
    scaled = error / jnp.square(unit)
    loss = unit * scaled
    if power:
        loss = loss * weights.adaptive(scaled, power=power, eps=jnp.broadcast_to(jnp.asarray(eps, t.dtype) / elements, t.shape))
    if log_variance is not None:
        loss = weights.learned(loss, log_variance(t, d))
    return loss if weight is None else loss * weight(t, d)


def rms(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Root mean square over everything, the metric of magnitudes."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))
