"""Paths between noise and data: the point at time `t`, and its velocity."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from .rows import rows


def linear(
    noise: Float[Array, "batch *shape"], x: Float[Array, "batch *shape"], t: Float[Array, " batch"], *, floor: float = 1e-5
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"]]:
    """Point `(1 - (1 - floor) t) noise + t x` and velocity `x - (1 - floor) noise` of the straight line to the data.

    `floor` is the share of noise left at `t = 1`: 1e-5 in Frans et al. (2024), 0 in the MeanFlow family.
    """
    s = rows(t, x)
    return (1 - (1 - floor) * s) * noise + s * x, x - (1 - floor) * noise


def variance_preserving(t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Weights `(a, s)` of data and noise with `a^2 + s^2 = 1`, from nearly all noise at `t = 0` to all data at `t = 1`.

    The continuous limit of the linear noise schedule of Ho et al. (2020), `log a = -(1 - t)^2 (20 - 0.1) / 4 - (1 - t) 0.1 / 2`
    (Song et al. 2021, eq. 33): `a = 0.0066` at `t = 0`.
    """
    left = 1 - t
    log_a = -(left**2) * (20 - 0.1) / 4 - left * 0.1 / 2
    return jnp.exp(log_a), jnp.sqrt(-jnp.expm1(2 * log_a))
