"""Losses on sets: one-step samples move towards the data of their condition, and away from other samples (W-Flow, drifting)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..rows import check_groups
from ..steps import step
from ..types import Batch, Cond, Field, Loss, Metrics, Number, Points, Reduction
from ._regression import rms, row_error

Features = Callable[[Float[Array, "rows *shape"]], Any]
"""From rows to the vectors that are compared: an array with one a row, or a PyTree of several such arrays."""
Velocity = Callable[[Float[Array, "n f"], Float[Array, "m f"], Float[Array, "batch f"]], tuple[Float[Array, "n f"], Metrics]]
"""How samples move, and its metrics, from them, the data of their condition and all data of the batch."""


def sinkhorn_flow(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    groups: int = 1,
    features: Features | None = None,
    epsilon: float = 0.05,
    iterations: int = 20,
    exponent: float = 1.0,
    guidance: float = 1.0,
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |phi - sg(phi + V)|^2` of one-step samples' `features`, `V` being `sinkhorn_velocity` with these options.

    The batch is `groups` equal sets of rows after one another, each of one condition (see data.batches); twice as many samples
    are drawn, and each half of a set's serves the other half as the second set. Without `features` rows are compared
    themselves. Metrics: `drift`, the size of `V`, and `marginals`, by how much the plans miss theirs after `iterations`
    iterations. `reduction=None` returns one value a sample. Raises ValueError if `groups` does not divide the batch.
    W-Flow (2026).
    """

    def velocity(samples, data, everything):
        both = jnp.stack(jnp.split(samples, 2))
        options = {"epsilon": epsilon, "iterations": iterations, "exponent": exponent}

        def half(x, others):
            v, error = sinkhorn_velocity(x, data, others, **options)
            if guidance != 1:
                away, _ = sinkhorn_velocity(x, data, everything, **options)
                v = v + (guidance - 1) * away
            return v, error

        v, error = jax.vmap(half)(both, both[::-1])
        return v.reshape(samples.shape), {"drift": rms(v), "marginals": jnp.mean(error)}

    both = features_of_both(field, batch, key, groups=groups, copies=2, features=features)
    return _mean_loss(both, velocity, groups, reduction)


