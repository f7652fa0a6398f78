"""Alpha-Flow (Zhang et al. 2025) and its relatives: a step of share `alpha` and a step of the rest."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import tangents, times
from ..guidance import Guidance
from ..steps import clipped, precise, split_steps
from ..types import Batch, Cond, Field, Metrics, Regression
from ._mean_flow import mean_flow_target
from ._pairs import bootstrap_and_flow, velocity_target
from ._regression import Reduction, Weight, regress

SOLUTION_TIMES = partial(times.logit_normal, mean=0.2)
"""SoFlow's times of rows of `d = 0`."""


def alpha_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    alpha: float | Float[Array, ""],
    bootstrap_every: int = 4,
    pairs: times.Pairs = times.logit_normal_pairs,
    velocity_times: times.Times | None = None,
    guidance: Guidance | None = None,
    null: Cond = None,
    dropout: float = 0.0,
    clip: float | None = None,
    jvp: tangents.Jvp = jax.jvp,
    per_alpha: bool = True,
    power: float = 1.0,
    eps: float | Float[Array, ""] = 0.01,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`mean |u - sg(alpha v + (1 - alpha) target(x + alpha d v, t + alpha d, (1 - alpha) d))|^2` with `u = field(x, t, d)`.

    From flow matching of the trajectory at `alpha = 1` to MeanFlow at 0, where the target is `v + d Du/Dt` by `jvp`; `alpha`
    may be traced (`times.sigmoid_fall` of the progress). `target` is an average of `field`, or `field` itself; it also guides
    `v`. One row in `bootstrap_every` is such a row, the others have `d = 0` and regress `v`. `clip` limits the target, in
    units of `x`: a target is a line's velocity among others, and where one beyond the limit is cut the bias is `O(1/alpha)`.
    Both fields are asked for such rows in float32 if they can (`steps.precise`).

    With `per_alpha` errors are measured in units of `alpha`: a row weighs `1/alpha 1/sg(error/alpha^2 + eps)^power`, the
    error being its summed square, and its gradient tends to MeanFlow's as `alpha` falls. (The paper's weight
    `alpha/(error + c)` is `eps = c/alpha^2`; it lets that gradient vanish.) Without, a row weighs `1/sg(error + eps)^power`.
    The rest is as in `mean_flow`. The bias at the exact field is `O(alpha)` with `power=0`. Zhang et al. (2025).
    """

    def build(draws):
        lines = velocity_target(target, draws, guidance=guidance, null=null)
        rows = alpha_flow_target(precise(target), lines, alpha, clip=clip, jvp=jvp)
        return regress(precise(field), rows), rows

    unit = jnp.where(jnp.asarray(alpha) == 0, 1, alpha) if per_alpha else 1.0
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
        unit=unit,
        power=power,
        eps=eps,
        weight=weight,
    )


def so_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    alpha: float | Float[Array, ""] = 0.002,
    pairs: times.Pairs = times.logit_normal_ends,
    velocity_times: times.Times | None = SOLUTION_TIMES,
    eps: float = 0.01,
    weight: Weight | None = None,
    **options: Any,
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`alpha_flow` at a small `alpha`, without tangent: three rows in four are flow matching, each is weighed by its error.

    `alpha` falls from 0.1 to 0.002 over training (`times.exponential_fall`), the default being the last. A row's error is
    compared with `eps` as a mean over its elements, and rows with a step count half, as in the authors' code, whose gradient of
    these leaves the factor 2 of a square out. `options` are those of `alpha_flow`. SoFlow (2025).
    """
    return alpha_flow(
        field,
        batch,
        key,
        target=target,
        alpha=alpha,
        pairs=pairs,
        velocity_times=velocity_times,
        eps=eps * batch.x[0].size,
        weight=_halved if weight is None else lambda t, d: _halved(t, d) * weight(t, d),
        **options,
    )


def _halved(t, d):
    return jnp.where(d > 0, 0.5, jnp.ones_like(d))


def alpha_flow_target(
    target: Field,
    lines: Regression,
    alpha: float | Float[Array, ""] | Float[Array, " batch"],
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
