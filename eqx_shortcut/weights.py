"""How much a row's error counts in a loss: functions `(loss, rows) -> loss` of one value a row, applied in turn."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .types import Number, Numbers, Regression, Weigh


@dataclasses.dataclass(frozen=True)
class Adaptive:
    """Times `1 / stop_gradient(error + eps)^power`: with `power` 1 every row pulls alike, with 0 each as hard as it errs.

    Geng et al. (2025). It biases the mean wherever an error is not symmetric about the exact value.
    """

    power: float = 1.0
    eps: float | Number = 0.01
    """Compared with the sum of a row's squared error over its elements, as in the papers."""
    mean: bool = False
    """Compare `eps` with the mean over the elements instead, as SoFlow does."""
    units: bool = True
    """Measure errors of alpha-Flow's steps in units of alpha (see in_units)."""
    unit: float | Numbers = 1.0
    """Errors are measured in its square, and the loss in it: `unit w(loss / unit^2)`."""

    def __call__(self, loss: Numbers, rows: Regression) -> Numbers:
        elements = rows.x[0].size
        eps = jnp.asarray(self.eps * elements if self.mean else self.eps, loss.dtype) / elements
        scaled = loss / jnp.square(self.unit)
        return self.unit * scaled * jax.lax.stop_gradient((scaled + eps) ** -self.power)


@dataclasses.dataclass(frozen=True)
class Steps:
    """Times `weight` in rows with a step above `least`; SoFlow's code halves them, as its gradient leaves a factor 2 out."""

    weight: float
    least: float = 0.0

    def __call__(self, loss: Numbers, rows: Regression) -> Numbers:
        return loss * jnp.where(rows.d > self.least, self.weight, jnp.ones_like(rows.d))


class LogVariance(eqx.Module):
    """`exp(-w) loss + w` with a learned `w(t, d) = sum_jk c_jk cos(pi j t) cos(pi k d) / sqrt(1 + |c|^2)`, 0 at first.

    It is least at `w = log loss`, where its gradient is that of `log loss` (Kendall et al. 2018). The root mean square of `w`
    over uniform `t` and `d` is below 1 and `|w|` below `orders`, whatever the coefficients: an unbounded one grows without
    limit where a field agrees with itself, right or wrong. Karras et al. (2024) bound theirs alike, sinusoids of the noise
    level times a vector of norm 1; the cosines of `t` and `d` are ours.
    """

    coefficients: Float[Array, "orders orders"]

    def __init__(self, orders: int = 8):
        self.coefficients = jnp.zeros((orders, orders))

    def __call__(self, loss: Numbers, rows: Regression) -> Numbers:
        return learned(loss, self.of(rows.t, rows.d))

    def of(self, t: Numbers, d: Numbers) -> Numbers:
        """`w(t, d)` of each row."""
        frequencies = jnp.pi * jnp.arange(self.coefficients.shape[0], dtype=t.dtype)[None]
        of_t, of_d = (jnp.cos(frequencies * values[:, None]) for values in (t, d))
        weights = self.coefficients / jnp.sqrt(1 + jnp.sum(jnp.square(self.coefficients)))
        return jnp.sum((of_t @ weights.astype(t.dtype)) * of_d, axis=1)


def learned(loss: Numbers, log_variance: Numbers) -> Numbers:
    """`exp(-w) loss + w` for a learned `w` of each row."""
    return jnp.exp(-log_variance) * loss + log_variance


def sigmoid(loss: Numbers, rows: Regression, *, shift: float = 5.0, power: float = 1.0) -> Numbers:
    """Times `sigmoid(shift - l) dl/dt t^power / (2 (t^2 + (1 - t)^2))` with `l = 2 log(t / (1 - t))`, `power` >= 1."""
    # The same without the logarithm and its slope, which are infinite at both ends.
    t, left, most = rows.t, 1 - rows.t, math.exp(shift)
    signal = t ** (power - 1) if power != 1 else jnp.ones_like(t)
    return loss * most * left * signal / ((most * left**2 + t**2) * (t**2 + left**2))


def in_units(unit: Numbers, weigh: tuple[Weigh, ...]) -> tuple[Weigh, ...]:
    """`weigh` with errors measured in `unit` by each adaptive weight that does not refuse."""
    return tuple(
        dataclasses.replace(weight, unit=unit) if isinstance(weight, Adaptive) and weight.units else weight for weight in weigh
    )
