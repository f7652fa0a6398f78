"""Progressive distillation (Salimans and Ho 2022): one step of the student equals two of its teacher."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import paths, times
from ..guidance import guided
from ..steps import two_steps
from ..types import Batch, Cond, Draws, Field, Metrics, Regression
from ._regression import Reduction, Weight, reduce, regress, rms


def progressive_distillation(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    teacher: Field,
    level: times.Level,
    guidance: float | Float[Array, ""] = 1.0,
    null: Cond = None,
    clip: float | None = 4.0,
    floor: float = 1e-5,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`mean |field(x_t, t, d) - two half steps of teacher|^2` at the one step size `d = 2^-level` of the stage.

    `level` falls from `log2(steps) - 1` to 0 over training, and the teacher is renewed each time: it is asked at `d/2`, which
    it learnt in the stage before. `guidance` other than 1 guides the teacher (in the first stage only, later teachers contain
    it) and needs `null`, the condition without its batch axis. Both may be traced. `clip` limits the point between the
    halves, in units of `x`; a point of the exact path beyond is moved to it, and the target by as much as the answers differ
    there. Salimans and Ho (2022), algorithm 2, on the linear path, as in Frans et al. (2024), table 1.
    """
    draws = level_draws(batch, key, level=level)
    rows = progressive_target(teacher, draws, guidance=guidance, null=null, clip=clip, floor=floor)
    loss = reduce(regress(field, rows), rows, weight, reduction)
    return loss, {"loss": jnp.mean(loss), "velocity": rms(rows.u), "level": jnp.asarray(level, rows.t.dtype)}


def level_draws(batch: Batch, key: PRNGKeyArray, *, level: times.Level) -> Draws:
    """Noise (the batch's own if it has one), `t` on the grid of `2^level` sections, `d = 2^-level`, conditions kept."""
    k_time, k_noise = jax.random.split(key)
    n, dtype = batch.x.shape[0], batch.x.dtype
    sections = jnp.broadcast_to(2 ** jnp.asarray(level), (n,))
    t = times.grid(k_time, sections, dtype)
    noise = jax.random.normal(k_noise, batch.x.shape, dtype) if batch.noise is None else batch.noise
    return Draws(batch.x, noise, t, 1 / sections.astype(dtype), batch.cond)


def progressive_target(
    teacher: Field,
    draws: Draws,
    *,
    guidance: float | Float[Array, ""] = 1.0,
    null: Cond = None,
    clip: float | None = 4.0,
    floor: float = 1e-5,
) -> Regression:
    """The regression on two half steps of the (guided) teacher from the point at `t`; the result is not clipped."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=floor)
    u = two_steps(guided(teacher, guidance, null), x, draws.t, draws.d, draws.cond, clip=clip)
    return Regression(x, draws.t, draws.d, draws.cond, u)
