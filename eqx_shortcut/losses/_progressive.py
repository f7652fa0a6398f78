"""Progressive distillation (Salimans and Ho 2022): one step of the student equals two of its teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, times
from ..steps import two_steps
from ..types import Batch, Draws, Field, Loss, Reduction, Regression, Weigh
from ._regression import regress, weighed


def progressive_distillation(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    teacher: Field,
    level: times.Level,
    clip: float | None = 4.0,
    floor: float = 1e-5,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |field(x_t, t, d) - two half steps of teacher|^2` at the one step size `d = 2^-level` of the stage.

    `level` falls from `log2(steps) - 1` to 0 over training, and the teacher is renewed each time: it is asked at `d/2`, which
    it learnt in the stage before. Guide it by `guidance.guided` in the first stage alone: later teachers contain that. `level`
    and the scale may be traced. `clip` limits the point between the halves, in units of `x`; a point of the exact path beyond
    is moved to it, and the target by as much as the answers differ there. Salimans and Ho (2022), algorithm 2, on the linear
    path, as in Frans et al. (2024), table 1.
    """
    draws = level_draws(batch, key, level=level)
    rows = progressive_target(teacher, draws, clip=clip, floor=floor)
    loss, metrics = weighed(regress(field, rows), rows, weigh, reduction)
    return loss, metrics | {"level": jnp.asarray(level, rows.t.dtype)}


def level_draws(batch: Batch, key: PRNGKeyArray, *, level: times.Level) -> Draws:
    """Noise (the batch's own if it has one), `t` on the grid of `2^level` sections, `d = 2^-level`, conditions kept."""
    k_time, k_noise = jax.random.split(key)
    n, dtype = batch.x.shape[0], batch.x.dtype
    sections = jnp.broadcast_to(2 ** jnp.asarray(level), (n,))
    t = times.grid(k_time, sections, dtype)
    return Draws(batch.x, batch.noise_from(k_noise), t, 1 / sections.astype(dtype), batch.cond)


def progressive_target(teacher: Field, draws: Draws, *, clip: float | None = 4.0, floor: float = 1e-5) -> Regression:
    """The regression on two half steps of the teacher from the point at `t`; the result is not clipped."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=floor)
    u = two_steps(teacher, x, draws.t, draws.d, draws.cond, clip=clip)
    return Regression(x, draws.t, draws.d, draws.cond, u)
