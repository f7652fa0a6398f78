"""Flow maps by self-distillation (Boffi, Albergo, Vanden-Eijnden 2025): three ways to say that the average follows the flow."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import paths, tangents, times
from ..guidance import Guidance
from ..rows import rows as per_row
from ..steps import predict
from ..types import Batch, Cond, Draws, Field, Metrics, Regression
from ._alpha_flow import alpha_flow_target
from ._pairs import bootstrap_and_flow, velocity_target
from ._regression import Reduction, Weight, regress, row_error


def lagrangian(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    bootstrap_every: int = 4,
    pairs: times.Pairs = times.uniform_pairs,
    velocity_times: times.Times | None = times.uniform,
    guidance: Guidance | None = None,
    null: Cond = None,
    dropout: float = 0.0,
    jvp: tangents.Jvp = jax.jvp,
    power: float = 0.0,
    eps: float = 0.01,
    log_variance: Weight | None = None,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`mean |u + d du/dd - sg target(x + d u, t + d, 0)|^2`: the end of a step moves with the velocity at that end.

    `u = field(x, t, d)`; the gradient passes through the tangent `du/dd`, and none through `target`, an average of `field` or
    `field` itself. One row in `bootstrap_every` has `(t, d)` from `pairs`; the others have `d = 0`, `t` from `velocity_times`
    (None: the starts of `pairs`), and regress the line's velocity, which `guidance` turns into a guided one by `target`'s own.
    `log_variance(t, d)` is a learned weight. The rest is as in `mean_flow`. The residual vanishes row by row at the exact
    field. Boffi et al. (2025), Lagrangian self-distillation.
    """

    def build(draws):
        return lagrangian_error(field, target, draws, jvp=jvp)

    return bootstrap_and_flow(
        field,
        batch,
        key,
        build,
        target,
        pairs=pairs,
        velocity_times=velocity_times,
        bootstrap_every=bootstrap_every,
        guidance=guidance,
        null=null,
        dropout=dropout,
        reduction=reduction,
        power=power,
        eps=eps,
        log_variance=log_variance,
        weight=weight,
    )


