"""Fine-tuning of a flow map by a reward on finished samples (MeanFlowNFT): the velocity moves as rewarded samples' lines do."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, samplers, tangents, times
from ..rows import check_groups, expand
from ..steps import velocity_of
from ..types import Batch, Cond, Draws, Field, Loss, Numbers, Points, Reduction
from ._regression import rms

Score = Callable[[Points, Cond], Numbers]
"""From samples and their conditions to how good each is."""


def reward(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    old: Field,
    score: Score,
    steps: int = 4,
    groups: int = 1,
    jvp: tangents.Jvp = jax.jvp,
    reduction: Reduction = "mean",
    **options: Any,
) -> Loss:
    """`reward_error` at a step of size `1/steps` of new lines through samples that `old` draws in `steps` steps.

    `score` says how good finished samples are; only their conditions are taken of the batch. `old` is an average of `field`;
    both give `map_velocity`. `options` are `beta` and `balance` of `reward_error`. Metric: `reward`, the mean score. Raises
    where a score is not finite or all of a set's are equal. MeanFlowNFT (2026).
    """
    n, dtype = batch.x.shape[0], batch.x.dtype
    check_groups(n, groups)
    k_sample, k_line, k_time = jax.random.split(key, 3)
    start, noise = (batch.noise_scale * jax.random.normal(k, batch.x.shape, dtype) for k in (k_sample, k_line))
    x = jax.lax.stop_gradient(samplers.euler(old, start, batch.cond, steps=steps))
    scores = score(x, batch.cond)
    t = times.grid(k_time, jnp.full((n,), steps), dtype)
    draws = Draws(x, noise, t, jnp.full((n,), 1 / steps, dtype), batch.cond)
    _, v = paths.linear(noise, x, t, floor=0)
    own, kept = (map_velocity(f, draws, jvp=jvp) for f in (field, old))
    error = reward_error(own, jax.lax.stop_gradient(kept), v, reward_share(scores, groups), t, **options)
    metrics = {"loss": jnp.mean(error), "reward": jnp.mean(scores), "velocity": rms(own)}
    return error if reduction is None else metrics["loss"], metrics


def map_velocity(field: Field, draws: Draws, *, jvp: tangents.Jvp = jax.jvp) -> Points:
    """`u - d sg(Du/Dt)`, the velocity at `t` that an average over `[t, t + d]` implies; the tangent is along `u` at `d = 0`."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=0)
    own = jax.lax.stop_gradient(velocity_of(field, x, draws.t, draws.cond))
    u, slope = tangents.along_path(field, x, draws.t, draws.d, draws.cond, own, jvp=jvp)
    return u - expand(draws.d, x) * jax.lax.stop_gradient(slope)


def reward_share(scores: Numbers, groups: int = 1) -> Numbers:
    """`1/2 + clip(A, -5, 5)/10`, `A` being scores less their mean over their deviation, each of `groups` sets by itself.

    Raises where a score is not finite or all of a set's are equal.
    """
    sets = scores.reshape(groups, -1)
    sets = eqx.error_if(sets, ~jnp.isfinite(sets).all(), "a reward is not finite: let it give a number for every sample")
    # Not by the deviation: that of equal numbers is their mean's rounding, by which they would be normalised.
    equal = jnp.all(sets == sets[:, :1], axis=1)
    sets = eqx.error_if(sets, equal.any(), "the reward is the same for all samples of a set: nothing is learnt of it")
    away = sets - jnp.mean(sets, axis=1, keepdims=True)
    return (1 / 2 + jnp.clip(away / jnp.std(sets, axis=1, keepdims=True), -5, 5) / 10).reshape(-1)


def reward_error(
    v: Points, old: Points, line: Points, r: Numbers, t: Numbers, *, beta: float = 0.1, balance: bool = True
) -> Numbers:
    """`5/beta (r |e+|^2/w+ + (1 - r) |e-|^2/w-)` with `e+- = (1 - t) (old +- beta (v - old) - line)`, in means over elements.

    `w+- = sg mean |e+-|`, or 1 without `balance`; then it is least at `v = old + E[(2 r - 1) (line - old) | x_t]/beta`.
    """
    axes = tuple(range(1, v.ndim))

    def part(sign):
        error = expand(1 - t, v) * (old + sign * beta * (v - old) - line)
        size = jax.lax.stop_gradient(jnp.mean(jnp.abs(error), axis=axes)) if balance else 1.0
        return jnp.mean(error**2, axis=axes) / jnp.maximum(size, jnp.finfo(v.dtype).eps)

    return 5 / beta * (r * part(1) + (1 - r) * part(-1))
