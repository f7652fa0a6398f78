"""Flow matching (Lipman et al. 2023; Liu et al. 2023): the velocity of straight lines from noise to data."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, times
from ..guidance import Guidance, drop_condition
from ..types import Batch, Draws, Field, Loss, Reduction, Regression, Weigh
from ._regression import regress, weighed


def flow_matching(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    steps: int = 128,
    at: times.Times | None = None,
    guidance: Guidance | None = None,
    floor: float = 1e-5,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |field(x_t, t, 1/steps, cond) - (x - (1 - floor) noise)|^2` with `t` uniform on `{0, ..., steps - 1}/steps`.

    The one step size trained is `1/steps`; samplers must pass that, whatever their number of steps. `at` draws other times,
    such as `partial(times.logit_normal, mean=-0.8, std=0.8)` of JiT (2025). `guidance` hides conditions.
    `reduction=None` returns one value a row. Frans et al. (2024), eq. 5, first term.
    """
    rows = flow_target(flow_draws(batch, key, steps=steps, at=at, guidance=guidance), floor=floor)
    return weighed(regress(field, rows), rows, weigh, reduction)


def flow_draws(
    batch: Batch, key: PRNGKeyArray, *, steps: int, at: times.Times | None = None, guidance: Guidance | None = None
) -> Draws:
    """Noise (the batch's own if it has one), `t` on the grid of `steps` or from `at`, `d = 1/steps`, and dropped conditions."""
    k_time, k_noise, k_drop = jax.random.split(key, 3)
    n, dtype = batch.x.shape[0], batch.x.dtype
    t = times.grid(k_time, jnp.full((n,), steps), dtype) if at is None else at(k_time, n, dtype)
    cond = drop_condition(k_drop, batch.cond, guidance, n)
    return Draws(batch.x, batch.noise_from(k_noise), t, jnp.full((n,), 1 / steps, dtype), cond)


def flow_target(draws: Draws, *, floor: float = 1e-5) -> Regression:
    """The regression of the straight line's velocity at its point at `t`."""
    x, v = paths.linear(draws.noise, draws.x, draws.t, floor=floor)
    return Regression(x, draws.t, draws.d, draws.cond, v)
