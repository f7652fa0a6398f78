"""Flow matching (Lipman et al. 2023; Liu et al. 2023): the velocity of straight lines from noise to data."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import paths, times
from ..guidance import drop_condition
from ..types import Batch, Cond, Draws, Field, Metrics, Regression
from ._regression import Reduction, Weight, reduce, regress, rms


def flow_matching(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    steps: int = 128,
    null: Cond = None,
    dropout: float = 0.0,
    floor: float = 1e-5,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`mean |field(x_t, t, 1/steps, cond) - (x - (1 - floor) noise)|^2` with `t` uniform on `{0, ..., steps - 1}/steps`.

    The one step size trained is `1/steps`; samplers must pass that, whatever their number of steps. `dropout` replaces
    a row's condition by `null` (the condition without its batch axis). `weight(t, d)` scales rows; `reduction=None`
    returns one value a row. Raises ValueError if `dropout` is set without `null`. Frans et al. (2024), eq. 5, first term.
    """
    rows = flow_target(flow_draws(batch, key, steps=steps, null=null, dropout=dropout), floor=floor)
    error = regress(field, rows)
    loss = reduce(error, rows, weight, reduction)
    return loss, {"loss": jnp.mean(loss), "velocity": rms(rows.u)}


def flow_draws(batch: Batch, key: PRNGKeyArray, *, steps: int, null: Cond = None, dropout: float = 0.0) -> Draws:
    """Noise (the batch's own if it has one), `t` on the grid of `steps`, `d = 1/steps`, and dropped conditions."""
    k_time, k_noise, k_drop = jax.random.split(key, 3)
    n, dtype = batch.x.shape[0], batch.x.dtype
    t = times.grid(k_time, jnp.full((n,), steps), dtype)
    noise = jax.random.normal(k_noise, batch.x.shape, dtype) if batch.noise is None else batch.noise
    cond = drop_condition(k_drop, batch.cond, null, dropout, n)
    return Draws(batch.x, noise, t, jnp.full((n,), 1 / steps, dtype), cond)


def flow_target(draws: Draws, *, floor: float = 1e-5) -> Regression:
    """The regression of the straight line's velocity at its point at `t`."""
    x, v = paths.linear(draws.noise, draws.x, draws.t, floor=floor)
    return Regression(x, draws.t, draws.d, draws.cond, v)
