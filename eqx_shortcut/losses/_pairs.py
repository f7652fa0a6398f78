"""What methods at continuous step sizes share: rows `[t, t + d]`, among rows of `d = 0` that learn the velocity."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PRNGKeyArray

from .. import paths, times
from ..guidance import Guidance, drop_condition, guided_velocity, same_condition
from ..rows import check_share, merge_rows, split_rows, where_rows
from ..rows import rows as per_row
from ..types import Batch, Cond, Draws, Field, Metrics, Regression
from ._regression import Reduction, balance, regress, rms


def pair_draws(
    batch: Batch,
    key: PRNGKeyArray,
    *,
    pairs: times.Pairs,
    bootstrap_every: int,
    null: Cond = None,
    dropout: float = 0.0,
    posterior_every: int | None = None,
    velocity_times: times.Times | None = None,
    drop_steps: bool = True,
) -> Draws:
    """Noise (the batch's own if it has one), `(t, d)` from `pairs`, with `d = 0` but in each `bootstrap_every`-th row.

    Rows of `d = 0` have `t` from `velocity_times`; None: where a step of `pairs` starts. With `posterior_every`, each so
    many-th row of either kind is one of `posterior_draws`. Conditions are dropped last, in rows of either kind, or, with
    `drop_steps` False, as many in rows of `d = 0` alone. Raises ValueError for stored pairs of noise and data with
    `posterior_every`.
    """
    k_pairs, k_noise, k_drop, k_times = jax.random.split(key, 4)
    n, dtype = batch.x.shape[0], batch.x.dtype
    check_share(n, bootstrap_every)
    steps = jnp.arange(n) % bootstrap_every == 0
    t, d = pairs(k_pairs, n, dtype)
    t = t if velocity_times is None else jnp.where(steps, t, velocity_times(k_times, n, dtype))
    d = jnp.where(steps, d, 0)
    noise = jax.random.normal(k_noise, batch.x.shape, dtype) if batch.noise is None else batch.noise
    draws = Draws(batch.x, noise, t, d, batch.cond)
    if posterior_every is not None:
        if batch.noise is not None:
            raise ValueError(
                f"posterior_every={posterior_every} takes the noise to be independent of the data, and this batch holds "
                "pairs of both: leave it None"
            )
        first, rest = (jnp.arange(m) % posterior_every == 0 for m in (n // bootstrap_every, n - n // bootstrap_every))
        draws = posterior_draws(draws, merge_rows(first, rest, bootstrap_every))
    if drop_steps or not dropout:
        return Draws(draws.x, draws.noise, t, d, drop_condition(k_drop, batch.cond, null, dropout, n))
    dropped = drop_condition(k_drop, batch.cond, null, min(1.0, dropout * bootstrap_every / (bootstrap_every - 1)), n)
    return Draws(draws.x, draws.noise, t, d, where_rows(steps, batch.cond, dropped))


def posterior_draws(draws: Draws, which: Bool[Array, " batch"]) -> Draws:
    """The rows `which` with noise and data replaced by their means given the row's point, over data of the same condition.

    The point stays where it was, and its velocity becomes the mean of all lines of the batch through it. The mean over the
    batch of anything linear in the velocity is unchanged. Compares all rows, so a sharded batch is gathered once.
    """
    n, left = draws.t.shape[0], jnp.maximum(1 - draws.t, jnp.finfo(draws.t.dtype).eps)
    point, _ = paths.linear(draws.noise, draws.x, draws.t, floor=0)
    mean = paths.posterior_mean(point, 1 - left, draws.x, same_condition(draws.cond, draws.cond, (n, n)))
    noise = (point - per_row(draws.t, point) * mean) / per_row(left, point)
    x, noise = where_rows(which, (mean, noise), (draws.x, draws.noise))
    return Draws(x, noise, draws.t, draws.d, draws.cond)


def velocity_target(field: Field, draws: Draws, *, guidance: Guidance | None = None, null: Cond = None) -> Regression:
    """The regression of the straight line's velocity at its point at `t`, guided by `field`'s own velocity (see Guidance)."""
    x, v = paths.linear(draws.noise, draws.x, draws.t, floor=0)
    v = guided_velocity(field, x, draws.t, v, draws.cond, null, guidance)
    return Regression(x, draws.t, draws.d, draws.cond, v)


def bootstrap_and_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    bootstrap: Callable[[Draws], tuple[Float[Array, " rows"], Regression]],
    own: Field,
    *,
    pairs: times.Pairs,
    bootstrap_every: int,
    guidance: Guidance | None,
    null: Cond,
    dropout: float,
    reduction: Reduction,
    velocity_times: times.Times | None = None,
    **options: Any,
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """Loss and metrics: each `bootstrap_every`-th row has the error `bootstrap(draws)`, the others regress the velocity.

    That is the line's, guided by the velocity of `own`; `options` are those of `balance_both`.
    """
    draws = pair_draws(
        batch,
        key,
        pairs=pairs,
        bootstrap_every=bootstrap_every,
        null=null,
        dropout=dropout,
        velocity_times=velocity_times,
    )
    first, rest = split_rows(draws, bootstrap_every)
    error, average = bootstrap(first)
    velocity = velocity_target(own, rest, guidance=guidance, null=null)
    errors = error, regress(field, velocity)
    return balance_both(errors, average, velocity, bootstrap_every, reduction, **options)


def balance_both(
    errors: tuple[Float[Array, " first"], Float[Array, " rest"]],
    bootstrap: Regression,
    flow: Regression,
    every: int,
    reduction: Reduction,
    *,
    unit: float | Float[Array, ""] = 1.0,
    **options: Any,
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """Loss and metrics of both kinds of rows by `balance` with its options; `unit` is that of the bootstrap rows."""
    units = (jnp.full_like(errors[0], unit), jnp.ones_like(errors[1]))
    error, t, d, units = merge_rows(
        (errors[0], bootstrap.t, bootstrap.d, units[0]), (errors[1], flow.t, flow.d, units[1]), every
    )
    row = balance(error, t, d, elements=flow.x[0].size, unit=units, **options)
    return row if reduction is None else jnp.mean(row), {
        "loss": jnp.mean(row),
        "error": jnp.mean(error),
        "loss_flow": jnp.mean(errors[1]),
        "loss_bootstrap": jnp.mean(errors[0]),
        "velocity": rms(flow.u),
        "velocity_bootstrap": rms(bootstrap.u),
    }
