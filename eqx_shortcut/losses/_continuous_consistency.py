"""Continuous-time consistency models (Lu and Song 2025): the data seen from a point do not change along its path."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, tangents, times
from ..guidance import Guidance, drop_condition
from ..rows import expand
from ..steps import predict
from ..types import Batch, Draws, Field, Loss, Number, Points, Reduction, Regression, Weigh
from ._regression import rms, row_error, weighed

CONSISTENCY_TIMES = partial(times.logit_normal, mean=1.0, std=1.4)
"""Noise over data of log-normal ratio, `exp(N(-1, 1.4^2))`, as times."""


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
    of the data. The path's velocity is that of the row's own noise and data, or the answer of `teacher` at `d = 0`, guided by
    `guidance`, which also hides conditions. `warmup` is the share of the tangent of `F` in `g`, from 0 to 1 over the first
    10,000 steps. `normalise=c` divides `g` by its root mean square plus `c`; None leaves it. Metric `error` is the mean square
    of `g` as it was before. The mean gradient at the exact field is zero with `warmup=1`, `normalise=None` and no adaptive
    weight. Lu and Song (2025).
    """
    draws = whole_way_draws(batch, key, at=at, guidance=guidance)
    velocity = teacher if teacher is None or guidance is None else guidance.of(teacher)
    u, rows, g = continuous_consistency_target(
        field, draws, teacher=velocity, warmup=warmup, std=std, jvp=jvp, normalise=normalise
    )
    scale = paths.trigonometric_scale(paths.angle(rows.t, std), std)
    error = row_error(u, rows.u) / jnp.square(scale)
    loss, metrics = weighed(error, rows, weigh, reduction)
    return loss, metrics | {"error": jnp.square(rms(g))}


def whole_way_draws(batch: Batch, key: PRNGKeyArray, *, at: times.Times, guidance: Guidance | None = None) -> Draws:
    """Noise (the batch's own if it has one), `t` from `at`, `d = 1 - t`, and dropped conditions."""
    k_time, k_noise, k_drop = jax.random.split(key, 3)
    n, dtype = batch.x.shape[0], batch.x.dtype
    t = at(k_time, n, dtype)
    return Draws(batch.x, batch.noise_from(k_noise), t, 1 - t, drop_condition(k_drop, batch.cond, guidance, n))


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
        v = predict(teacher, x, draws.t, jnp.zeros_like(draws.t), draws.cond)
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
    step = g
    if normalise is not None:
        size = jnp.sqrt(jnp.mean(jnp.square(g), axis=tuple(range(1, g.ndim))))
        step = g / expand(size + normalise, g)
    target = jax.lax.stop_gradient(u) - expand(scale, point) * step
    return u, Regression(x, draws.t, draws.d, draws.cond, target), g
