"""Flow maps by self-distillation (Boffi, Albergo, Vanden-Eijnden 2025): three ways to say that the average follows the flow."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, tangents, times
from ..guidance import Guidance
from ..rows import expand, split_rows
from ..steps import velocity_of
from ..types import Batch, Draws, Field, Loss, Numbers, Reduction, Regression, Weigh
from ._alpha_flow import alpha_flow_target
from ._intervals import Intervals, velocity_target
from ._mean_flow import LOGIT_NORMAL
from ._regression import regress, row_error, weighed_steps

UNIFORM = Intervals(times.uniform_pairs, velocity_times=times.uniform)
TERMINAL = Intervals(times.logit_normal_gaps, velocity_times=times.uniform)


def lagrangian(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    teacher: Field | None = None,
    intervals: Intervals = UNIFORM,
    guidance: Guidance | None = None,
    jvp: tangents.Jvp = jax.jvp,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |u + d du/dd - sg target(x + d u, t + d, 0)|^2`: the end of a step moves with the velocity at that end.

    `u = field(x, t, d)`; the gradient passes through the tangent `du/dd`. The residual vanishes row by row at the exact
    field. A `teacher` takes the place of `target`, too: its map is what is learnt. Boffi et al. (2025), Lagrangian
    self-distillation; with a teacher Boffi et al. (2024), flow map matching.
    """
    steps, lines = split_rows(intervals.draw(batch, key, guidance), intervals.bootstrap_every)
    error = lagrangian_error(field, target if teacher is None else teacher, steps, jvp=jvp)
    flow = velocity_target(target, lines, guidance, teacher=teacher)
    return weighed_steps(field, error, flow, intervals.bootstrap_every, weigh, reduction)


def terminal_velocity(
    field: Field, batch: Batch, key: PRNGKeyArray, *, target: Field, intervals: Intervals = TERMINAL, **options: Any
) -> Loss:
    """`lagrangian` with logit-normal step sizes and, as `target`, a fast average of the weights (decay 0.99).

    `options` are those of `lagrangian`. Terminal velocity matching (2025).
    """
    return lagrangian(field, batch, key, target=target, intervals=intervals, **options)


def eulerian(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    teacher: Field | None = None,
    intervals: Intervals = UNIFORM,
    guidance: Guidance | None = None,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
    **options: Any,
) -> Loss:
    """`mean |u - v - d Du/Dt|^2` with `u = field(x, t, d)` and the network's own velocity `v = sg field(x, t, 0)`.

    The residual of MeanFlow with the own velocity for the line's, in the tangent too: it vanishes row by row at the exact
    field. The gradient passes through `du/dt - du/dd` and, unless `stop_space`, through `v . du/dx`, or with `stop_tangent`
    through neither, which saves a tangent. A `teacher`'s velocity takes the place of `v`, too. `options` are `stop_space`,
    `stop_tangent` and `jvp` of `eulerian_error`. Boffi et al. (2025), Eulerian self-distillation; with a teacher (2024).
    """
    steps, lines = split_rows(intervals.draw(batch, key, guidance), intervals.bootstrap_every)
    error = eulerian_error(field, steps, velocity=teacher, **options)
    flow = velocity_target(field, lines, guidance, teacher=teacher)
    return weighed_steps(field, error, flow, intervals.bootstrap_every, weigh, reduction)


def progressive_map(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    share: float | None = 0.5,
    intervals: Intervals = UNIFORM,
    guidance: Guidance | None = None,
    clip: float | None = None,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |u - sg(a step of share d and a step of the rest, both of target)|^2` with `u = field(x, t, d)`.

    At the midpoint this is the shortcut target at continuous `t` and `d`; with `share=None` the share is uniform for each row,
    the target of SplitMeanFlow. The target is exact at the exact field. Boffi et al. (2025), progressive self-distillation.
    """
    k_draws, k_share = jax.random.split(key)
    steps, lines = split_rows(intervals.draw(batch, k_draws, guidance), intervals.bootstrap_every)
    alpha = jax.random.uniform(k_share, steps.t.shape, steps.t.dtype) if share is None else share
    average = alpha_flow_target(target, velocity_target(target, steps), alpha, own_first=True, clip=clip)
    bootstrap, flow = (regress(field, average), average), velocity_target(target, lines, guidance)
    return weighed_steps(field, bootstrap, flow, intervals.bootstrap_every, weigh, reduction)


def split_mean_flow(
    field: Field, batch: Batch, key: PRNGKeyArray, *, target: Field, intervals: Intervals = LOGIT_NORMAL, **options: Any
) -> Loss:
    """`progressive_map` with a share that is uniform for each row and logit-normal times: no tangent.

    It is `alpha_flow` with `target`'s own first step; `options` are those of `progressive_map`. Guo et al. (2025).
    """
    return progressive_map(field, batch, key, target=target, share=None, intervals=intervals, **options)


def lagrangian_error(field: Field, target: Field, draws: Draws, *, jvp: tangents.Jvp = jax.jvp) -> tuple[Numbers, Regression]:
    """`mean |u + d du/dd - sg target(x + d u, t + d, 0)|^2` of each row, and the regression that says what `u` should be."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=0)
    t, d, cond = draws.t, draws.d, draws.cond
    u, slope = tangents.along_step(field, x, t, d, cond, jvp=jvp)
    slope = expand(d, x) * slope
    there = jax.lax.stop_gradient(x + expand(d, x) * u)
    end = jax.lax.stop_gradient(velocity_of(target, there, t + d, cond))
    return row_error(u + slope, end), Regression(x, t, d, cond, jax.lax.stop_gradient(end - slope))


def eulerian_error(
    field: Field,
    draws: Draws,
    *,
    velocity: Field | None = None,
    stop_tangent: bool = False,
    stop_space: bool = True,
    jvp: tangents.Jvp = jax.jvp,
) -> tuple[Numbers, Regression]:
    """`mean |u - v - d Du/Dt|^2` of each row, `v = sg velocity(x, t, 0)` (by default of `field`), and what `u` should be."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=0)
    t, d, cond = draws.t, draws.d, draws.cond
    own = jax.lax.stop_gradient(velocity_of(field if velocity is None else velocity, x, t, cond))
    if stop_space and not stop_tangent:
        u, slope = tangents.along_path(field, x, t, d, cond, jnp.zeros_like(own), jvp=jvp)
        slope = slope + jax.lax.stop_gradient(tangents.along_space(field, x, t, d, cond, own, jvp=jvp))
    else:
        u, slope = tangents.along_path(field, x, t, d, cond, own, jvp=jvp)
    slope = expand(d, x) * slope
    rows = Regression(x, t, d, cond, own + jax.lax.stop_gradient(slope))
    return (row_error(u, rows.u) if stop_tangent else row_error(u - slope, own)), rows
