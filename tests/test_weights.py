import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import weights
from eqx_shortcut.types import Regression

ERROR = jnp.array([0.0, 0.5, 2.0])
ROWS = Regression(jnp.zeros((3, 2)), jnp.zeros(3), jnp.array([0.3, 0.2, 0.0]), None, jnp.zeros((3, 2)))


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_adaptive_weights_are_their_power_and_get_no_gradient(power):
    """Of errors that are means over two elements, `eps` beside their sum or beside the mean."""
    for mean, eps in ((False, 0.05), (True, 0.1)):
        weigh = lambda e, mean=mean: weights.Adaptive(power, 0.1, mean=mean)(e, ROWS)  # noqa: E731
        expected = 1 / (ERROR + eps) ** power
        np.testing.assert_allclose(weigh(ERROR), ERROR * expected, rtol=1e-6)
        np.testing.assert_allclose(jax.grad(lambda e: jnp.sum(weigh(e)))(ERROR), expected, rtol=1e-6)  # noqa: B023


def test_errors_measured_in_a_unit_weigh_as_in_that_unit():
    unit, adaptive = jnp.array([1.0, 0.5, 0.1]), weights.Adaptive()
    scaled, other = weights.in_units(unit, (adaptive, half := weights.Steps(0.5)))
    np.testing.assert_allclose(scaled(ERROR, ROWS), unit * adaptive(ERROR / unit**2, ROWS), rtol=1e-6)
    assert other is half
    (refused,) = weights.in_units(unit, (weights.Adaptive(units=False),))
    np.testing.assert_array_equal(refused(ERROR, ROWS), adaptive(ERROR, ROWS))


def test_steps_above_the_least_count_what_they_are_told_and_other_rows_one():
    np.testing.assert_array_equal(weights.Steps(0.5)(ERROR, ROWS), [0.0, 0.25, 2.0])
    np.testing.assert_array_equal(weights.Steps(4.0, least=0.2)(jnp.ones(3), ROWS), [4.0, 1.0, 1.0])


def test_a_learned_weight_is_least_at_the_log_of_the_error():
    error = ERROR[1:]
    slope = jax.grad(lambda w: jnp.sum(weights.learned(error, w)))
    np.testing.assert_allclose(slope(jnp.log(error)), 0, atol=1e-6)
    assert np.all(np.asarray(slope(jnp.log(error) + 0.1)) > 0) and np.all(np.asarray(slope(jnp.log(error) - 0.1)) < 0)
    np.testing.assert_allclose(weights.learned(error, jnp.log(error)), 1 + jnp.log(error), rtol=1e-6)


def test_a_learned_log_variance_is_a_bounded_series_of_cosines_in_both_times_that_starts_at_zero():
    t, d = jnp.array([0.0, 0.3, 1.0]), jnp.array([1.0, 0.2, 0.0])
    found = weights.LogVariance(3)
    np.testing.assert_array_equal(found.of(t, d), np.zeros(3))
    c = np.random.default_rng(0).standard_normal((3, 3)).astype(np.float32)
    series = [c[j, k] * np.cos(np.pi * j * t) * np.cos(np.pi * k * d) for j in range(3) for k in range(3)]
    found = eqx.tree_at(lambda w: w.coefficients, found, jnp.asarray(c))
    np.testing.assert_allclose(found.of(t, d), sum(series) / np.sqrt(1 + np.sum(c**2)), rtol=1e-5)


def test_a_learned_log_variance_stays_small_whatever_its_coefficients():
    """Its root mean square over both times is below 1, its size below the number of orders."""
    t, d = (jnp.asarray(a.ravel(), jnp.float32) for a in np.meshgrid(*[(np.arange(200) + 0.5) / 200] * 2))
    for size in (1.0, 1e4):
        c = jnp.full((8, 8), size)
        w = eqx.tree_at(lambda w: w.coefficients, weights.LogVariance(), c).of(t, d)
        assert float(jnp.sqrt(jnp.mean(w**2))) < 1 and float(jnp.abs(w).max()) < 8
    np.testing.assert_allclose(w.max(), 8, rtol=0.02)  # of all cosines at the corner, at most


def test_a_learned_weight_of_errors_that_vanish_stays_bounded():
    """Descent on `exp(-w) error + w` with an error of 0 at every d > 0, where an unbounded weight falls for ever."""
    t, d = jax.random.uniform(jax.random.key(0), (2, 256))
    error = jnp.where(d > 0.5, 0.0, 1.0)

    def descend(weight, _):
        loss = lambda weight: jnp.mean(weights.learned(error, weight.of(t, d)))  # noqa: E731
        return jax.tree.map(lambda c, g: c - 10 * g, weight, jax.grad(loss)(weight)), None

    weight, _ = jax.lax.scan(descend, weights.LogVariance(), length=500)
    assert 0.5 < float(jnp.abs(weight.of(t, d)).max()) < 8


def test_a_learned_weight_has_the_dtype_of_the_times():
    t = jnp.array([0.25, 0.5], jnp.bfloat16)
    assert weights.LogVariance().of(t, t).dtype == jnp.bfloat16
