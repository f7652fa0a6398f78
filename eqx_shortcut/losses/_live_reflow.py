"""Live reflow (Frans et al. 2024, table 1): flow matching, and straight lines to where the network itself leads."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, samplers
from ..guidance import Guidance
from ..rows import check_share, merge_rows, split_rows
from ..types import Batch, Draws, Field, Loss, Reduction, Regression, Weigh
from ._flow_matching import flow_draws, flow_target
from ._regression import regress, weighed_both


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

    Every `bootstrap_every`-th row is a reflow row: its path is integrated in `rollout` Euler steps of `target`, told `d =
    1/steps` and guided by `guidance`; no gradient passes it. Conditions drop in flow rows alone. Raises ValueError if
    `bootstrap_every` does not divide the batch or is below 2. Reflow: Liu et al. (2023).
    """
    check_share(batch.x.shape[0], bootstrap_every)
    first, rest = live_reflow_draws(batch, key, steps=steps, bootstrap_every=bootstrap_every, guidance=guidance)
    reflow = live_reflow_target(target, first, steps=steps, rollout=rollout, guidance=guidance, floor=floor)
    rows = merge_rows(reflow, flow_target(rest, floor=floor), bootstrap_every)
    return weighed_both(regress(field, rows), rows, bootstrap_every, weigh, reduction)


def live_reflow_draws(
    batch: Batch, key: PRNGKeyArray, *, steps: int, bootstrap_every: int, guidance: Guidance | None = None
) -> tuple[Draws, Draws]:
    """Draws of the reflow rows (`d = 1`, `t` on the grid of `steps`, conditions kept, data not used) and of the flow rows."""
    k_reflow, k_flow = jax.random.split(key)
    first, rest = split_rows(batch, bootstrap_every)
    draws = flow_draws(first, k_reflow, steps=steps)
    reflow = dataclasses.replace(draws, d=jnp.ones_like(draws.d))
    return reflow, flow_draws(rest, k_flow, steps=steps, guidance=guidance)


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
