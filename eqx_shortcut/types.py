"""The vocabulary of the library on one screen."""

import dataclasses
from collections.abc import Callable
from typing import Literal, Protocol, runtime_checkable

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray, PyTree, Scalar

Point = Float[Array, "*shape"]
"""An array: a datum, noise, what lies between the two, or a velocity."""

Number = Float[Array, ""]
"""A time, a step size, an error; it may be traced."""

Points = Float[Array, "batch *shape"]
"""One array a row."""

Numbers = Float[Array, " batch"]
"""One number a row."""

Cond = PyTree
"""Conditioning: any PyTree of arrays with leading axis `batch` (integer labels, a dict of embeddings, ...), or None."""


def shown(tree: PyTree) -> str:
    """Dtypes and shapes of a PyTree in one line, for sentences: `{'camera': u8[64,64,3], 'state': f32[3]}`."""

    def shape(leaf):
        is_array = hasattr(leaf, "shape") and hasattr(leaf, "dtype")
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_array else leaf

    return eqx.tree_pformat(jax.tree.map(shape, tree), struct_as_array=True, width=10_000)


Metrics = dict[str, Scalar]
"""Scalars made inside a loss or step, `loss` first."""

Loss = tuple[Number | Numbers, Metrics]
"""What a loss answers: the mean over rows, or one value a row without reduction, and its metrics."""

Reduction = Literal["mean"] | None
"""The mean over rows, or None for one value a row."""


@runtime_checkable
class Field(Protocol):
    """Average velocity over `[t, t + d]`: `x + d * field(x, t, d, cond)` is the point at time `t + d`.

    Time runs from noise (`t = 0`) to data (`t = 1`). Anything callable serves: an Equinox module under `jax.vmap`,
    a closure over parameters, another framework's `apply`.
    """

    def __call__(self, x: Points, t: Numbers, d: Numbers, cond: Cond) -> Points: ...


class Batch(eqx.Module):
    """Data `x` at time 1 with their conditioning; `noise` is set when the data are (noise, data) pairs.

    Noise that is drawn for them has the standard deviation `noise_scale`.
    """

    x: Points
    cond: Cond = None
    noise: Points | None = None
    noise_scale: float = eqx.field(static=True, default=1.0)

    def noise_from(self, key: PRNGKeyArray) -> Points:
        """Its own noise if it has one, else normal noise of the shape of `x`."""
        return self.noise_scale * jax.random.normal(key, self.x.shape, self.x.dtype) if self.noise is None else self.noise


class Draws(eqx.Module):
    """Everything random in a regression, row by row: a target builder is a deterministic function of these."""

    x: Points
    noise: Points
    t: Numbers
    d: Numbers
    cond: Cond = None

    def to_data(self) -> "Draws":
        """With the step that ends at the data, `d = 1 - t`."""
        return dataclasses.replace(self, d=1 - self.t)


class Regression(eqx.Module):
    """Inputs `(x, t, d, cond)` of a field and the average velocity `u` it should answer, row by row."""

    x: Points
    t: Numbers
    d: Numbers
    cond: Cond
    u: Points


Weigh = Callable[[Numbers, Regression], Numbers]
"""From what each row counts so far, its mean squared error at first, and its regression to what it counts."""
