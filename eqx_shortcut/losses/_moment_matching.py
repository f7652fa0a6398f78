"""Inductive moment matching (Zhou, Ermon, Song 2025): alpha-Flow's target, compared over groups of particles by a kernel."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import times, weights
from ..guidance import Guidance, drop_condition
from ..rows import check_divides, expand
from ..steps import precise, predict
from ..types import Batch, Draws, Field, Loss, Numbers, Reduction, Regression, Weigh
from ._alpha_flow import alpha_flow_target
from ._intervals import velocity_target
from ._regression import weighed


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
    weigh: tuple[Weigh, ...] = (weights.Sigmoid(),),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean k(y, y') + k(z, z') - k(y, z') - k(z, y')` over all pairs of a group: ends of steps agree as sets.

    `particles` rows after one another share `(t, d)`; `y = x + d field(x, t, d)`, and `z = sg` the end of `target`'s step from
    the same line's point at `moment_times`; `k` is the kernel of `moment_error`. The discrepancy vanishes at the exact field
    as groups grow and `z` comes to start near `x`. Raises ValueError if `particles` does not divide the batch. IMM (2025).
    """
    n, (k_pairs, k_noise, k_drop) = batch.x.shape[0], jax.random.split(key, 3)
    check_divides(n, particles, "particles")
    t, d = (jnp.repeat(each, particles) for each in pairs(k_pairs, n // particles, batch.x.dtype))
    draws = Draws(batch.x, batch.noise_from(k_noise), t, d, drop_condition(k_drop, batch.cond, guidance, n))
    share = (moment_times(t, d, halvings=halvings) - t) / jnp.maximum(d, jnp.finfo(d.dtype).tiny)
    rows = alpha_flow_target(precise(target), velocity_target(target, draws), jnp.minimum(share, 1))
    error = moment_error(precise(field), rows, particles=particles, scale=batch.noise_scale)
    loss, metrics = weighed(error, rows, weigh, reduction)
    return loss, metrics | {"error": jnp.mean(error)}


def moment_times(t: Numbers, d: Numbers, *, halvings: int = 12, highest: float = 160.0, least: float = 1e-4) -> Numbers:
    """The time between `t` and `t + d` at which noise over data, `(1 - t)/t`, is less by `highest / 2^halvings`.

    It is at least `least` after `t`, and the end where that comes first.
    """
    gap = highest / 2**halvings
    return jnp.clip(t / jnp.maximum(1 - gap * t, t), t + least, t + d)


def moment_error(field: Field, rows: Regression, *, particles: int, scale: float = 1.0) -> Numbers:
    """What each row has of `mean k(y, y') + k(z, z') - k(y, z') - k(z, y')`, `y = x + d field(x, t, d)`, `z = x + d sg(u)`.

    `k(a, b) = exp(-|a - b| / (d scale D))` for rows of `D` elements, `scale` being the standard deviation of the noise.
    """
    u = predict(field, rows.x, rows.t, rows.d, rows.cond)
    d = expand(jnp.maximum(rows.d, jnp.finfo(rows.d.dtype).eps), u)
    x, u, target = (a.reshape(-1, particles, u[0].size) for a in (rows.x / d, u, jax.lax.stop_gradient(rows.u)))
    # Apart from velocities: of a row and itself nothing is left of the points, which are large beside a short step.
    points = x[:, :, None] - x[:, None]

    def kernel(a, b):
        squares = jnp.sum(jnp.square((points + (a[:, :, None] - b[:, None])) / scale), axis=3)
        return jnp.exp(-jnp.sqrt(jnp.maximum(squares, 1e-16)) / u.shape[2])

    return jnp.mean(kernel(u, u) + kernel(target, target) - kernel(u, target) - kernel(target, u), axis=2).reshape(-1)
