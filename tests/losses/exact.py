"""Data whose velocity and flow map are known: one Gaussian, and a mixture of Gaussians (curved paths)."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from eqx_shortcut import Batch, losses
from eqx_shortcut.rows import expand
from eqx_shortcut.types import Draws

MEAN, SPREAD = np.array([[0.7, -0.4, 1.5]]), np.array([[0.3, 1.0, 0.6]])


# One Gaussian, N(mean, spread^2) in each element


def gaussian_scale(t, spread):
    return jnp.sqrt((1 - t) ** 2 + (t * spread) ** 2)


def gaussian_field(mean, spread):
    """The exact average velocity, from the map `x -> (t + d) mean + scale(t + d) / scale(t) (x - t mean)`.

    Written without a division by `d`, so that it and its tangents hold at `d = 0`.
    """

    def field(x, t, d, cond):
        t, d = expand(t, x), expand(d, x)
        here, there = gaussian_scale(t, spread), gaussian_scale(t + d, spread)
        growth = (spread**2 * (2 * t + d) - (2 - 2 * t - d)) / (here + there)  # (there - here) / d
        return mean + growth / here * (x - t * mean)

    return field


def gaussian_velocity(mean, spread):
    """The average velocity's limit at `d = 0`."""

    def field(x, t, d, cond):
        t = expand(t, x)
        return mean + (t * spread**2 - (1 - t)) / gaussian_scale(t, spread) ** 2 * (x - t * mean)

    return field


def gaussian_batch(key, n: int = 28) -> Batch:
    return Batch(jnp.asarray(MEAN) + jnp.asarray(SPREAD) * jax.random.normal(key, (n, 3), dtype=float))


# A mixture of Gaussians in the plane, its map by Runge-Kutta

CENTRES = np.array([[1.5, 0.0], [-1.0, 1.0], [0.0, -1.5]])
WIDTH = 0.4


def mixture_posterior(x, t):
    """Of each mode given `x_t = x`: its share, and the mean of its data; `x` (n, 2), `t` (n, 1)."""
    scale = (1 - t) ** 2 + (t * WIDTH) ** 2
    offsets = x[:, None] - t[:, None] * CENTRES[None]
    shares = jax.nn.softmax(-jnp.sum(offsets**2, axis=-1) / (2 * scale), axis=1)
    return shares, CENTRES[None] + (t * WIDTH**2 / scale)[:, None] * offsets


def mixture_velocity(x, t):
    """`E[x_1 - x_0 | x_t = x]`: the modes' velocities weighed by their posteriors; `x` (n, 2), `t` (n, 1)."""
    scale = (1 - t) ** 2 + (t * WIDTH) ** 2
    shares, _ = mixture_posterior(x, t)
    offsets = x[:, None] - t[:, None] * CENTRES[None]
    velocities = CENTRES[None] + ((t * WIDTH**2 - (1 - t)) / scale)[:, None] * offsets
    return jnp.sum(shares[..., None] * velocities, axis=1)


@functools.partial(jax.jit, static_argnames="cells")
def mixture_field(x, t, d, cond, cells: int = 400):
    """The mean of the velocity along the path, which has tangents and holds at `d = 0`."""
    t, h = t[:, None], d[:, None] / cells

    def cell(i, state):
        y, total = state
        s = t + i * h
        k1 = mixture_velocity(y, s)
        k2 = mixture_velocity(y + h / 2 * k1, s + h / 2)
        k3 = mixture_velocity(y + h / 2 * k2, s + h / 2)
        k4 = mixture_velocity(y + h * k3, s + h)
        k = (k1 + 2 * k2 + 2 * k3 + k4) / 6
        return y + h * k, total + k

    return jax.lax.fori_loop(0, cells, cell, (x, jnp.zeros_like(x)))[1] / cells


def mixture_batch(key, n: int = 28) -> Batch:
    k_mode, k_noise = jax.random.split(key)
    centres = jnp.asarray(CENTRES)[jax.random.randint(k_mode, (n,), 0, 3)]
    return Batch(centres + WIDTH * jax.random.normal(k_noise, (n, 2), dtype=float))


# Gradients in the mean over noise and data

M, S = 0.7, 0.4


