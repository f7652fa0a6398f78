"""Regression of a field on a stopped target: the common end of most methods."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..steps import predict
from ..types import Field, Regression

Weight = Callable[[Float[Array, " batch"], Float[Array, " batch"]], Float[Array, " batch"]]
Reduction = Literal["mean"] | None


def regress(field: Field, rows: Regression) -> Float[Array, " batch"]:
    """Mean squared error of each row, `mean |field(x, t, d, cond) - stop_gradient(u)|^2` over its elements."""
    error = predict(field, rows.x, rows.t, rows.d, rows.cond) - jax.lax.stop_gradient(rows.u)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))


def reduce(
    error: Float[Array, " batch"], rows: Regression, weight: Weight | None, reduction: Reduction
) -> Float[Array, ""] | Float[Array, " batch"]:
    """`error * weight(t, d)`, as its mean or, with `reduction=None`, row by row."""
    weighted = error if weight is None else error * weight(rows.t, rows.d)
    return weighted if reduction is None else jnp.mean(weighted)


def rms(x: Float[Array, "*shape"]) -> Float[Array, ""]:
    """Root mean square over everything, the metric of magnitudes."""
    return jnp.sqrt(jnp.mean(jnp.square(x)))
