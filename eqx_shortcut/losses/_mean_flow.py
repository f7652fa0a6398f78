"""MeanFlow (Geng et al. 2025) and its improvement: `u = v - d Du/Dt` backwards, from one tangent along the path."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import tangents, times
from ..guidance import Guidance, Scales, draw_guided
from ..rows import rows as per_row
from ..rows import split_rows
from ..steps import predict
from ..types import Batch, Cond, Draws, Field, Metrics, Regression
from ._pairs import balance_both, pair_draws, velocity_target
from ._regression import Reduction, Weight, balance, regress, row_error


def mean_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    bootstrap_every: int = 4,
    pairs: times.Pairs = times.logit_normal_pairs,
    velocity_times: times.Times | None = None,
    posterior_every: int | None = None,
    guidance: Guidance | None = None,
    null: Cond = None,
    dropout: float = 0.0,
    jvp: tangents.Jvp = jax.jvp,
    power: float = 1.0,
    eps: float = 0.01,
    log_variance: Weight | None = None,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`mean |u - sg(v + d Du/Dt)|^2` with `u = field(x, t, d)` and the tangent `Du/Dt` along the line's velocity `v`.

    One row in `bootstrap_every` has `(t, d)` from `pairs`, the others have `d = 0`, `t` from `velocity_times` (None: the starts
    of `pairs`), and need no tangent. `guidance` turns `v`
    into a guided velocity by `field`'s own answers at `d = 0`; `dropout` replaces conditions by `null`, the condition without
    its batch axis, and such rows are not guided: with `guidance` in rows of `d = 0` alone, which is where it asks for them, as
    the authors have it; without, in rows of either kind, since guidance when sampling asks for them at any `d`. Each row weighs
    `1/sg(error + eps)^power`, the error being its summed square; `power=0` turns that off. `log_variance(t, d)`, if given, is a
    learned weight. `jvp` may be `tangents.finite_difference()`.

    With `posterior_every=2`, `pairs=times.to_end(times.logit_normal_pairs, share)` and a `log_variance` this is ESC (2025):
    half of the rows use the batch's posterior-mean velocity, and that share goes all the way to the data. The mean gradient at
    the exact field is zero with `power=0`. Raises ValueError if `bootstrap_every` does not divide the batch or is below 2.
    Geng et al. (2025).
    """
    draws = pair_draws(
        batch,
        key,
        pairs=pairs,
        bootstrap_every=bootstrap_every,
        null=null,
        dropout=dropout,
        posterior_every=posterior_every,
        velocity_times=velocity_times,
        drop_steps=guidance is None,
    )
    first, flow = split_rows(velocity_target(field, draws, guidance=guidance, null=null), bootstrap_every)
    u, average = mean_flow_target(field, first, jvp=jvp)
    return balance_both(
        (row_error(u, average.u), regress(field, flow)),
        average,
        flow,
        bootstrap_every,
        reduction,
        power=power,
        eps=eps,
        log_variance=log_variance,
        weight=weight,
    )


def improved_mean_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    velocity: Field | None = None,
    bootstrap_every: int = 2,
    pairs: times.Pairs = times.logit_normal_pairs,
    velocity_times: times.Times | None = None,
    guidance: Guidance | Scales | None = None,
    null: Cond = None,
    dropout: float = 0.0,
    jvp: tangents.Jvp = jax.jvp,
    power: float = 1.0,
    eps: float = 0.01,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`mean |u - d sg(Du/Dt) - v|^2`: the line's velocity is regressed, the tangent is along the network's own velocity.

    The own velocity is `field` at `d = 0`, or what the field `velocity` answers there; that one is then trained here too, by
    flow matching in the same weights. With `guidance=Scales(...)` each row draws its guidance scale, and the field is given
    conditions `Guided(cond, scale, start, stop)` and learns all scales at once; sample it by `guidance.told`. Everything
    else is as in `mean_flow`. The mean gradient at the exact field is zero with `power=0`. Geng et al. (2025b).
    """
    k_draws, k_scales = jax.random.split(key)
    draws = pair_draws(
        batch,
        k_draws,
        pairs=pairs,
        bootstrap_every=bootstrap_every,
        null=null,
        dropout=dropout,
        velocity_times=velocity_times,
        drop_steps=guidance is None,
    )
    if isinstance(guidance, Scales):
        told = draw_guided(k_scales, draws.cond, guidance, draws.t)
        draws = Draws(draws.x, draws.noise, draws.t, draws.d, told)
        guidance = Guidance(1.0, 1 - 1 / told.scale, (told.start, told.stop))
    own = field if velocity is None else velocity
    lines = velocity_target(own, draws, guidance=guidance, null=null)
    first, flow = split_rows(lines, bootstrap_every)
    at_once = jnp.zeros_like(lines.d)
    # The head is asked at every row, once for its own error and for the tangents.
    answers = None if velocity is None else predict(velocity, lines.x, lines.t, at_once, lines.cond)
    along = field if answers is None else lambda x, t, d, cond: split_rows(answers, bootstrap_every)[0]
    u, average = mean_flow_target(field, first, along=along, jvp=jvp)
    loss, metrics = balance_both(
        (row_error(u, average.u), regress(field, flow)),
        average,
        flow,
        bootstrap_every,
        reduction,
        power=power,
        eps=eps,
        weight=weight,
    )
    if answers is None:
        return loss, metrics
    error = row_error(answers, lines.u)
    head = balance(error, lines.t, at_once, elements=lines.x[0].size, power=power, eps=eps, weight=weight)
    loss = loss + (head if reduction is None else jnp.mean(head))
    return loss, metrics | {"loss": jnp.mean(loss), "loss_velocity": jnp.mean(error)}


def mean_flow_target(
    field: Field, lines: Regression, *, along: Field | None = None, jvp: tangents.Jvp = jax.jvp
) -> tuple[Float[Array, "batch *shape"], Regression]:
    """`u = field(x, t, d)`, and the regression of it on `v + d Du/Dt`, from the velocities `v` of `lines`.

    The tangent is along `v`, or along what the field `along` answers at `d = 0`. Value and tangent come from one pass, so
    that a field with dropout has the same mask in both.
    """
    x, t, d, cond, v = lines.x, lines.t, lines.d, lines.cond, lines.u
    direction = v if along is None else jax.lax.stop_gradient(predict(along, x, t, jnp.zeros_like(t), cond))
    u, slope = tangents.along_path(field, x, t, d, cond, direction, jvp=jvp)
    return u, Regression(x, t, d, cond, v + per_row(d, x) * jax.lax.stop_gradient(slope))