def drifting(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    groups: int = 1,
    features: Features | None = None,
    temperatures: tuple[float, ...] = (0.02, 0.05, 0.2),
    guidance: float = 1.0,
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |phi - sg(phi + V)|^2` of one-step samples' `features`, `V` being the sum of `drifting_velocity` at these
    `temperatures`, each divided by its root mean square.

    Samples flee one another, none itself, and with a `guidance` above 1 also all data of the batch, which weigh
    `(guidance - 1) (n - 1)` together beside the `n` samples. Batch, `features` and the rest are as in `sinkhorn_flow`; the
    metric `drift` is the size of the sum before it is divided. Raises ValueError for a `guidance` below 1, of negative weights.
    Drifting models (2026).
    """
    if guidance < 1:
        raise ValueError(f"guidance={guidance}: data from which samples flee weigh nothing at 1, the least: use 1 or more")

    def velocity(samples, data, everything):
        n, m = samples.shape[0], everything.shape[0]
        others = samples if guidance == 1 else jnp.concatenate([samples, everything])
        counts = jnp.concatenate([jnp.ones(n), jnp.full(len(others) - n, (guidance - 1) * (n - 1) / m)])
        moves = [drifting_velocity(samples, data, others, temperature=r, weights=counts, own=True) for r in temperatures]
        unit = [v / jnp.maximum(rms(v), 1e-12) for v in moves]
        return jnp.sum(jnp.stack(unit), axis=0), {"drift": rms(jnp.sum(jnp.stack(moves), axis=0))}

    both = features_of_both(field, batch, key, groups=groups, copies=1, features=features)
    return _mean_loss(both, velocity, groups, reduction)


def sinkhorn_velocity(
    x: Float[Array, "n f"],
    data: Float[Array, "m f"],
    others: Float[Array, "k f"],
    *,
    epsilon: float = 0.05,
    iterations: int = 20,
    exponent: float = 1.0,
) -> tuple[Float[Array, "n f"], Number]:
    """`V(x) = T_to_data(x) - T_to_others(x)` by `entropic_map`, and the larger error of the two plans.

    The cost is `|x - y|^exponent`, `epsilon` in units of its mean between `x` and `data`. Zero where `others` are the data.
    """
    cost, other_cost = (distances(x, y) ** exponent for y in (data, others))
    options = {"epsilon": epsilon * jnp.mean(cost), "iterations": iterations}
    (to_data, error), (to_others, other_error) = (
        entropic_map(c, y, **options) for c, y in ((cost, data), (other_cost, others))
    )
    return to_data - to_others, jnp.maximum(error, other_error)


def entropic_map(
    cost: Float[Array, "n m"],
    y: Float[Array, "m f"],
    *,
    epsilon: float | Number,
    iterations: int = 20,
    masses: tuple[Float[Array, " n"], Float[Array, " m"]] | None = None,
) -> tuple[Float[Array, "n f"], Number]:
    """`T(x_i) = sum_j P_ij y_j / sum_j P_ij` of the plan `P` that minimises `sum P cost + epsilon KL(P | a b)`, and its error.

    The marginals `a` and `b` are `masses`, equal ones by default, of sum 1. Sinkhorn's iterations in logarithms; rows of `P`
    have their masses in any case, and the error is the sum of what its columns miss. Cuturi (2013).
    """
    n, m = cost.shape
    a, b = (jnp.full(n, 1 / n, cost.dtype), jnp.full(m, 1 / m, cost.dtype)) if masses is None else masses
    log_a, log_b, scaled = jnp.log(a), jnp.log(b), -cost / epsilon

    def iteration(g, _):
        f = -jax.nn.logsumexp(scaled + (g + log_b)[None], axis=1)
        return -jax.nn.logsumexp(scaled + (f + log_a)[:, None], axis=0), None

    g, _ = jax.lax.scan(iteration, jnp.zeros_like(b), length=iterations)
    plan = jax.nn.softmax(scaled + (g + log_b)[None], axis=1)
    missed = jnp.matmul(a, plan, precision="highest") - b
    return jnp.matmul(plan, y, precision="highest"), jnp.sum(jnp.abs(missed))


def drifting_velocity(
    x: Float[Array, "n f"],
    data: Float[Array, "m f"],
    others: Float[Array, "k f"],
    *,
    temperature: float,
    weights: Float[Array, " k"] | None = None,
    own: bool = False,
) -> Float[Array, "n f"]:
    """`V(x_i) = (sum over others of K_i.) sum_j K_ij data_j - (sum over data of K_i.) sum_j K_ij others_j`.

    `K = sqrt(softmax over columns x softmax over rows)` of `-|x_i - y_j| / (s temperature)` over data and others together,
    times the `weights` of others, with `s` the weighted mean distance. Zero where both sets are equal, and its sign changes
    with their places; with `own` the first `n` others are `x` itself, and no sample is compared with itself.
    """
    n, k = x.shape[0], others.shape[0]
    y = jnp.concatenate([others, data])
    w = jnp.concatenate([jnp.ones(k, x.dtype) if weights is None else weights.astype(x.dtype), jnp.ones(len(data), x.dtype)])
    itself = jnp.eye(n, len(y), dtype=bool) & own
    d, counts = distances(x, y), jnp.where(itself, 0, w[None])
    logits = jnp.where(itself, -jnp.inf, -d / (temperature * jnp.sum(d * counts) / jnp.sum(counts)))
    kernel = jnp.sqrt(jax.nn.softmax(logits, axis=1) * jax.nn.softmax(logits, axis=0)) * w[None]
    near, far = kernel[:, k:], kernel[:, :k]
    towards = jnp.sum(far, axis=1, keepdims=True) * jnp.matmul(near, data, precision="highest")
    return towards - jnp.sum(near, axis=1, keepdims=True) * jnp.matmul(far, others, precision="highest")


def distances(x: Float[Array, "n f"], y: Float[Array, "m f"]) -> Float[Array, "n m"]:
    """`|x_i - y_j|`."""
    squares = jnp.sum(x**2, axis=1)[:, None] + jnp.sum(y**2, axis=1)[None]
    return jnp.sqrt(jnp.maximum(squares - 2 * jnp.matmul(x, y.T, precision="highest"), 0))


def one_step(field: Field, noise: Points, cond: Cond) -> Points:
    """The samples `X(noise, 0, 1, cond)`."""
    t = jnp.zeros(noise.shape[0], noise.dtype)
    return step(field, noise, t, jnp.ones_like(t), cond)


def _mean_loss(both: tuple[list[Array], list[Array]], velocity: Velocity, groups: int, reduction: Reduction) -> Loss:
    """The loss of samples that move in each space of `both`, those of `features_of_both`, in the mean over the spaces."""
    errors, metrics = zip(*(_moved(phi, data, velocity, groups) for phi, data in zip(*both, strict=True)), strict=True)
    loss = jnp.mean(jnp.stack(errors), axis=0)
    means = jax.tree.map(lambda *values: jnp.mean(jnp.stack(values)), *metrics)
    return loss if reduction is None else jnp.mean(loss), {"loss": jnp.mean(loss), **means}


def features_of_both(
    field: Field, batch: Batch, key: PRNGKeyArray, *, groups: int, copies: int, features: Features | None
) -> tuple[list[Array], list[Array]]:
    """In each space the features of `copies` samples a row, by groups, and those of the rows.

    Raises ValueError for groups that the batch does not hold, pairs, and features that are not one vector a row.
    """
    n, shape = batch.x.shape[0], batch.x.shape[1:]
    check_groups(n, groups)
    if batch.noise is not None:
        raise ValueError(
            "a loss on sets draws samples of its own, and this batch holds pairs of noise and data: train on the data"
        )

    def repeated(a):
        whole = a.reshape(groups, 1, n // groups, *a.shape[1:])
        return jnp.broadcast_to(whole, (groups, copies, *whole.shape[2:])).reshape(copies * n, *a.shape[1:])

    noise = batch.noise_scale * jax.random.normal(key, (copies * n, *shape), batch.x.dtype)
    x = one_step(field, noise, jax.tree.map(repeated, batch.cond))
    features = flattened if features is None else features
    phis, targets = jax.tree.leaves(features(x)), jax.tree.leaves(jax.lax.stop_gradient(features(batch.x)))
    for phi, data in zip(phis, targets, strict=True):
        if phi.ndim != 2 or data.shape[1:] != phi.shape[1:]:
            raise ValueError(f"features are of shape {phi.shape} for samples, {data.shape} for data: give one vector a row")
    return phis, targets


def _moved(phi, data, velocity, groups):
    """The error of each sample in one space, in which a sample's mean distance to the data of its group is `sqrt(f)`."""
    samples, sets = (a.reshape(groups, -1, a.shape[1]) for a in (jax.lax.stop_gradient(phi), data))
    unit = jnp.mean(jax.vmap(distances)(samples, sets)) / data.shape[1] ** 0.5
    samples, sets, everything = samples / unit, sets / unit, data / unit
    v, metrics = jax.vmap(velocity, in_axes=(0, 0, None))(samples, sets, everything)
    return row_error(phi / unit, (samples + v).reshape(phi.shape)), metrics


def flattened(x: Float[Array, "rows *shape"]) -> Float[Array, "rows f"]:
    """The rows themselves as vectors."""
    return x.reshape(x.shape[0], -1)
