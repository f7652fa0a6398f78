"""Classifier-free guidance (Ho and Salimans 2022): training without the condition, sampling beyond it."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from .rows import dealt, parts, where_rows
from .types import Cond, Field


def drop_condition(key: PRNGKeyArray, cond: Cond, null: Cond, rate: float, n: int) -> Cond:
    """`cond` with each of its `n` rows replaced by `null` with probability `rate`.

    `null` is the condition without its batch axis. Raises ValueError if a rate is asked for and `null` is missing.
    """
    if rate == 0.0 or cond is None:
        return cond
    drop = jax.random.bernoulli(key, rate, (n,))
    return where_rows(drop, _null_rows(cond, null, f"dropout={rate}"), cond)


def guided(field: Field, scale: float | Float[Array, ""], null: Cond, *, first: int | None = None, groups: int = 1) -> Field:
    """The field `u(null) + scale (u(cond) - u(null))`, evaluated in one call on both conditions.

    `null` is the condition without its batch axis; `first` guides only that many rows and leaves the others conditional: the
    leading ones, or, of a batch of `groups` equal parts, those dealt first (see `rows.dealt`). Then a batch sharded over
    devices moves no row, and a few more rows are evaluated than guided. A concrete scale of 1 is the conditional field itself,
    of 0 the unconditional one: no second evaluation.
    """
    if first == 0 or (isinstance(scale, float | int) and scale == 1):
        return field

    def unconditional(x, t, d, cond):
        return field(x, t, d, _null_rows(cond, null, "guidance"))

    def all_rows(x, t, d, cond):
        twice = _interleave((x, t, d, cond), (x, t, d, _null_rows(cond, null, f"guidance={scale}")))
        both = field(*twice)
        both = both.reshape(x.shape[0], 2, *both.shape[1:])
        return _extrapolate(both[:, 0], both[:, 1], scale)

    def some_rows(x, t, d, cond):
        n = x.shape[0]
        chosen = (dealt(np.arange(n), groups) < first).reshape(parts(n, groups), -1)
        width, count = chosen.shape[1], int(np.max(np.nonzero(chosen)[1])) + 1
        split = jax.tree.map(lambda a: a.reshape(*chosen.shape, *a.shape[1:]), (x, t, d, cond))
        lead = jax.tree.map(lambda a: a[:, :count], split)
        lead = (*lead[:3], _null_rows(lead[3], null, f"guidance={scale}"))
        # Joined within each part, so that no row leaves its device.
        joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1).reshape(-1, *a.shape[2:]), split, lead)
        out = field(*joined)
        out = out.reshape(len(chosen), width + count, *out.shape[1:])
        u, u_null = out[:, :count], out[:, width:]
        mask = chosen[:, :count].reshape(*chosen[:, :count].shape, *(1,) * (out.ndim - 2))
        lead = jnp.where(mask, _extrapolate(u, u_null, scale), u)
        return jnp.concatenate([lead, out[:, count:width]], axis=1).reshape(n, *out.shape[2:])

    if first is not None:
        return some_rows
    return unconditional if isinstance(scale, float | int) and scale == 0 else all_rows


def _extrapolate(u, u_null, scale):
    return u_null + scale * (u - u_null)


def _interleave(a, b):
    # Stacked on a new axis, so that a batch sharded over devices is doubled without moving a row.
    return jax.tree.map(lambda p, q: jnp.stack([p, q], axis=1).reshape(-1, *p.shape[1:]), a, b)


def _null_rows(cond: Cond, null: Cond, asked: str) -> Cond:
    if jax.tree.structure(cond) != jax.tree.structure(null):
        raise ValueError(
            f"{asked} needs `null`, the condition without its batch axis, of the structure {jax.tree.structure(cond)}; "
            f"found {jax.tree.structure(null)}"
        )
    return jax.tree.map(lambda c, n: jnp.broadcast_to(jnp.asarray(n, c.dtype), c.shape), cond, null)
