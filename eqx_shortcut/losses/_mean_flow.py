"""MeanFlow (Geng et al. 2025) and its improvement: `u = v - d Du/Dt` backwards, from one tangent along the path."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import tangents, times, weights
from ..guidance import Guidance, Scales, draw_guided
from ..rows import expand, split_rows
from ..steps import velocity_of
from ..types import Batch, Field, Loss, Points, Reduction, Regression, Weigh
from ._intervals import Intervals, velocity_target
from ._regression import row_error, weighed, weighed_steps

LOGIT_NORMAL = Intervals(times.logit_normal_pairs)
HALF_STEPS = Intervals(times.logit_normal_pairs, bootstrap_every=2)


def mean_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    teacher: Field | None = None,
    intervals: Intervals = LOGIT_NORMAL,
    guidance: Guidance | None = None,
    jvp: tangents.Jvp = jax.jvp,
    weigh: tuple[Weigh, ...] = (weights.Adaptive(),),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |u - sg(v + d Du/Dt)|^2` with `u = field(x, t, d)` and the tangent `Du/Dt` along the line's velocity `v`.

    Rows of `d = 0` need no tangent. Where `guidance` guides `v`, by `field`'s own answers at `d = 0`, conditions drop in rows
    of `d = 0` alone, as the authors have it; else they drop in rows of either kind, since guidance when sampling asks for them
    at any `d`. With a `teacher` (AYF's Eulerian distillation, Sabour et al. 2025) the residual vanishes row by row at the
    teacher's exact map.

    With `posterior_every=2` and the pairs `times.to_end(times.logit_normal_pairs, share)` in `intervals`, and a
    `weights.LogVariance`, this is ESC (2025): half of the rows use the batch's posterior-mean velocity, and that share goes all
    the way to the data. The mean gradient at the exact field is zero with `weigh=()`. Geng et al. (2025).
    """
    draws = intervals.draw(batch, key, guidance, drop_steps=guidance is None or not guidance.inside)
    steps, lines = split_rows(velocity_target(field, draws, guidance, teacher=teacher), intervals.bootstrap_every)
    u, average = mean_flow_target(field, steps, jvp=jvp)
    return weighed_steps(field, (row_error(u, average.u), average), lines, intervals.bootstrap_every, weigh, reduction)


def improved_mean_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    velocity: Field | None = None,
    intervals: Intervals = HALF_STEPS,
    guidance: Guidance | None = None,
    jvp: tangents.Jvp = jax.jvp,
    weigh: tuple[Weigh, ...] = (weights.Adaptive(),),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |u - d sg(Du/Dt) - v|^2`: the line's velocity is regressed, the tangent is along the network's own velocity.

    The own velocity is `field` at `d = 0`, or the answer of the field `velocity` there; that one is then trained here too, by
    flow matching in the same weights. With `Scales` as scale of `guidance` each row draws its own, and the field is given
    conditions `Guided(cond, scale, start, stop)` and learns all scales at once; sample it by `guidance.at_scale`. The rest is
    as in `mean_flow`. The mean gradient at the exact field is zero with `weigh=()`. Geng et al. (2025b).
    """
    k_draws, k_scales = jax.random.split(key)
    draws = intervals.draw(batch, k_draws, guidance, drop_steps=guidance is None or not guidance.inside)
    if guidance is not None and isinstance(guidance.scale, Scales):
        told = draw_guided(k_scales, draws.cond, guidance.scale, draws.t)
        draws = dataclasses.replace(draws, cond=told)
        guidance = guidance._replace(scale=1.0, mix=1 - 1 / told.scale, interval=(told.start, told.stop))
    lines = velocity_target(field if velocity is None else velocity, draws, guidance)
    steps, flow = split_rows(lines, intervals.bootstrap_every)
    # A second head is asked at every row, once for its own error and for the tangents.
    answers = None if velocity is None else velocity_of(velocity, lines.x, lines.t, lines.cond)
    along = field if answers is None else lambda x, t, d, cond: split_rows(answers, intervals.bootstrap_every)[0]
    u, average = mean_flow_target(field, steps, along=along, jvp=jvp)
    loss, metrics = weighed_steps(field, (row_error(u, average.u), average), flow, intervals.bootstrap_every, weigh, reduction)
    if answers is None:
        return loss, metrics
    error = row_error(answers, lines.u)
    head, _ = weighed(error, dataclasses.replace(lines, d=jnp.zeros_like(lines.d)), weigh, reduction)
    return loss + head, metrics | {"loss": jnp.mean(loss + head), "loss_velocity": jnp.mean(error)}


def mean_flow_target(
    field: Field, lines: Regression, *, along: Field | None = None, jvp: tangents.Jvp = jax.jvp
) -> tuple[Points, Regression]:
    """`u = field(x, t, d)`, and the regression of it on `v + d Du/Dt`, from the velocities `v` of `lines`.

    The tangent is along `v`, or along the answer of the field `along` at `d = 0`. Value and tangent come from one pass, so
    that a field with dropout has the same mask in both.
    """
    x, t, d, cond, v = lines.x, lines.t, lines.d, lines.cond, lines.u
    direction = v if along is None else jax.lax.stop_gradient(velocity_of(along, x, t, cond))
    u, slope = tangents.along_path(field, x, t, d, cond, direction, jvp=jvp)
    return u, Regression(x, t, d, cond, v + expand(d, x) * jax.lax.stop_gradient(slope))