def perturbed(field):
    """`field + p0 + p1 x + p2 t`: the gradient by `p` is the mean of twice the error times `1, x, t`."""

    def of(p):
        return lambda x, t, d, cond: field(x, t, d, cond) + p[0] + p[1] * x + p[2] * expand(t, x)

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


# Means over noise and data given the point that their line passes at time t


NODES, SHARES = np.polynomial.hermite_e.hermegauss(3)
SHARES = SHARES / SHARES.sum()


def lines_through(x, t, d, data, shares, cond=None) -> tuple[Draws, jax.Array]:
    """Draws of all `data` (points, lines, ...) whose line passes `x` at `t`, a point after another, and their shares."""
    count = data.shape[1]
    x, t, d, cond = jax.tree.map(lambda a: jnp.repeat(a, count, axis=0), (x, t, d, cond))
    data = data.reshape(x.shape)
    noise = (x - expand(t, x) * data) / expand(1 - t, x)
    return Draws(data, noise, t, d, cond), shares


def gaussian_lines(x, t, d, mean, spread, cond=None):
    """Of data N(mean, spread^2) in each element."""
    s = expand(t, x)
    scale = gaussian_scale(s, spread) ** 2
    centre = mean + s * spread**2 / scale * (x - s * mean)
    width = spread * (1 - s) / jnp.sqrt(scale)
    nodes = NODES.reshape(1, 3, *(1,) * (x.ndim - 1))
    return lines_through(x, t, d, centre[:, None] + width[:, None] * nodes, np.tile(SHARES, (len(x), 1)), cond)


def mixture_lines(x, t, d, cond=None):
    """Of data of the mixture."""
    s = t[:, None]
    modes, centres = mixture_posterior(x, s)
    width = WIDTH * (1 - s) / jnp.sqrt((1 - s) ** 2 + (s * WIDTH) ** 2)
    nodes = np.stack(np.meshgrid(NODES, NODES, indexing="ij"), axis=-1).reshape(1, 1, 9, 2)
    data = centres[:, :, None] + width[:, None, None] * nodes
    shares = modes[:, :, None] * np.outer(SHARES, SHARES).reshape(1, 1, 9)
    return lines_through(x, t, d, data.reshape(len(x), 27, 2), shares.reshape(len(x), 27), cond)


def mean_of(values, shares):
    """The mean over the lines through each point."""
    return jnp.einsum("pl...,pl->p...", values.reshape(*shares.shape, *values.shape[1:]), jnp.asarray(shares))


class Case(NamedTuple):
    """Points with times, step sizes and conditions, the exact field, and the lines through each point."""

    field: Callable
    x: jax.Array
    t: jax.Array
    d: jax.Array
    cond: Any
    draws: Draws
    shares: jax.Array

    def answers(self):
        """What the exact field answers at each point."""
        return self.field(self.x, self.t, self.d, self.cond)

    def in_the_mean(self, u) -> jax.Array:
        """Largest distance of the mean of `u`, one for each line, from the exact field."""
        return jnp.abs(mean_of(u, self.shares) - self.answers()).max()

    def line_by_line(self, u) -> jax.Array:
        """Largest distance of `u`, one for each line, from the exact field."""
        return jnp.abs(u - jnp.repeat(self.answers(), self.shares.shape[1], axis=0)).max()

    def points(self) -> jax.Array:
        """The point of each line."""
        return jnp.repeat(self.x, self.shares.shape[1], axis=0)


TIMES, STEPS = np.array([0.0, 0.1, 0.3, 0.5, 0.6, 0.85]), np.array([1.0, 0.5, 0.7, 0.0, 0.2, 0.1])
CASES = ["scalars", "labels", "dict", "mixture"]


def case_points(name: str) -> jax.Array:
    shape = {"scalars": (), "labels": (3,), "dict": (2, 1, 3), "mixture": (2,)}[name]
    return jnp.asarray(np.random.default_rng(7).standard_normal((6, *shape)))


@functools.cache
def case(name: str, *, to_data: bool = False) -> Case:
    """One of the cases: Gaussians of several ranks and conditions, on which their means depend, or a mixture."""
    return case_at(name, case_points(name), to_data)


