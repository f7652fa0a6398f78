"""Paths between noise and data: the point at time `t`, and its velocity."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from .rows import expand
from .types import Numbers, Points


def linear(noise: Points, x: Points, t: Numbers, *, floor: float = 1e-5) -> tuple[Points, Points]:
    """Point `(1 - (1 - floor) t) noise + t x` and velocity `x - (1 - floor) noise` of the straight line to the data.

    `floor` is the share of noise left at `t = 1`: 1e-5 in Frans et al. (2024), 0 in the MeanFlow family.
    """
    s = expand(t, x)
    return (1 - (1 - floor) * s) * noise + s * x, x - (1 - floor) * noise


def variance_preserving(t: Float[Array, "*shape"]) -> tuple[Float[Array, "*shape"], Float[Array, "*shape"]]:
    """Weights `(a, s)` of data and noise with `a^2 + s^2 = 1`, from nearly all noise at `t = 0` to all data at `t = 1`.

    The continuous limit of the linear noise schedule of Ho et al. (2020), `log a = -(1 - t)^2 (20 - 0.1) / 4 - (1 - t) 0.1 / 2`
    (Song et al. 2021, eq. 33): `a = 0.0066` at `t = 0`.
    """
    left = 1 - t
    log_a = -(left**2) * (20 - 0.1) / 4 - left * 0.1 / 2
    return jnp.exp(log_a), jnp.sqrt(-jnp.expm1(2 * log_a))


def angle(t: Float[Array, "*shape"], std: float) -> Float[Array, "*shape"]:
    """The angle `s` of the trigonometric path with the share of noise of the linear path at `t`: `tan s = (1 - t) / (t std)`.

    From `pi/2` at the noise to 0 at the data.
    """
    return jnp.arctan2(1 - t, t * std)


def trigonometric(noise: Points, x: Points, s: Numbers, *, std: float) -> tuple[Points, Points]:
    """Point `cos(s) x + sin(s) std noise` and velocity `std cos(s) noise - sin(s) x` (Lu and Song 2025)."""
    c, n, noise = expand(jnp.cos(s), x), expand(jnp.sin(s), x), std * noise
    return c * x + n * noise, c * noise - n * x


def trigonometric_scale(s: Float[Array, "*shape"], std: float) -> Float[Array, "*shape"]:
    """The point of the trigonometric path at `s` over that of the linear path, whose time is `t = cos(s) / scale`."""
    return jnp.cos(s) + std * jnp.sin(s)


def trigonometric_velocity(u: Points, x: Points, s: Numbers, *, std: float) -> Points:
    """`F(u) = ((std cos(s) - sin(s)) x - std u) / (cos(s) + std sin(s))` for a velocity `u` of the linear path.

    `x` is the trigonometric path's point. Of a velocity `u`, `F` is the velocity `dx/ds`; of the average velocity of the whole
    way to the data it is the network `std F(x/std, s)` of Lu and Song (2025), with which `cos(s) x - sin(s) F` is those data.
    """
    along = expand(std * jnp.cos(s) - jnp.sin(s), x) * x - std * u
    return along / expand(trigonometric_scale(s, std), x)


def posterior_mean(x: Points, t: Numbers, data: Float[Array, "of *shape"], among: Bool[Array, "batch of"]) -> Points:
    """`E[data | x]` at the linear path's point `x` at `t < 1`, for data uniform on the rows of `data` that `among` admits.

    A softmax of `-|x - t data|^2 / (2 (1 - t)^2)` over them: on a batch its velocity has the mean of the batch's own
    velocities, with less variance.
    """
    points, ends, time = x.reshape(x.shape[0], -1), data.reshape(data.shape[0], -1), t.astype(x.dtype)[:, None]
    # Less |x|^2, which is the same for all data: no array of every point's distance to every datum in every element.
    products = jnp.matmul(points, ends.T, precision="highest")
    logits = (time * products - time**2 * jnp.sum(ends**2, axis=1)[None] / 2) / (1 - time) ** 2
    weights = jax.nn.softmax(jnp.where(among, logits, -jnp.inf), axis=1)
    return jnp.matmul(weights, ends, precision="highest").reshape(x.shape)
