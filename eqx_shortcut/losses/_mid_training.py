"""Consistency mid-training (CMT, arXiv 2509.24526): every point of a teacher's path is told where the path ends."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from ..rows import check_divides, expand, split_rows
from ..steps import heun_step
from ..types import Batch, Field, Loss, Reduction, Regression, Weigh
from ._regression import regress, weighed


def mid_training(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    teacher: Field,
    rollout: int = 16,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |field(x, t, 1 - t) - (end - x)/(1 - t)|^2` at each of `rollout` points `x` of a path of `teacher` to its `end`.

    Such a path, from the noise and with the condition of each `rollout`-th row, is as many steps of Heun's method
    (`steps.heun_step`); `teacher` answers the velocity, at `d = 0`. Data are not used, and no condition is dropped. An
    initialisation of consistency models and flow maps. Raises ValueError if `rollout` does not divide the batch.
    """
    rows = mid_training_target(teacher, batch, key, rollout=rollout)
    return weighed(regress(field, rows), rows, weigh, reduction)


def mid_training_target(teacher: Field, batch: Batch, key: PRNGKeyArray, *, rollout: int = 16) -> Regression:
    """The regression at all points of the paths, one path after another, each in order."""
    check_divides(batch.x.shape[0], rollout, "rollout")
    (noise, cond), _ = split_rows((batch.noise_from(key), batch.cond), rollout)
    now = jnp.zeros(noise.shape[0], noise.dtype)

    def step(x, t):
        later = heun_step(teacher, x, now + t, now + 1 / rollout, cond, last=t == times[-1])
        return later, x

    times = jnp.arange(rollout, dtype=noise.dtype) / rollout
    end, points = jax.lax.scan(step, noise, times)

    def all_points(a):
        return jnp.repeat(a, rollout, axis=0)

    x = jnp.moveaxis(points, 0, 1).reshape(batch.x.shape)
    t = jnp.tile(times, noise.shape[0])
    u = (all_points(end) - x) / expand(1 - t, x)
    return jax.lax.stop_gradient(Regression(x, t, 1 - t, jax.tree.map(all_points, cond), u))
