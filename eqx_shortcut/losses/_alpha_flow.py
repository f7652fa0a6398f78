"""Alpha-Flow (Zhang et al. 2025) and its relatives: a step of share `alpha` and a step of the rest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import tangents, times, weights
from ..guidance import Guidance, check_unguided, drop_condition
from ..rows import check_divides, expand, merge_rows, split_rows
from ..steps import clipped, precise, predict, split_steps
from ..types import Batch, Draws, Field, Loss, Number, Numbers, Reduction, Regression, Weigh
from ._intervals import Intervals, velocity_target
from ._mean_flow import LOGIT_NORMAL, mean_flow_target
from ._regression import regress, weighed, weighed_steps

SOLUTION = Intervals(times.logit_normal_ends, velocity_times=partial(times.logit_normal, mean=0.2))
"""SoFlow's times."""


def alpha_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    alpha: float | Number,
    teacher: Field | None = None,
    intervals: Intervals = LOGIT_NORMAL,
    guidance: Guidance | None = None,
    clip: float | None = None,
    jvp: tangents.Jvp = jax.jvp,
    weigh: tuple[Weigh, ...] = (weights.Adaptive(),),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |u - sg(alpha v + (1 - alpha) target(x + alpha d v, t + alpha d, (1 - alpha) d))|^2` with `u = field(x, t, d)`.

    From flow matching of the trajectory at `alpha = 1` to MeanFlow at 0, where the target is `v + d Du/Dt` by `jvp`; `alpha`
    may be traced (`times.sigmoid_fall` of the progress). A target is a line's velocity among others, and where `clip` cuts one
    the bias is `O(1/alpha)`. Both fields are asked for steps in float32 if they can (`steps.precise`).

    `weights.Adaptive` measures errors of steps in units of alpha, unless `units` is False: a row weighs
    `1/alpha 1/sg(error/alpha^2 + eps)^power`, the error being its summed square, and its gradient tends to MeanFlow's as
    `alpha` falls. (The paper's weight `alpha/(error + c)` is `eps = c/alpha^2`; it lets that gradient vanish.) The bias at the
    exact field is `O(alpha)` with `power=0`. Zhang et al. (2025).
    """
    every = intervals.bootstrap_every
    steps, lines = split_rows(intervals.draw(batch, key, guidance), every)
    along = velocity_target(target, steps, guidance, teacher=teacher)
    average = alpha_flow_target(precise(target), along, alpha, clip=clip, jvp=jvp)
    bootstrap = regress(precise(field), average), average
    unit = jnp.full_like(steps.t, jnp.where(jnp.asarray(alpha) == 0, 1, alpha))
    weigh = weights.in_units(merge_rows(unit, jnp.ones_like(lines.t), every), weigh)
    flow = velocity_target(target, lines, guidance, teacher=teacher)
    return weighed_steps(field, bootstrap, flow, every, weigh, reduction)


def so_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    alpha: float | Number = 0.002,
    intervals: Intervals = SOLUTION,
    weigh: tuple[Weigh, ...] = (weights.Adaptive(mean=True), weights.Steps(0.5)),
    **options: Any,
) -> Loss:
    """`alpha_flow` at a small `alpha`, without tangent: three rows in four are flow matching, each is weighed by its error.

    `alpha` falls from 0.1 to 0.002 over training (`times.exponential_fall`), the default being the last. A row's error is
    compared with `eps` as a mean over its elements, and rows with a step count half, as in the authors' code. `options` are
    those of `alpha_flow`. SoFlow (2025).
    """
    return alpha_flow(field, batch, key, target=target, alpha=alpha, intervals=intervals, weigh=weigh, **options)


def inductive_moment_matching(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    particles: int = 4,
    halvings: int = 12,
    pairs: times.Pairs = times.uniform_steps,
    guidance: Guidance | None = None,
    weigh: tuple[Weigh, ...] = (weights.sigmoid,),
    reduction: Reduction = "mean",
) -> Loss:
    """`moment_error` of groups of `particles` rows that share `(t, d)`: ends of steps agree with those of the target as sets.

    The target is alpha-Flow's, its first step ending at `moment_times`. At the exact field the mean gradient of independent
    particles vanishes. Raises ValueError if `particles` does not divide the batch. Zhou, Ermon, Song (2025), IMM.
    """
    n, (k_pairs, k_noise, k_drop) = batch.x.shape[0], jax.random.split(key, 3)
    check_divides(n, particles, "particles")
    check_unguided(guidance)
    t, d = (jnp.repeat(each, particles) for each in pairs(k_pairs, n // particles, batch.x.dtype))
    draws = Draws(batch.x, batch.noise_from(k_noise), t, d, drop_condition(k_drop, batch.cond, guidance, n))
    share = (moment_times(t, d, halvings=halvings) - t) / jnp.maximum(d, jnp.finfo(d.dtype).tiny)
    rows = alpha_flow_target(precise(target), velocity_target(target, draws), jnp.minimum(share, 1))
    error = moment_error(precise(field), rows, particles=particles, scale=batch.noise_scale)
    loss, metrics = weighed(error, rows, weigh, reduction)
    return loss, metrics | {"error": jnp.mean(error)}


def moment_times(t: Numbers, d: Numbers, *, halvings: int = 12) -> Numbers:
    """The time from `t + 1e-4` to `t + d` at which noise over data, `(1 - t)/t`, has fallen by `160 / 2^halvings`."""
    return jnp.clip(t / jnp.maximum(1 - 160 / 2**halvings * t, t), t + 1e-4, t + d)


def moment_error(field: Field, rows: Regression, *, particles: int, scale: float = 1.0) -> Numbers:
    """What each row has of `mean k(y, y') + k(z, z') - k(y, z') - k(z, y')`, `y = x + d field(x, t, d)`, `z = x + d sg(u)`.

    `k(a, b) = exp(-|a - b| / (d scale D))` for rows of `D` elements, `scale` being the standard deviation of the noise.
    """
    u = predict(field, rows.x, rows.t, rows.d, rows.cond)
    d = expand(jnp.maximum(rows.d, jnp.finfo(rows.d.dtype).eps), u)
    x, u, z = (a.reshape(-1, particles, u[0].size) for a in (rows.x / d, u, jax.lax.stop_gradient(rows.u)))
    # Apart from velocities: of a row and itself nothing is left of the points, which are large beside a short step.
    points = x[:, :, None] - x[:, None]

    def kernel(a, b):
        squares = jnp.sum(jnp.square((points + (a[:, :, None] - b[:, None])) / scale), axis=3)
        return jnp.exp(-jnp.sqrt(jnp.maximum(squares, 1e-16)) / u.shape[2])

    return jnp.mean(kernel(u, u) + kernel(z, z) - kernel(u, z) - kernel(z, u), axis=2).reshape(-1)


def alpha_flow_target(
    target: Field,
    lines: Regression,
    alpha: float | Number | Numbers,
    *,
    own_first: bool = False,
    clip: float | None = None,
    jvp: tangents.Jvp = jax.jvp,
) -> Regression:
    """The regression on a step of share `alpha` along the velocities of `lines`, and one of `target` for the rest.

    With `own_first` both steps are of `target`. At an `alpha` of 0 (one for all rows) it is the regression of MeanFlow with the
    tangent of `target`; where that is only known when running, only the one asked for is run.
    """

    def split(lines):
        first = None if own_first else lines.u
        return split_steps(target, lines.x, lines.t, lines.d, lines.cond, alpha, first=first, clip=None)

    def tangent(lines):
        return mean_flow_target(target, lines, jvp=jvp)[1].u

    if own_first or jnp.ndim(alpha):
        u = split(lines)
    elif isinstance(alpha, float | int):
        u = tangent(lines) if alpha == 0 else split(lines)
    else:
        u = jax.lax.cond(alpha == 0, tangent, split, lines)
    return Regression(lines.x, lines.t, lines.d, lines.cond, clipped(u, clip))
