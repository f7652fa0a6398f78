"""Tangents of a field: its derivative along the path, exact or by finite differences."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from .steps import precise, predict
from .types import Cond, Field, Numbers, Points

Jvp = Callable[[Callable[..., Any], tuple[Any, ...], tuple[Any, ...]], tuple[Any, Any]]
"""`jax.jvp`, or another function from `(function, primals, tangents)` to its value and its derivative along the tangents."""


def along_path(
    field: Field, x: Points, t: Numbers, d: Numbers, cond: Cond, v: Points, *, jvp: Jvp = jax.jvp
) -> tuple[Points, Points]:
    """`u = field(x, t, d, cond)` and its derivative `Du/Dt = v . du/dx + du/dt - du/dd` with the end `t + d` held fixed.

    One pass with the tangent `(v, 1, -1)` (Geng et al. 2025, in the time of this library).
    """
    return _along(field, (x, t, d), cond, (v, jnp.ones_like(t), -jnp.ones_like(d)), jvp)


def along_space(field: Field, x: Points, t: Numbers, d: Numbers, cond: Cond, v: Points, *, jvp: Jvp = jax.jvp) -> Points:
    """The derivative `v . du/dx` of `u = field(x, t, d, cond)` with times held fixed."""
    return _along(field, (x, t, d), cond, (v, jnp.zeros_like(t), jnp.zeros_like(d)), jvp)[1]


def along_step(field: Field, x: Points, t: Numbers, d: Numbers, cond: Cond, *, jvp: Jvp = jax.jvp) -> tuple[Points, Points]:
    """`u = field(x, t, d, cond)` and its derivative `du/dd` with the start held fixed."""
    field = differentiated(field, jvp)
    return jvp(lambda d: predict(field, x, t, d, cond), (d,), (jnp.ones_like(d),))


def _along(field, point, cond, tangent, jvp):
    """`u` and its derivative along a tangent of `(x, t, d)`."""
    field = differentiated(field, jvp)
    return jvp(lambda x, t, d: predict(field, x, t, d, cond), point, tangent)


def differentiated(field: Field, jvp: Jvp) -> Field:
    """`field` as `jvp` has to be given it: `jax.jvp` as it is, a difference of answers its `steps.precise` view."""
    return field if jvp is jax.jvp else precise(field)


def finite_difference(step: float = 0.005) -> Jvp:
    """A `jax.jvp` by central differences, for kernels that have no tangents: `(f(p + step v) - f(p - step v)) / (2 step)`.

    Two evaluations more than the value, at times and step sizes up to `step` outside of their range. The error is
    `O(step^2)` plus rounding over `step`: `along_path`, `along_step` and the losses ask a field that can in float32.
    """

    def jvp(function, primals, tangents):
        def at(h):
            return function(*jax.tree.map(lambda p, v: p + h * v, primals, tangents))

        slope = jax.tree.map(lambda later, before: (later - before) / (2 * step), at(step), at(-step))
        return function(*primals), slope

    return jvp
