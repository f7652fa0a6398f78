"""The velocity of lines, or the noise in them: flow matching (Lipman et al. 2023; Liu et al. 2023), reflow and diffusion."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, samplers, times
from ..guidance import Guidance, check_unguided, drop_condition
from ..rows import check_share, expand, merge_rows, split_rows
from ..types import Batch, Draws, Field, Loss, Reduction, Regression, Weigh
from ._regression import regress, weighed, weighed_both


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
    such as `partial(times.logit_normal, mean=-0.8, std=0.8)` of JiT (2025). Frans et al. (2024), eq. 5, first term.
    """
    check_unguided(guidance)
    rows = flow_target(flow_draws(batch, key, steps=steps, at=at, guidance=guidance), floor=floor)
    return weighed(regress(field, rows), rows, weigh, reduction)


def live_reflow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    steps: int = 128,
    bootstrap_every: int = 8,
    rollout: int = 8,
    guidance: Guidance | None = None,
    floor: float = 1e-5,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """Flow matching at `d = 1/steps`, and at `d = 1` flow matching from noise to the end of `target`'s own path.

    Every `bootstrap_every`-th row is a reflow row: its path is integrated in `rollout` Euler steps of `target`, told
    `d = 1/steps` and guided by `guidance`. Conditions drop in flow rows alone. Raises ValueError if `bootstrap_every` does not
    divide the batch or is below 2. Reflow: Liu et al. (2023).
    """
    check_share(batch.x.shape[0], bootstrap_every)
    first, rest = live_reflow_draws(batch, key, steps=steps, bootstrap_every=bootstrap_every, guidance=guidance)
    reflow = live_reflow_target(target, first, steps=steps, rollout=rollout, guidance=guidance, floor=floor)
    rows = merge_rows(reflow, flow_target(rest, floor=floor), bootstrap_every)
    return weighed_both(regress(field, rows), rows, bootstrap_every, weigh, reduction)


def diffusion(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    steps: int = 128,
    guidance: Guidance | None = None,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |field(a x + s noise, t, 1/steps, cond) - noise|^2` with `a, s = paths.variance_preserving(t)`.

    Here `field` predicts noise and not a velocity: sample it through `samplers.ddim_field`, which makes it one. Times are as in
    `flow_matching`. Ho et al. (2020), eq. 14; the baseline of Frans et al. (2024), table 1.
    """
    check_unguided(guidance)
    rows = diffusion_target(flow_draws(batch, key, steps=steps, guidance=guidance))
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


def live_reflow_draws(
    batch: Batch, key: PRNGKeyArray, *, steps: int, bootstrap_every: int, guidance: Guidance | None = None
) -> tuple[Draws, Draws]:
    """Draws of the reflow rows (`d = 1`, `t` on the grid of `steps`, conditions kept, data not used) and of the flow rows."""
    k_reflow, k_flow = jax.random.split(key)
    first, rest = split_rows(batch, bootstrap_every)
    draws = flow_draws(first, k_reflow, steps=steps)
    reflow = dataclasses.replace(draws, d=jnp.ones_like(draws.d))
    return reflow, flow_draws(rest, k_flow, steps=steps, guidance=guidance)


def flow_target(draws: Draws, *, floor: float = 1e-5) -> Regression:
    """The regression of the straight line's velocity at its point at `t`."""
    x, v = paths.linear(draws.noise, draws.x, draws.t, floor=floor)
    return Regression(x, draws.t, draws.d, draws.cond, v)


def live_reflow_target(
    target: Field, draws: Draws, *, steps: int, rollout: int = 8, guidance: Guidance | None = None, floor: float = 1e-5
) -> Regression:
    """The regression on `end - noise` at the point at `t` of their line; `rollout` steps of `target` lead to `end`."""
    teacher = target if guidance is None else guidance.of(target)

    def finest(x, t, d, cond):
        return teacher(x, t, jnp.full_like(d, 1 / steps), cond)

    end = samplers.euler(finest, draws.noise, draws.cond, steps=rollout)
    x, _ = paths.linear(draws.noise, end, draws.t, floor=floor)
    return Regression(*jax.lax.stop_gradient((x, draws.t, draws.d, draws.cond, end - draws.noise)))


def diffusion_target(draws: Draws) -> Regression:
    """The regression on the noise at the variance-preserving path's point at `t`."""
    a, s = (expand(part, draws.x) for part in paths.variance_preserving(draws.t))
    return Regression(a * draws.x + s * draws.noise, draws.t, draws.d, draws.cond, draws.noise)