def case_at(name: str, x: jax.Array, to_data: bool) -> Case:
    t = jnp.asarray(TIMES)
    d = 1 - t if to_data else jnp.asarray(STEPS)
    if name == "mixture":
        field = functools.partial(mixture_field, cells=100)
        return Case(field, x, t, d, None, *mixture_lines(x, t, d))
    cond = {"scalars": None, "labels": jnp.arange(6), "dict": {"a": jnp.arange(6) % 2, "b": jnp.ones((6, 2))}}[name]

    def mean(cond, x):
        leaves = (jnp.mean(leaf.reshape(len(x), -1).astype(x.dtype), axis=1) for leaf in jax.tree.leaves(cond))
        return expand(M + sum(leaves, jnp.zeros(len(x))) / 3, x)

    def field(x, t, d, cond):
        return gaussian_field(mean(cond, x), S)(x, t, d, None)

    return Case(field, x, t, d, cond, *gaussian_lines(x, t, d, mean(cond, x), S, cond))


def distances(name: str, build, *, to_data: bool = False) -> tuple[float, float]:
    """Largest distances from the exact field of `build(case)`, one answer for each line: in the mean, and line by line."""

    @jax.jit
    def run(x):
        at = case_at(name, x, to_data)
        u = build(at)
        return at.in_the_mean(u), at.line_by_line(u)

    in_the_mean, line_by_line = run(case_points(name))
    return float(in_the_mean), float(line_by_line)


def monte_carlo(loss, *, batches: int, rows: int):
    """From a key and the spread of a field of mean M: mean and standard error over batches of data N(M, S^2) of the gradient of
    `loss(field, batch, key)` by the perturbation of that field."""

    def of(p, key, spread):
        k_data, k_loss = jax.random.split(key)
        batch = Batch(M + S * jax.random.normal(k_data, (rows, 1), dtype=float))
        return loss(perturbed(gaussian_field(M, spread))(p), batch, k_loss)[0]

    gradients = jax.jit(jax.vmap(jax.jacfwd(of), (None, 0, None)))

    def run(key, spread):
        found = np.asarray(gradients(jnp.zeros(3), jax.random.split(key, batches), spread))
        return found.mean(axis=0), found.std(axis=0) / np.sqrt(batches)

    return run


# Planted errors


def wrong_two_steps(*, velocity: float = 1.0, time: float = 0.5, length: float = 0.5, mean: float = 0.5):
    """Two half steps with one of their constants changed."""

    def two_steps(field, x, t, d, cond, *, clip):
        first = velocity * field(x, t, length * d, cond)
        second = field(x + expand(d / 2, x) * first, t + time * d, length * d, cond)
        return mean * (first + second)

    return two_steps


WRONG_TWO_STEPS = {
    "second half at t + d": {"time": 1.0},
    "second half at t": {"time": 0.0},
    "velocity of the other sign": {"velocity": -1.0},
    "halves asked at d": {"length": 1.0},
    "sum for mean": {"mean": 1.0},
}


def wrong_jvp(*tangents: float, slope: float = 1.0):
    """A `jax.jvp` whose tangents, and then whose answer, are multiplied by numbers that should all be 1."""

    def jvp(function, primals, given):
        factors = tangents or (1.0,) * len(given)
        out, found = jax.jvp(function, primals, tuple(f * g for f, g in zip(factors, given, strict=True)))
        return out, jax.tree.map(lambda leaf: slope * leaf, found)

    return jvp


def wrong_place(field, *, time: float = 0.0, step: float = 1.0):
    """The field asked at `t + time d` for `step d`."""
    return lambda x, t, d, cond: field(x, t + time * d, step * d, cond)


WRONG_TANGENTS = {
    "tangent of the other sign": wrong_jvp(slope=-1.0),
    "no tangent": wrong_jvp(slope=0.0),
    "x stands still": wrong_jvp(0.0, 1.0, 1.0),
    "x runs backwards": wrong_jvp(-1.0, 1.0, 1.0),
    "t stands still": wrong_jvp(1.0, 0.0, 1.0),
    "t runs backwards": wrong_jvp(1.0, -1.0, 1.0),
    "d stands still": wrong_jvp(1.0, 1.0, 0.0),
    "d grows": wrong_jvp(1.0, 1.0, -1.0),
}
