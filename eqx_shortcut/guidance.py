"""Classifier-free guidance (Ho and Salimans 2022): training without the condition, sampling beyond it."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .rows import where_rows
from .types import Cond, Field


def drop_condition(key: PRNGKeyArray, cond: Cond, null: Cond, rate: float, n: int) -> Cond:
    """`cond` with each of its `n` rows replaced by `null` with probability `rate`.

    `null` is the condition without its batch axis. Raises ValueError if a rate is asked for and `null` is missing.
    """
    if rate == 0.0 or cond is None:
        return cond
    drop = jax.random.bernoulli(key, rate, (n,))
    return where_rows(drop, _null_rows(cond, null, f"dropout={rate}"), cond)


def guided(field: Field, scale: float | Float[Array, ""], null: Cond, *, first: int | None = None) -> Field:
    """The field `u(null) + scale (u(cond) - u(null))`, evaluated in one call on both conditions.

    `null` is the condition without its batch axis; `first` guides only that many leading rows and leaves the others
    conditional. A concrete scale of 1 is the conditional field itself, of 0 the unconditional one: no second evaluation.
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

    def leading_rows(x, t, d, cond):
        lead = jax.tree.map(lambda a: a[:first], (x, t, d, cond))
        lead = (*lead[:3], _null_rows(lead[3], null, f"guidance={scale}"))
        out = field(*jax.tree.map(lambda a, b: jnp.concatenate([a, b]), (x, t, d, cond), lead))
        u, u_null = out[: x.shape[0]], out[x.shape[0] :]
        return jnp.concatenate([_extrapolate(u[:first], u_null, scale), u[first:]])

    if first is not None:
        return leading_rows
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
