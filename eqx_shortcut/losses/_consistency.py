"""Consistency models (Song et al. 2023): the data seen from a point, `x + (1 - t) field(x, t, 1 - t)`, are its path's."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, tangents, times
from ..guidance import Guidance, check_unguided
from ..rows import expand
from ..steps import clipped, precise, predict, step, velocity_of
from ..types import Batch, Draws, Field, Loss, Number, Points, Reduction, Regression, Weigh
from ._flow_matching import flow_draws
from ._regression import regress, rms, row_error, weighed
from ._shortcut import level_draws

CONSISTENCY_TIMES = partial(times.logit_normal, mean=1.0, std=1.4)
"""Noise over data of log-normal ratio, `exp(N(-1, 1.4^2))`, as times."""


def consistency_distillation(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    teacher: Field,
    steps: int = 128,
    clip: float | None = 4.0,
    floor: float = 1e-5,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """`field` at `t` agrees with `target` at the point that one step `1/steps` of `teacher` leads to.

    `teacher` knows the velocity at `d = 1/steps` (guide it by `guidance.guided`); `clip` limits its point. At the exact field
    the target is exact up to `O(1/steps^2)`, or, where that point is cut, up to the cut over `1 - t`. Song et al. (2023),
    algorithm 2, as in Frans et al. (2024), table 1.
    """
    draws = consistency_draws(batch, key, level=times.log2_steps(steps))
    rows = consistency_distillation_target(precise(target), teacher, draws, gap=1 / steps, clip=clip, floor=floor)
    return weighed(regress(precise(field), rows), rows, weigh, reduction)


def consistency_training(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    level: times.Level,
    floor: float = 1e-5,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """`field` at `t` agrees with `target` at `t + 2^-level` on the straight line of the same noise and data.

    `level` rises from 0 to `log2(steps) - 1` over training and may be traced. At the exact field the mean gradient vanishes up
    to `O(g^2 / (1 - t))` for the gap `g = 2^-level`, `O(g)` in the last cell. Song et al. (2023), algorithm 3, as in Frans et
    al. (2024), table 1.
    """
    draws = consistency_draws(batch, key, level=level)
    gap = jnp.exp2(-jnp.asarray(level, draws.t.dtype))
    rows = consistency_training_target(precise(target), draws, gap=gap, floor=floor)
    loss, metrics = weighed(regress(precise(field), rows), rows, weigh, reduction)
    return loss, metrics | {"level": jnp.asarray(level, rows.t.dtype)}


def consistency_draws(batch: Batch, key: PRNGKeyArray, *, level: times.Level) -> Draws:
    """Noise, `t` on the grid of `2^level` sections, and `d = 1 - t`: the whole way to the data."""
    return level_draws(batch, key, level=level).to_data()


def consistency_distillation_target(
    target: Field, teacher: Field, draws: Draws, *, gap: float, clip: float | None = 4.0, floor: float = 1e-5
) -> Regression:
    """The regression on the velocity from the point at `t` to the data that `target` sees one step of `teacher` further."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=floor)
    later = clipped(step(teacher, x, draws.t, jnp.full_like(draws.t, gap), draws.cond), clip)
    return _towards(target, later, x, draws, gap)


