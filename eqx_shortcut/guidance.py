"""Classifier-free guidance (Ho and Salimans 2022): training without the condition, sampling beyond it."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, PRNGKeyArray

from .rows import expand, interleaved, parts, where_rows
from .steps import predict
from .types import Cond, Field, Number, Numbers, Points

Interval = tuple[float | Number, float | Number]
"""Two times of [0, 1]."""


class Guided(eqx.Module):
    """A condition together with the guidance that the network is told: a scale, and the times at which it holds.

    Wherever a null condition is put in place of this one, `cond` alone is replaced.
    """

    cond: Cond
    scale: Numbers
    start: Numbers
    stop: Numbers


class Scales(NamedTuple):
    """Guidance scales drawn for each row with density `1/scale` between the two, and told to the network by `Guided`.

    With `uniform` the density is uniform. They hold at the times of `interval`; with `intervals` these are drawn and told, too:
    from before `t = 1/2` to after it, both uniform.
    """

    low: float = 1.0
    high: float = 8.0
    intervals: bool = False
    interval: tuple[float, float] = (0.0, 1.0)
    uniform: bool = False


class Guidance(NamedTuple):
    """Classifier-free guidance of a loss: conditions are hidden by chance, and what is learnt is guided by how that answers.

    Each row's condition is replaced by `null`, the condition without its batch axis, with probability `dropout`. MeanFlow and
    its relatives then learn the velocity `scale v + (1 - scale - mix) u_null + mix u_cond` for `t` in `interval`, else `v`: the
    guided one of scale `scale / (1 - mix)`, in one evaluation (Geng et al. 2025). The methods of Frans et al. (2024) guide
    their teacher by `scale`. Numbers, or arrays of one a row.
    """

    null: Cond = None
    dropout: float = 0.0
    scale: float | Number | Numbers | Scales = 1.0
    """1 is none; Scales: each row draws its own, which the network is told (improved MeanFlow)."""
    mix: float | Numbers = 0.0
    interval: tuple[float | Numbers, float | Numbers] = (0.0, 1.0)
    all_steps: bool = False
    """Guide the targets of every step size anew, and not those of the finest alone (shortcut)."""

    @property
    def inside(self) -> bool:
        """Whether targets are guided: unless the scale is 1 and the mix 0, as numbers."""
        return not (_is_number(self.scale, 1) and _is_number(self.mix, 0))

    def of(self, field: Field, *, first: int | None = None, groups: int = 1) -> Field:
        """`guided(field, scale, null, first=first, groups=groups)`; raises ValueError for options that it has no use for."""
        if isinstance(self.scale, Scales) or not _is_number(self.mix, 0) or self.interval != (0.0, 1.0):
            raise ValueError(
                f"scale={self.scale}, mix={self.mix}, interval={self.interval}: this loss guides a field by one number at all "
                "times, leave mix at 0 and interval at (0, 1)"
            )
        return guided(field, self.scale, self.null, first=first, groups=groups)


def draw_guided(key: PRNGKeyArray, cond: Cond, scales: Scales, t: Numbers) -> Guided:
    """`cond` with guidance drawn for each of its rows (as in Geng et al. 2025b, improved MeanFlow)."""
    k_scale, k_start, k_stop = jax.random.split(key, 3)
    ends = jnp.asarray((scales.low, scales.high), t.dtype)
    low, high = ends if scales.uniform else jnp.log(ends)
    scale = jax.random.uniform(k_scale, t.shape, t.dtype, low, high)
    scale = scale if scales.uniform else jnp.exp(scale)
    if not scales.intervals:
        return Guided(cond, scale, *(jnp.full_like(t, end) for end in scales.interval))
    start = jax.random.uniform(k_start, t.shape, t.dtype, 0, 0.5)
    return Guided(cond, scale, start, jax.random.uniform(k_stop, t.shape, t.dtype, 0.5, 1))


def at_scale(field: Field, scale: float | Number, *, interval: Interval = (0.0, 1.0)) -> Field:
    """The field of a network trained with `Guided` conditions, told that scale and interval beside each condition."""

    def conditioned(x, t, d, cond):
        return field(x, t, d, Guided(cond, *(jnp.full_like(t, value) for value in (scale, *interval))))

    return conditioned


def guided_velocity(field: Field, x: Points, t: Numbers, v: Points, cond: Cond, guidance: Guidance | None) -> Points:
    """`v` guided by what `field` answers at `d = 0` with and without its condition (see Guidance); no gradient passes.

    Rows whose condition is the null one keep `v`, and without guidance all rows do. A concrete mix of 0 saves the evaluation
    with the condition. Raises ValueError for `Scales`, which have to be drawn and told first.
    """
    if guidance is None or not guidance.inside:
        return v
    scale, mix, interval = guidance.scale, guidance.mix, guidance.interval
    if isinstance(scale, Scales):
        raise ValueError(f"scale={scale} is told to the network, which improved_mean_flow alone does: name a number")

    def row(value):
        return expand(jnp.broadcast_to(jnp.asarray(value, t.dtype), t.shape), x)

    asked = (x, t, jnp.zeros_like(t))
    nothing = null_rows(cond, guidance.null, "guidance")
    if _is_number(mix, 0):
        mixed = row(scale) * v + row(1 - scale) * predict(field, *asked, nothing)
    else:
        both = predict(field, *_interleave((*asked, cond), (*asked, nothing))).reshape(x.shape[0], 2, *x.shape[1:])
        mixed = row(scale) * v + row(mix) * both[:, 0] + row(1 - scale - mix) * both[:, 1]
    applies = _within(t, interval) & ~_same(cond, nothing, t.shape)
    return where_rows(applies, jax.lax.stop_gradient(mixed), v)


def same_condition(a: Cond, b: Cond, shape: tuple[int, int]) -> Bool[Array, "rows others"]:
    """Whether row `i` of `a` equals row `j` of `b`, as an array of this `shape`; without conditions all rows are equal."""
    return _same(jax.tree.map(lambda p: p[:, None], a), jax.tree.map(lambda q: q[None], b), shape)


def drop_condition(key: PRNGKeyArray, cond: Cond, guidance: Guidance | None, n: int) -> Cond:
    """`cond` with each of its `n` rows replaced by `guidance.null` with probability `guidance.dropout`.

    Raises ValueError if a dropout is asked for and `null` is missing.
    """
    if guidance is None or guidance.dropout == 0.0 or cond is None:
        return cond
    drop = jax.random.bernoulli(key, guidance.dropout, (n,))
    return where_rows(drop, null_rows(cond, guidance.null, f"dropout={guidance.dropout}"), cond)


def check_unguided(guidance: Guidance | None) -> None:
    """Raise ValueError for guidance of targets, where a loss has none to guide."""
    if guidance is not None and guidance.inside:
        raise ValueError(
            f"scale={guidance.scale}, mix={guidance.mix} guide targets, and this loss has no target to guide: leave them at 1 "
            "and 0, and guide samples by guidance.guided"
        )


def guided(
    field: Field,
    scale: float | Number,
    null: Cond,
    *,
    interval: Interval | None = None,
    first: int | None = None,
    groups: int = 1,
) -> Field:
    """The field `u(null) + scale (u(cond) - u(null))`, evaluated in one call on both conditions.

    `null` is the condition without its batch axis. At times outside of `interval` the field is the conditional one
    (Kynkaanniemi et al. 2024). `first` guides that many rows and leaves the others conditional: the leading rows, or those that
    led before the batch was interleaved over `groups` (see `rows.interleaved`). A batch sharded over devices then moves no row,
    and a few more rows are evaluated than guided. A concrete scale of 1 is the conditional field itself, of 0 at all times the
    unconditional one: no second evaluation.
    """
    if first == 0 or _is_number(scale, 1):
        return field

    def all_rows(x, t, d, cond):
        twice = _interleave((x, t, d, cond), (x, t, d, null_rows(cond, null, f"guidance={scale}")))
        both = field(*twice)
        both = both.reshape(x.shape[0], 2, *both.shape[1:])
        extrapolated = _extrapolate(both[:, 0], both[:, 1], scale)
        return extrapolated if interval is None else where_rows(_within(t, interval), extrapolated, both[:, 0])

    def some_rows(x, t, d, cond):
        n = x.shape[0]
        chosen = (interleaved(np.arange(n), groups) < first).reshape(parts(n, groups), -1)
        width, count = chosen.shape[1], int(np.max(np.nonzero(chosen)[1])) + 1
        split = jax.tree.map(lambda a: a.reshape(*chosen.shape, *a.shape[1:]), (x, t, d, cond))
        lead = jax.tree.map(lambda a: a[:, :count], split)
        lead = (*lead[:3], null_rows(lead[3], null, f"guidance={scale}"))
        # Joined within each part, so that no row leaves its device.
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1).reshape(-1, *a.shape[2:]), split, lead)
        out = field(*joined)
        out = out.reshape(len(chosen), width + count, *out.shape[1:])
        u, u_null = out[:, :count], out[:, width:]
        mask = chosen[:, :count] if interval is None else chosen[:, :count] & _within(split[1][:, :count], interval)
        lead = jnp.where(mask.reshape(*mask.shape, *(1,) * (out.ndim - 2)), _extrapolate(u, u_null, scale), u)
        return jnp.concatenate([lead, out[:, count:width]], axis=1).reshape(n, *out.shape[2:])

    if first is not None:
        return some_rows
    return unlabelled(field, null) if _is_number(scale, 0) and interval is None else all_rows


def unlabelled(field: Field, null: Cond) -> Field:
    """The field that is asked with `null`, the condition without its batch axis, in place of every condition."""
    return lambda x, t, d, cond: field(x, t, d, null_rows(cond, null, "guidance"))


def autoguided(field: Field, weak: Field, scale: float | Number = 1.0, *, interval: Interval = (0.0, 1.0)) -> Field:
    """The field `weak + scale (field - weak)` at times of `interval`, else `field`; a concrete scale of 1 is `field` alone.

    `weak` is a worse network of the same data (Karras et al. 2024), or `unlabelled(field, null)`. Where the condition is
    `Guided`, its scale and times are those of its row, and the two fields are told the label alone.
    """

    def velocity(x, t, d, cond):
        here, within = scale, interval
        if isinstance(cond, Guided):
            cond, here, within = cond.cond, expand(cond.scale, x), (cond.start, cond.stop)
        strong = predict(field, x, t, d, cond)
        if _is_number(here, 1):
            return strong
        extrapolated = _extrapolate(strong, predict(weak, x, t, d, cond), here)
        return where_rows(_within(t, within), extrapolated, strong)

    return velocity


def _is_number(value, number):
    return isinstance(value, float | int) and value == number


def _within(t, interval):
    start, stop = interval
    return (t >= start) & (t <= stop)


def _extrapolate(u, u_null, scale):
    return u_null + scale * (u - u_null)


def _interleave(a, b):
    # Stacked on a new axis, so that a batch sharded over devices is doubled without moving a row.
    return jax.tree.map(lambda p, q: jnp.stack([p, q], axis=1).reshape(-1, *p.shape[1:]), a, b)


def _same(a, b, shape):
    same = jnp.ones(shape, bool)
    for p, q in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        same &= jnp.all((p == q).reshape(*shape, -1), axis=-1)
    return same


def null_rows(cond: Cond, null: Cond, asked: str) -> Cond:
    """`null`, the condition without its batch axis, in each row of `cond`; what else a `Guided` one tells is kept.

    Raises ValueError, beginning with what `asked` for it, unless it has the structure and shapes of one condition.
    """
    if isinstance(cond, Guided):
        return Guided(null_rows(cond.cond, null, asked), cond.scale, cond.start, cond.stop)
    if jax.tree.structure(cond) != jax.tree.structure(null):
        raise ValueError(
            f"{asked} needs `null`, the condition without its batch axis, of the structure {jax.tree.structure(cond)}; "
            f"found {jax.tree.structure(null)}"
        )

    def one(c, n):
        if jnp.ndim(n) >= c.ndim or jnp.shape(n) != c.shape[c.ndim - jnp.ndim(n) :]:
            raise ValueError(f"{asked} needs `null` without a batch axis: found {jnp.shape(n)} for conditions {c.shape}")
        return jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape)

    return jax.tree.map(one, cond, null)
