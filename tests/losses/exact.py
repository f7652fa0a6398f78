"""Data whose velocity and flow map are known: one Gaussian, and a mixture of Gaussians (curved paths)."""

import jax
import jax.numpy as jnp
import numpy as np

from eqx_shortcut import Batch, losses
from eqx_shortcut.rows import rows
from eqx_shortcut.types import Draws

MEAN, SPREAD = np.array([[0.7, -0.4, 1.5]]), np.array([[0.3, 1.0, 0.6]])


# One Gaussian, N(mean, spread^2) in each element


def gaussian_scale(t, spread):
    return jnp.sqrt((1 - t) ** 2 + (t * spread) ** 2)


def gaussian_field(mean, spread):
    """The exact average velocity, from the map `x -> (t + d) mean + scale(t + d) / scale(t) (x - t mean)`."""

    def field(x, t, d, cond):
        t, d = rows(t, x), rows(d, x)
        scale = gaussian_scale(t + d, spread) / gaussian_scale(t, spread)
        return ((t + d) * mean + scale * (x - t * mean) - x) / d

    return field


def gaussian_velocity(mean, spread):
    """The average velocity's limit at `d = 0`."""

    def field(x, t, d, cond):
        t = rows(t, x)
        return mean + (t * spread**2 - (1 - t)) / gaussian_scale(t, spread) ** 2 * (x - t * mean)

    return field


def gaussian_batch(key, n: int = 28) -> Batch:
    return Batch(jnp.asarray(MEAN) + jnp.asarray(SPREAD) * jax.random.normal(key, (n, 3), dtype=float))


# A mixture of Gaussians in the plane, its map by Runge-Kutta

CENTRES = np.array([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
WIDTH = 0.4


def mixture_velocity(x, t):
    """`E[x_1 - x_0 | x_t = x]`: the modes' velocities weighed by their posteriors; `x` (n, 2), `t` (n, 1)."""
    scale = (1 - t) ** 2 + (t * WIDTH) ** 2
    offsets = x[:, None] - t[:, None] * CENTRES
    logits = -np.sum(offsets**2, axis=-1) / (2 * scale)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    weights /= weights.sum(axis=1, keepdims=True)
    velocities = CENTRES + ((t * WIDTH**2 - (1 - t)) / scale)[:, None] * offsets
    return np.sum(weights[..., None] * velocities, axis=1)


def mixture_field(x, t, d, cond, cells: int = 400):
    x, t, d = np.asarray(x), np.asarray(t)[:, None], np.asarray(d)[:, None]
    h, y = d / cells, x
    for i in range(cells):
        s = t + i * h
        k1 = mixture_velocity(y, s)
        k2 = mixture_velocity(y + h / 2 * k1, s + h / 2)
        k3 = mixture_velocity(y + h / 2 * k2, s + h / 2)
        k4 = mixture_velocity(y + h * k3, s + h)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return jnp.asarray((y - x) / d)


def mixture_batch(key, n: int = 28) -> Batch:
    k_mode, k_noise = jax.random.split(key)
    centres = jnp.asarray(CENTRES)[jax.random.randint(k_mode, (n,), 0, 3)]
    return Batch(centres + WIDTH * jax.random.normal(k_noise, (n, 2), dtype=float))


# Gradients in the mean over noise and data

M, S = 0.7, 0.4


def perturbed(field):
    """`field + p0 + p1 x + p2 t`: the gradient by `p` is the mean of twice the error times `1, x, t`."""

    def of(p):
        return lambda x, t, d, cond: field(x, t, d, cond) + p[0] + p[1] * x + p[2] * rows(t, x)

    return of


def quadrature(times: np.ndarray, d: float) -> tuple[Draws, jax.Array]:
    """Draws of noise and of data N(M, S^2) on Gauss-Hermite nodes, each at each of the times, and their weights."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    noise, data, t = (jnp.asarray(a.ravel()) for a in np.meshgrid(nodes, M + S * nodes, times, indexing="ij"))
    weight = np.einsum("i,j,k->ijk", weights, weights, np.full(len(times), 1 / len(times)))
    return Draws(data[:, None], noise[:, None], t, jnp.full_like(t, d)), jnp.asarray(weight.ravel())


def mean_gradient(field, target, weight) -> np.ndarray:
    """Mean over weighted rows of the gradient by `p` at `p = 0` of the regression of `perturbed(field)(p)` on `target`."""
    return np.asarray(jax.grad(lambda p: jnp.sum(weight * losses.regress(perturbed(field)(p), target)))(jnp.zeros(3)))


# Planted errors


def wrong_two_steps(*, velocity: float = 1.0, time: float = 0.5, length: float = 0.5, mean: float = 0.5):
    """Two half steps with one of their constants changed."""

    def two_steps(field, x, t, d, cond, *, clip):
        first = velocity * field(x, t, length * d, cond)
        second = field(x + rows(d / 2, x) * first, t + time * d, length * d, cond)
        return mean * (first + second)

    return two_steps


WRONG_TWO_STEPS = {
    "second half at t + d": {"time": 1.0},
    "second half at t": {"time": 0.0},
    "velocity of the other sign": {"velocity": -1.0},
    "halves asked at d": {"length": 1.0},
    "sum for mean": {"mean": 1.0},
}
