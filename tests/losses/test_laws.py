"""Shortcut and flow matching at the exact field: the bootstrap law row by row, the velocity's in the mean."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch, losses, paths, steps
from exact import (
    MEAN,
    SPREAD,
    WRONG_TWO_STEPS,
    M,
    S,
    gaussian_batch,
    gaussian_field,
    gaussian_velocity,
    mean_gradient,
    mixture_batch,
    mixture_field,
    perturbed,
    quadrature,
    wrong_two_steps,
)

pytestmark = pytest.mark.usefixtures("x64")


def test_the_field_tends_to_the_velocity():
    x, t = jnp.linspace(-2, 2, 9).reshape(3, 3), jnp.array([0.0, 0.3, 0.9])
    u = gaussian_field(MEAN, SPREAD)(x, t, jnp.full(3, 1e-6), None)
    np.testing.assert_allclose(u, gaussian_velocity(MEAN, SPREAD)(x, t, t, None), atol=1e-5)


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


def test_two_steps_rewritten_keeps_the_law(key, monkeypatch):
    monkeypatch.setattr("eqx_shortcut.losses._shortcut.two_steps", wrong_two_steps())
    assert bootstrap_residual(gaussian_field(MEAN, SPREAD), gaussian_batch(key), key) < 1e-12


@pytest.mark.parametrize("wrong", WRONG_TWO_STEPS.values(), ids=WRONG_TWO_STEPS.keys())
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


def expected_gradient(field, sections: int) -> np.ndarray:
    """Mean gradient of the flow-matching rows, exact over noise and data, all grid times."""
    draws, weight = quadrature(np.arange(sections) / sections, 1 / sections)
    return mean_gradient(field, losses.flow_target(draws, floor=0), weight)


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
