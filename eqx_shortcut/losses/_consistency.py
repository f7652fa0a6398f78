"""Consistency models (Song et al. 2023) in velocity form: `x + (1 - t) field(x, t, 1 - t)` is the same all along a path."""

import dataclasses

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, times
from ..rows import expand
from ..steps import clipped, precise, predict, step
from ..types import Batch, Draws, Field, Loss, Number, Reduction, Regression, Weigh
from ._progressive import level_draws
from ._regression import regress, weighed


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

    `target` is an average of `field`; `teacher` knows the velocity at `d = 1/steps` (guide it by `guidance.guided`). `clip`
    limits the teacher's point, in units of `x`. At the exact field the target is exact up to `O(1/steps^2)`, or, where that
    point is cut, up to the cut over `1 - t`. Song et al. (2023), algorithm 2, as in Frans et al. (2024), table 1.
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

    `target` is an average of `field`; `level` rises from 0 to `log2(steps) - 1` over training and may be traced. At the exact
    field the mean gradient vanishes up to `O(g^2 / (1 - t))` for the gap `g = 2^-level`, `O(g)` in the last cell. Song et al.
    (2023), algorithm 3, as in Frans et al. (2024), table 1.
    """
    draws = consistency_draws(batch, key, level=level)
    gap = jnp.exp2(-jnp.asarray(level, draws.t.dtype))
    rows = consistency_training_target(precise(target), draws, gap=gap, floor=floor)
    loss, metrics = weighed(regress(precise(field), rows), rows, weigh, reduction)
    return loss, metrics | {"level": jnp.asarray(level, rows.t.dtype)}


def consistency_draws(batch: Batch, key: PRNGKeyArray, *, level: times.Level) -> Draws:
    """Noise, `t` on the grid of `2^level` sections, and `d = 1 - t`: the whole way to the data."""
    draws = level_draws(batch, key, level=level)
    return dataclasses.replace(draws, d=1 - draws.t)


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
