"""Losses on data whose velocity and flow map are known: one Gaussian, and a mixture of Gaussians (curved paths)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch, losses, paths, steps
from eqx_shortcut.rows import rows
from eqx_shortcut.types import Draws

MEAN, SPREAD = np.array([[0.7, -0.4, 1.5]]), np.array([[0.3, 1.0, 0.6]])
pytestmark = pytest.mark.usefixtures("x64")


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


def test_the_field_tends_to_the_velocity():
    x, t = jnp.linspace(-2, 2, 9).reshape(3, 3), jnp.array([0.0, 0.3, 0.9])
    u = gaussian_field(MEAN, SPREAD)(x, t, jnp.full(3, 1e-6), None)
    np.testing.assert_allclose(u, gaussian_velocity(MEAN, SPREAD)(x, t, t, None), atol=1e-5)


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


# Bootstrap targets: two exact half steps are one exact step


def bootstrap_residual(field, batch: Batch, key) -> float:
    """Largest `|target - field|` over the bootstrap rows of a batch, every step size from 1/64 to 1 among them."""
    draws, _ = losses.shortcut_draws(batch, key, steps=128, bootstrap_every=2)
    assert np.unique(draws.d).size == 7
    target = losses.bootstrap_target(field, draws, clip=None, floor=0)
    return float(jnp.abs(target.u - field(target.x, target.t, target.d, target.cond)).max())


def test_bootstrap_targets_are_exact_on_a_gaussian(key):
    assert bootstrap_residual(gaussian_field(MEAN, SPREAD), gaussian_batch(key), key) < 1e-12


def test_bootstrap_targets_are_exact_on_a_mixture(key):
    assert bootstrap_residual(mixture_field, mixture_batch(key), key) < 1e-8


def wrong_two_steps(*, velocity: float = 1.0, time: float = 0.5, length: float = 0.5, mean: float = 0.5):
    """Two half steps with one of their constants changed."""

    def two_steps(field, x, t, d, cond, *, clip):
        first = velocity * field(x, t, length * d, cond)
        second = field(x + rows(d / 2, x) * first, t + time * d, length * d, cond)
        return mean * (first + second)

    return two_steps


WRONG = {
    "second half at t + d": {"time": 1.0},
    "second half at t": {"time": 0.0},
    "velocity of the other sign": {"velocity": -1.0},
    "halves asked at d": {"length": 1.0},
    "sum for mean": {"mean": 1.0},
}


def test_two_steps_rewritten_keeps_the_law(key, monkeypatch):
    monkeypatch.setattr("eqx_shortcut.losses._shortcut.two_steps", wrong_two_steps())
    assert bootstrap_residual(gaussian_field(MEAN, SPREAD), gaussian_batch(key), key) < 1e-12


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
@pytest.mark.parametrize("data", ["gaussian", "mixture"])
def test_a_planted_error_breaks_the_bootstrap_law(key, monkeypatch, data, wrong):
    monkeypatch.setattr("eqx_shortcut.losses._shortcut.two_steps", wrong_two_steps(**wrong))
    if data == "gaussian":
        assert bootstrap_residual(gaussian_field(MEAN, SPREAD), gaussian_batch(key), key) > 1e-2
    else:
        assert bootstrap_residual(mixture_field, mixture_batch(key), key) > 1e-2


def test_the_whole_loss_vanishes_on_bootstrap_rows(key):
    field = gaussian_field(MEAN, SPREAD)
    _, metrics = losses.shortcut(field, gaussian_batch(key), key, target=field, bootstrap_every=2, clip=None, floor=0)
    assert float(metrics["loss_bootstrap"]) < 1e-24
    assert float(metrics["loss_flow"]) > 0.1


def test_one_exact_step_is_two(key):
    field, batch = gaussian_field(MEAN, SPREAD), gaussian_batch(key, 3)
    t, d = jnp.array([0.0, 0.1, 0.37]), jnp.array([1.0, 0.5, 0.21])
    once = steps.step(field, batch.x, t, d, None)
    twice = steps.step(field, steps.step(field, batch.x, t, d / 3, None), t + d / 3, 2 * d / 3, None)
    np.testing.assert_allclose(once, twice, atol=1e-13)


# Flow matching: the gradient vanishes in the mean over noise and data

M, S = 0.7, 0.4


def perturbed(field):
    """`field + p0 + p1 x + p2 t`: the gradient by `p` is the mean of twice the error times `1, x, t`."""

    def of(p):
        return lambda x, t, d, cond: field(x, t, d, cond) + p[0] + p[1] * x + p[2] * rows(t, x)

    return of


def expected_gradient(field, sections: int) -> np.ndarray:
    """Mean gradient of the flow-matching rows at `p = 0`, exact: Gauss-Hermite over noise and data, all grid times."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(8)
    weights = weights / weights.sum()
    noise, data, t = (a.ravel() for a in np.meshgrid(nodes, M + S * nodes, np.arange(sections) / sections, indexing="ij"))
    weight = np.einsum("i,j,k->ijk", weights, weights, np.full(sections, 1 / sections)).ravel()
    data, noise = jnp.asarray(data)[:, None], jnp.asarray(noise)[:, None]
    draws = Draws(data, noise, jnp.asarray(t), jnp.full(t.shape, 1 / sections))
    target = losses.flow_target(draws, floor=0)
    return np.asarray(jax.grad(lambda p: jnp.sum(weight * losses.regress(perturbed(field)(p), target)))(jnp.zeros(3)))