def terminal_velocity(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    pairs: times.Pairs = times.logit_normal_gaps,
    **options: Any,
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`lagrangian` with logit-normal step sizes and, as `target`, a fast average of the weights (decay 0.99).

    `options` are those of `lagrangian`. Terminal velocity matching (2025).
    """
    return lagrangian(field, batch, key, target=target, pairs=pairs, **options)


def eulerian(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    bootstrap_every: int = 4,
    pairs: times.Pairs = times.uniform_pairs,
    velocity_times: times.Times | None = times.uniform,
    guidance: Guidance | None = None,
    null: Cond = None,
    dropout: float = 0.0,
    jvp: tangents.Jvp = jax.jvp,
    stop_tangent: bool = False,
    stop_space: bool = True,
    power: float = 0.0,
    eps: float = 0.01,
    log_variance: Weight | None = None,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`mean |u - v - d Du/Dt|^2` with `u = field(x, t, d)` and the network's own velocity `v = sg field(x, t, 0)`.

    The residual of MeanFlow with the own velocity for the line's, in the tangent too: it vanishes row by row at the exact
    field. The gradient passes through `du/dt - du/dd` and, unless `stop_space`, through `v . du/dx`, or with `stop_tangent`
    through neither, which saves a tangent. The rest is as in `lagrangian`. Boffi et al. (2025), Eulerian self-distillation.
    """

    def build(draws):
        return eulerian_error(field, draws, stop_tangent=stop_tangent, stop_space=stop_space, jvp=jvp)

    return bootstrap_and_flow(
        field,
        batch,
        key,
        build,
        field,
        pairs=pairs,
        velocity_times=velocity_times,
        bootstrap_every=bootstrap_every,
        guidance=guidance,
        null=null,
        dropout=dropout,
        reduction=reduction,
        power=power,
        eps=eps,
        log_variance=log_variance,
        weight=weight,
    )


def progressive_map(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    share: float | None = 0.5,
    bootstrap_every: int = 4,
    pairs: times.Pairs = times.uniform_pairs,
    velocity_times: times.Times | None = times.uniform,
    guidance: Guidance | None = None,
    null: Cond = None,
    dropout: float = 0.0,
    clip: float | None = None,
    power: float = 0.0,
    eps: float = 0.01,
    log_variance: Weight | None = None,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`mean |u - sg(a step of share d and a step of the rest, both of target)|^2` with `u = field(x, t, d)`.

    At the midpoint this is the shortcut target at continuous `t` and `d`; with `share=None` the share is uniform for each row,
    the target of SplitMeanFlow. `clip` limits the target, in units of `x`. The rest is as in `lagrangian`. The target is exact
    at the exact field. Boffi et al. (2025), progressive self-distillation.
    """
    k_draws, k_share = jax.random.split(key)

    def build(draws):
        alpha = jax.random.uniform(k_share, draws.t.shape, draws.t.dtype) if share is None else share
        rows = alpha_flow_target(target, velocity_target(target, draws), alpha, own_first=True, clip=clip)
        return regress(field, rows), rows

    return bootstrap_and_flow(
        field,
        batch,
        k_draws,
        build,
        target,
        pairs=pairs,
        velocity_times=velocity_times,
        bootstrap_every=bootstrap_every,
        guidance=guidance,
        null=null,
        dropout=dropout,
        reduction=reduction,
        power=power,
        eps=eps,
        log_variance=log_variance,
        weight=weight,
    )


def split_mean_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    pairs: times.Pairs = times.logit_normal_pairs,
    velocity_times: times.Times | None = None,
    clip: float | None = None,
    **options: Any,
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`progressive_map` with a share that is uniform for each row and logit-normal times: no tangent.

    It is `alpha_flow` with `target`'s own first step in place of the line's. The target is exact at the exact field.
    `options` are those of `progressive_map`. Guo et al. (2025).
    """
    return progressive_map(
        field, batch, key, target=target, share=None, pairs=pairs, velocity_times=velocity_times, clip=clip, **options
    )


def lagrangian_error(
    field: Field, target: Field, draws: Draws, *, jvp: tangents.Jvp = jax.jvp
) -> tuple[Float[Array, " batch"], Regression]:
    """`mean |u + d du/dd - sg target(x + d u, t + d, 0)|^2` of each row, and what it says `u` should be."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=0)
    t, d, cond = draws.t, draws.d, draws.cond
    u, slope = tangents.along_step(field, x, t, d, cond, jvp=jvp)
    slope = per_row(d, x) * slope
    there = jax.lax.stop_gradient(x + per_row(d, x) * u)
    end = jax.lax.stop_gradient(predict(target, there, t + d, jnp.zeros_like(d), cond))
    return row_error(u + slope, end), Regression(x, t, d, cond, jax.lax.stop_gradient(end - slope))


def eulerian_error(
    field: Field, draws: Draws, *, stop_tangent: bool = False, stop_space: bool = True, jvp: tangents.Jvp = jax.jvp
) -> tuple[Float[Array, " batch"], Regression]:
    """`mean |u - v - d Du/Dt|^2` of each row with `v = sg field(x, t, 0)`, and what it says `u` should be."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=0)
    t, d, cond = draws.t, draws.d, draws.cond
    own = jax.lax.stop_gradient(predict(field, x, t, jnp.zeros_like(t), cond))
    if stop_space and not stop_tangent:
        u, slope = tangents.along_path(field, x, t, d, cond, jnp.zeros_like(own), jvp=jvp)
        slope = slope + jax.lax.stop_gradient(tangents.along_space(field, x, t, d, cond, own, jvp=jvp))
    else:
        u, slope = tangents.along_path(field, x, t, d, cond, own, jvp=jvp)
    slope = per_row(d, x) * slope
    rows = Regression(x, t, d, cond, own + jax.lax.stop_gradient(slope))
    return (row_error(u, rows.u) if stop_tangent else row_error(u - slope, own)), rows