def consistency_training_target(target: Field, draws: Draws, *, gap: float | Number, floor: float = 1e-5) -> Regression:
    """The regression on the velocity from the point at `t` to the data that `target` sees a gap further along the line."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=floor)
    later, _ = paths.linear(draws.noise, draws.x, draws.t + gap, floor=floor)
    return _towards(target, later, x, draws, gap)


def _towards(target, later, x, draws, gap):
    t = draws.t + gap
    left = expand(1 - t, x)
    # In the last cell nothing is left to go, and d = 0 is a step size that not every network can be asked at.
    data = later + left * predict(target, later, t, jnp.maximum(1 - t, gap), draws.cond)
    return Regression(x, draws.t, draws.d, draws.cond, (data - x) / expand(1 - draws.t, x))


def continuous_consistency(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    teacher: Field | None = None,
    warmup: float | Number = 1.0,
    at: times.Times = CONSISTENCY_TIMES,
    std: float = 0.5,
    guidance: Guidance | None = None,
    jvp: tangents.Jvp = jax.jvp,
    normalise: float | None = 0.1,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """sCT, or sCD with a `teacher`: `mean |F - sg(F + g)|^2`, `g` the tangent of the data seen along the trigonometric path.

    `F` is `field` at `d = 1 - t` as the network of that path (`paths.trigonometric_velocity`); `std` is the standard deviation
    of the data. The path's velocity is that of the row's own noise and data, or the teacher's at `d = 0`, guided by `guidance`.
    `warmup` is the share of the tangent of `F` in `g`, from 0 to 1 over the first 10,000 steps; `normalise=c` divides `g` by
    its root mean square plus `c`, None leaves it. Metric `error` is the mean square of `g` before that. The mean gradient at
    the exact field is zero with `warmup=1`, `normalise=None` and no adaptive weight. Lu and Song (2025).
    """
    draws = whole_way_draws(batch, key, at=at, guidance=guidance)
    if teacher is None:
        check_unguided(guidance)
    elif guidance is not None:
        teacher = guidance.of(teacher)
    u, rows, g = continuous_consistency_target(
        field, draws, teacher=teacher, warmup=warmup, std=std, jvp=jvp, normalise=normalise
    )
    scale = paths.trigonometric_scale(paths.angle(rows.t, std), std)
    loss, metrics = weighed(row_error(u, rows.u) / jnp.square(scale), rows, weigh, reduction)
    return loss, metrics | {"error": jnp.square(rms(g))}


def whole_way_draws(batch: Batch, key: PRNGKeyArray, *, at: times.Times, guidance: Guidance | None = None) -> Draws:
    """Noise (the batch's own if it has one), `t` from `at`, `d = 1 - t`, and dropped conditions."""
    return flow_draws(batch, key, steps=1, at=at, guidance=guidance).to_data()


def continuous_consistency_target(
    field: Field,
    draws: Draws,
    *,
    teacher: Field | None = None,
    warmup: float | Number = 1.0,
    std: float = 0.5,
    jvp: tangents.Jvp = jax.jvp,
    normalise: float | None = 0.1,
) -> tuple[Points, Regression, Points]:
    """`u = field(x, t, 1 - t)`, the regression of it for which `F` is `F + g`, and `g` before it was normalised."""
    field = tangents.differentiated(field, jvp)
    s = paths.angle(draws.t, std)
    point, along = paths.trigonometric(draws.noise, draws.x, s, std=std)
    scale = paths.trigonometric_scale(s, std)
    x = point / expand(scale, point)
    if teacher is not None:
        v = velocity_of(teacher, x, draws.t, draws.cond)
        along = jax.lax.stop_gradient(paths.trigonometric_velocity(v, point, s, std=std))

    def network(point, s):
        scale = paths.trigonometric_scale(s, std)
        t = jnp.cos(s) / scale
        u = predict(field, point / expand(scale, point), t, 1 - t, draws.cond)
        return u, paths.trigonometric_velocity(u, point, s, std=std)

    (u, f), (_, slope) = jvp(network, (point, s), (along, jnp.ones_like(s)))
    c, n = expand(jnp.cos(s), point), expand(jnp.sin(s), point)
    warmup = jnp.asarray(warmup, point.dtype)
    g = jax.lax.stop_gradient(-(c**2) * (f - along) - warmup * c * n * (point + slope))
    size = jnp.sqrt(row_error(g, jnp.zeros_like(g)))
    change = g if normalise is None else g / expand(size + normalise, g)
    target = jax.lax.stop_gradient(u) - expand(scale, point) * change
    return u, Regression(x, draws.t, draws.d, draws.cond, target), g
