"""One step equals two half steps: shortcut models (Frans et al. 2024) and progressive distillation (Salimans and Ho 2022)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import paths, times
from ..guidance import Guidance
from ..rows import check_share, interleaved, merge_rows, split_rows
from ..steps import clipped, two_steps
from ..types import Batch, Draws, Field, Loss, Reduction, Regression, Weigh
from ._flow_matching import flow_draws, flow_target
from ._regression import regress, weighed, weighed_both


def shortcut(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    target: Field,
    steps: int = 128,
    bootstrap_every: int = 8,
    guidance: Guidance | None = None,
    dt_bias: bool = False,
    clip: float | None = 4.0,
    floor: float = 1e-5,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """Flow matching at `d = 1/steps`, and `field(x, t, d) = two half steps of target` at `d = 2/steps, ..., 1/2, 1`.

    Every `bootstrap_every`-th row bootstraps, the others learn flow matching, and all weigh the same. Rows must come in random
    order: a batch whose labels alternate would bootstrap one of them alone. `guidance` of a scale other than 1 guides the
    bootstrap rows of smallest `d`, from which larger `d` inherit it: step sizes are then interleaved over `times.level_groups`
    groups of rows, which keeps guided rows on their devices. With `all_steps` it guides those of every `d` anew. Conditions
    drop in flow rows alone. `dt_bias` favours large steps. `clip` limits the middle point and the target, as in the reference.

    Raises ValueError if `steps` is not a power of two, `bootstrap_every` does not divide the batch or is below 2, or the
    bootstrap rows do not hold all of the `log2(steps)` step sizes. Frans et al. (2024), eq. 5 and algorithm 1.
    """
    n = batch.x.shape[0]
    check_strata(n, steps, bootstrap_every, dt_bias=dt_bias)
    groups, guided_rows = 1, None
    if guidance is not None and guidance.inside and not guidance.all_steps:
        groups = times.level_groups(n // bootstrap_every, steps)
        guided_rows = times.finest_rows(n // bootstrap_every, steps, bias=dt_bias)
    first, rest = shortcut_draws(
        batch, key, steps=steps, bootstrap_every=bootstrap_every, guidance=guidance, dt_bias=dt_bias, groups=groups
    )
    bootstrap = bootstrap_target(
        target, first, guidance=guidance, guided_rows=guided_rows, groups=groups, clip=clip, floor=floor
    )
    rows = merge_rows(bootstrap, flow_target(rest, floor=floor), bootstrap_every)
    return weighed_both(regress(field, rows), rows, bootstrap_every, weigh, reduction)


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
    and the scale may be traced. `clip` limits the point between the halves. Salimans and Ho (2022), algorithm 2, on the linear
    path, as in Frans et al. (2024), table 1.
    """
    draws = level_draws(batch, key, level=level)
    rows = progressive_target(teacher, draws, clip=clip, floor=floor)
    loss, metrics = weighed(regress(field, rows), rows, weigh, reduction)
    return loss, metrics | {"level": jnp.asarray(level, rows.t.dtype)}


def shortcut_draws(
    batch: Batch,
    key: PRNGKeyArray,
    *,
    steps: int,
    bootstrap_every: int,
    guidance: Guidance | None = None,
    dt_bias: bool = False,
    groups: int = 1,
) -> tuple[Draws, Draws]:
    """Draws of the bootstrap rows (strata of `d` by `times.dyadic_levels`, conditions kept) and of the flow rows.

    The strata stand one after the other, or are interleaved over `groups` equal parts of the rows (see `rows.interleaved`).
    Every row of the batch is used once. (The reference uses its first rows twice and its last rows never.)
    """
    k_time, k_noise, k_flow = jax.random.split(key, 3)
    # Drawn for all rows at once: the generator is a large program, and compiled a second time it would be an eighth of all.
    batch = dataclasses.replace(batch, noise=batch.noise_from(k_noise))
    first, rest = split_rows(batch, bootstrap_every)
    n, dtype = first.x.shape[0], first.x.dtype
    sections = jnp.asarray(2 ** interleaved(times.dyadic_levels(n, steps, bias=dt_bias), groups))
    t = times.grid(k_time, sections, dtype)
    bootstrap = Draws(first.x, first.noise, t, 1 / sections.astype(dtype), first.cond)
    return bootstrap, flow_draws(rest, k_flow, steps=steps, guidance=guidance)


def level_draws(batch: Batch, key: PRNGKeyArray, *, level: times.Level) -> Draws:
    """Noise (the batch's own if it has one), `t` on the grid of `2^level` sections, `d = 2^-level`, conditions kept."""
    k_time, k_noise = jax.random.split(key)
    n, dtype = batch.x.shape[0], batch.x.dtype
    sections = jnp.broadcast_to(2 ** jnp.asarray(level), (n,))
    t = times.grid(k_time, sections, dtype)
    return Draws(batch.x, batch.noise_from(k_noise), t, 1 / sections.astype(dtype), batch.cond)


def bootstrap_target(
    target: Field,
    draws: Draws,
    *,
    guidance: Guidance | None = None,
    guided_rows: int | None = None,
    groups: int = 1,
    clip: float | None = 4.0,
    floor: float = 1e-5,
) -> Regression:
    """`progressive_target` of `target`, its answer limited to `[-clip, clip]`, too.

    `guidance` guides the first `guided_rows` rows (None: all), as interleaved over `groups`, in both halves.
    """
    teacher = target if guidance is None else guidance.of(target, first=guided_rows, groups=groups)
    rows = progressive_target(teacher, draws, clip=clip, floor=floor)
    return dataclasses.replace(rows, u=clipped(rows.u, clip))


def progressive_target(teacher: Field, draws: Draws, *, clip: float | None = 4.0, floor: float = 1e-5) -> Regression:
    """The regression on two half steps of the teacher from the point at `t`; the result is not clipped."""
    x, _ = paths.linear(draws.noise, draws.x, draws.t, floor=floor)
    u = two_steps(teacher, x, draws.t, draws.d, draws.cond, clip=clip)
    return Regression(x, draws.t, draws.d, draws.cond, u)


def check_strata(n: int, steps: int, bootstrap_every: int, *, dt_bias: bool = False) -> None:
    """Raise ValueError, with the remedy, if `n` rows cannot hold every step size."""
    levels, needed = times.log2_steps(steps), times.rows_of_all_levels(steps, bias=dt_bias)
    check_share(n, bootstrap_every, shares=needed)
    rows = n // bootstrap_every
    if rows < needed:
        held = sorted({2**level for level in times.dyadic_levels(rows, steps, bias=dt_bias).tolist()})
        trained = ", ".join(f"1/{k}" if k > 1 else "1" for k in held)
        raise ValueError(
            f"batch {n} with bootstrap_every={bootstrap_every}{' and dt_bias' * dt_bias} has {rows} bootstrap rows for the "
            f"{levels} step sizes of steps={steps}, and would train d = {trained} "
            f"alone: use a batch of at least {needed * bootstrap_every}, a smaller bootstrap_every,"
            f"{' no dt_bias,' * dt_bias} or fewer steps"
        )