def test_the_exact_velocity_has_no_mean_gradient():
    np.testing.assert_allclose(expected_gradient(gaussian_velocity(M, S), 32), 0, atol=1e-12)


def test_bias_of_the_finest_step_is_of_first_order():
    bias = [expected_gradient(gaussian_field(M, S), n) for n in (32, 64, 128)]
    assert np.abs(bias[0]).max() > 1e-3
    largest = np.argmax(np.abs(bias[0]))
    ratios = [bias[i][largest] / bias[i + 1][largest] for i in range(2)]
    np.testing.assert_allclose(ratios, 2, rtol=0.1)
    assert abs(ratios[1] - 2) < abs(ratios[0] - 2)


def per_row_gradient(loss):
    """Mean and standard error over rows of the gradient of `loss(p)`, one value a row, at `p = 0`."""
    gradient = np.asarray(jax.jit(jax.jacfwd(loss))(jnp.zeros(3)))
    return gradient.mean(axis=0), gradient.std(axis=0) / np.sqrt(len(gradient))


def monte_carlo_gradient(method: str, key, field, n: int = 65536, sections: int = 4096):
    k_data, k_loss = jax.random.split(key)
    batch = Batch(M + S * jax.random.normal(k_data, (n, 1), dtype=float))

    def loss(p):
        options = {"steps": sections, "floor": 0, "reduction": None}
        if method == "flow_matching":
            return losses.flow_matching(perturbed(field)(p), batch, k_loss, **options)[0]
        return losses.shortcut(perturbed(field)(p), batch, k_loss, target=field, clip=None, **options)[0]

    return per_row_gradient(loss)


@pytest.mark.parametrize("method", ["flow_matching", "shortcut"])
def test_mean_gradient_vanishes_at_the_exact_field(key, method):
    mean, error = monte_carlo_gradient(method, key, gaussian_field(M, S))
    assert np.all(error < 0.01)
    assert np.all(np.abs(mean) < 4.5 * error)


@pytest.mark.parametrize("method", ["flow_matching", "shortcut"])
def test_mean_gradient_sees_another_field(key, method):
    mean, error = monte_carlo_gradient(method, key, gaussian_field(M, 1.3 * S))
    assert np.any(np.abs(mean) > 10 * error)


def reversed_velocity(noise, x, t, *, floor):
    point, velocity = linear(noise, x, t, floor=floor)
    return point, -velocity


def reversed_time(noise, x, t, *, floor):
    return linear(noise, x, 1 - t, floor=floor)


def late_time(noise, x, t, *, floor):
    return linear(noise, x, 0.95 * t, floor=floor)


linear = paths.linear


@pytest.mark.parametrize("wrong", [reversed_velocity, reversed_time, late_time])
def test_a_planted_error_breaks_the_flow_law(monkeypatch, wrong):
    monkeypatch.setattr(paths, "linear", wrong)
    assert np.abs(expected_gradient(gaussian_velocity(M, S), 32)).max() > 1e-2
