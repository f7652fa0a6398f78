"""Averages of parameters: by a constant decay, by a power of the step, and of any width made afterwards of kept ones.

Weights after update 1, 2, ..., t, averaged with a profile proportional to `tau^gamma` on [0, t], have a width that is a fixed
share `sigma_rel` of the training so far (Karras et al. 2024, Analyzing and Improving the Training Dynamics of Diffusion
Models). Averages of other widths are linear combinations of a few kept ones.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float64, Int, PyTree

from .types import Number

WIDEST = 12**-0.5
"""The relative standard deviation of the plain mean of all weights, `gamma = 0`."""


def update(average: PyTree, online: PyTree, decay: float) -> PyTree:
    """`decay * average + (1 - decay) * online` on every inexact array; other leaves are taken from `average`."""

    def blend(a, b):
        return decay * a + (1 - decay) * b if eqx.is_inexact_array(a) else a

    return jax.tree.map(blend, average, online)


def sigma_rel(gamma: float) -> float:
    """Standard deviation of the profile `tau^gamma` on [0, t], over t: `sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)`."""
    return math.sqrt((gamma + 1) / (gamma + 3)) / (gamma + 2)


def gamma_of(sigma_rel: float) -> float:
    """The exponent `gamma >= 0` of the profile of that relative standard deviation, the inverse of `sigma_rel`.

    Raises ValueError unless it is in (0, 12^-0.5], where there is one.
    """
    if not 0 < sigma_rel <= WIDEST:
        raise ValueError(
            f"sigma_rel {sigma_rel:g} is the width of no average by a power function: use more than 0 and at most 0.2886, the "
            "plain mean"
        )
    # (gamma + 1) = sigma_rel^2 (gamma + 2)^2 (gamma + 3); of its roots the largest is the one that is not negative.
    q = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - q, 12 - q]).real.max()))


def power_rate(t: Int[Array, ""], gamma: float) -> Number:
    """`1 - beta`, the share of the weights after update number `t` = 1, 2, ...: `beta = (1 - 1 / t)^(gamma + 1)`.

    So weights `i` count `(i^(gamma + 1) - (i - 1)^(gamma + 1)) / t^(gamma + 1)` in the average after update `t`, whatever the
    average was before the first.
    """
    # Late in training float32 has few digits of the distance of beta from 1, if it is a difference.
    return -jnp.expm1((gamma + 1) * jnp.log1p(-1 / t.astype(jnp.result_type(float))))


class PowerAverage(eqx.Module):
    """The average of a network's weights of one relative width, which grows with training."""

    network: Any
    sigma_rel: float = eqx.field(static=True)

    def updated(self, online: Any, t: Int[Array, ""]) -> "PowerAverage":
        """The average after update number `t` = 1, 2, ..., which made `online`."""
        rate = power_rate(t, gamma_of(self.sigma_rel))

        def blend(a, b):
            return a + rate.astype(a.dtype) * (b - a) if eqx.is_inexact_array(a) else a

        return PowerAverage(jax.tree.map(blend, self.network, online), self.sigma_rel)


class Profile(NamedTuple):
    """Profiles `p(tau) = (gamma + 1) tau^gamma / t^(gamma + 1)` on [0, t], one an entry."""

    t: Float64[np.ndarray, "*n"]
    gamma: Float64[np.ndarray, "*n"]


def inner_product(a: Profile, b: Profile) -> Float64[np.ndarray, "*n"]:
    """`integral p_a(tau) p_b(tau) dtau`, entry by entry, broadcast as NumPy does.

    For `t_a <= t_b` it is `(gamma_a + 1) (gamma_b + 1) / (gamma_a + gamma_b + 1) (t_a / t_b)^gamma_b / t_b`.
    """
    first = a.t <= b.t
    share, exponent = np.where(first, a.t / b.t, b.t / a.t), np.where(first, b.gamma, a.gamma)
    return (a.gamma + 1) * (b.gamma + 1) / (a.gamma + b.gamma + 1) * share**exponent / np.maximum(a.t, b.t)


def combination(kept: Profile, t: float, gamma: float) -> tuple[Float64[np.ndarray, " n"], float]:
    """The combination of kept profiles, at most at `t`, that is nearest to the profile `gamma` at `t` in the mean square.

    Its coefficients, and its distance from the wanted profile over that one's norm. The coefficients have the sum 1, so that
    weights that never move come back as they are (the paper leaves the sum to the least squares, which come to it with many
    snapshots). A profile that was kept comes back with coefficient 1.
    """
    n = kept.t.size
    # In units of t; the last row and column hold the sum at 1.
    scaled = Profile(kept.t / t, kept.gamma)
    wanted = Profile(np.ones(1), np.full(1, gamma))
    products = inner_product(Profile(scaled.t[:, None], scaled.gamma[:, None]), Profile(scaled.t[None], scaled.gamma[None]))
    towards, norm = inner_product(scaled, wanted), inner_product(wanted, wanted)
    system = np.block([[products, np.ones((n, 1))], [np.ones((1, n)), np.zeros((1, 1))]])
    x = np.linalg.lstsq(system, np.append(towards, 1.0), rcond=None)[0][:n]
    left = norm.item() - 2 * x @ towards + x @ products @ x
    return x, math.sqrt(max(0.0, left / norm.item()))


def combined(averages: Iterable[PyTree], coefficients: Sequence[float]) -> PyTree:
    """`sum_i coefficients[i] * averages[i]` on every inexact array, taken one after another; other leaves are the first's."""
    total: PyTree = None
    for average, c in zip(averages, coefficients, strict=True):
        part = jax.tree.map(lambda a, c=float(c): c * a if eqx.is_inexact_array(a) else a, average)
        total = part if total is None else jax.tree.map(lambda a, b: a + b if eqx.is_inexact_array(a) else a, total, part)
    return total
