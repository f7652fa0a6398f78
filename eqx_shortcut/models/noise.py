"""Networks that predict the noise of a diffusion path, asked for the velocity of the linear path."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from ..types import Number, Point

LEVELS, FIRST, LAST = 1000, 1e-4, 0.02
"""Levels of noise and the first and last variance added, rising linearly between (Ho et al. 2020), as DiT has them."""

KEPT = np.cumsum(np.log1p(-np.linspace(FIRST, LAST, LEVELS)))
"""Logarithm of the share of the data's variance that is left at each level."""
RATIOS = (KEPT - np.log(-np.expm1(KEPT))) / 2
"""Logarithm of the weight of the data over that of the noise at each level, falling with it."""
TIMES = 1 / (1 + np.exp(-RATIOS))
"""The time of the linear path that has each level's ratio of data to noise: 0.990 to 0.0063."""


def velocity_by_noise(noise_at: Callable[[Point, Number], Point], x: Point, t: Number) -> Point:
    """The velocity at `x` of a network that answers the noise in a point of the diffusion path at a level.

    It is asked at `x` over the root sum of squares of the weights `t` and `1 - t`, at the level of the same ratio; between the
    levels the ratio's logarithm is linear. The velocity is the estimated data less the noise. Times before the last level and
    after the first are taken for theirs: at `t = 0` the level's weight of the data, 0.0064, stands for 0, by which the velocity
    could not be told.
    """
    t = jnp.clip(t, TIMES[-1], TIMES[0])
    norm = jnp.sqrt(t**2 + (1 - t) ** 2)
    ratio = jnp.log(t) - jnp.log1p(-t)
    level = jnp.interp(ratio, jnp.asarray(RATIOS[::-1], t.dtype), jnp.arange(LEVELS - 1, -1, -1, dtype=t.dtype))
    x, data_weight, noise_weight = x / norm.astype(x.dtype), (t / norm).astype(x.dtype), ((1 - t) / norm).astype(x.dtype)
    return (x - (noise_weight + data_weight) * noise_at(x, level).astype(x.dtype)) / data_weight
