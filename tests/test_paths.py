import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import paths

SHAPES = [(), (3,), (2, 3), (2, 1, 3)]


def ends(key, shape):
    return jax.random.normal(key, (2, 5, *shape), dtype=float)


@pytest.mark.parametrize("floor", [0.0, 1e-5, 0.25])
@pytest.mark.parametrize("shape", SHAPES)
def test_linear_runs_from_noise_to_data_plus_the_floor(x64, key, shape, floor):
    noise, x = ends(key, shape)
    start, _ = paths.linear(noise, x, jnp.zeros(5), floor=floor)
    end, _ = paths.linear(noise, x, jnp.ones(5), floor=floor)
    np.testing.assert_array_equal(start, noise)
    np.testing.assert_allclose(end, x + floor * noise, atol=1e-14)


@pytest.mark.parametrize("floor", [0.0, 1e-5, 0.25])
@pytest.mark.parametrize("shape", SHAPES)
def test_velocity_is_the_derivative_of_the_point(x64, key, shape, floor):
    noise, x = ends(key, shape)
    t = jnp.linspace(0, 1, 5)
    point = lambda t: paths.linear(noise, x, t, floor=floor)[0]  # noqa: E731
    _, derivative = jax.jvp(point, (t,), (jnp.ones(5),))
    _, velocity = paths.linear(noise, x, t, floor=floor)
    np.testing.assert_allclose(velocity, derivative, atol=1e-14)


def test_default_floor_is_the_reference_codes(x64):
    end, velocity = paths.linear(jnp.ones((1, 1)), jnp.zeros((1, 1)), jnp.ones(1))
    np.testing.assert_allclose([end[0, 0], velocity[0, 0]], [1e-5, -(1 - 1e-5)], rtol=1e-10)


def test_variance_preserving_weights_are_of_unit_square_and_end_on_the_data(x64):
    a, s = paths.variance_preserving(jnp.linspace(0, 1, 101))
    np.testing.assert_allclose(a**2 + s**2, 1, atol=1e-14)
    np.testing.assert_array_equal([a[-1], s[-1]], [1, 0])
    np.testing.assert_allclose(a[0], 0.0066, atol=5e-5)
    assert np.all(np.diff(a) > 0) and np.all(np.diff(s) < 0)


def test_variance_preserving_decays_at_half_the_linear_schedule(x64):
    t = jnp.linspace(0, 1, 11)
    _, rate = jax.jvp(lambda t: jnp.log(paths.variance_preserving(t)[0]), (t,), (jnp.ones(11),))
    np.testing.assert_allclose(rate, (0.1 + (20 - 0.1) * (1 - t)) / 2, rtol=1e-10)


def test_variance_preserving_is_the_limit_of_ho_s_thousand_steps(x64):
    """Variances 1e-4 to 0.02: the product of `sqrt(1 - beta)` up to a step is `a` where that step ends."""
    a_discrete = np.cumprod(np.sqrt(1 - np.linspace(1e-4, 0.02, 1000)))
    a, _ = paths.variance_preserving(1 - jnp.arange(1, 1001) / 1000)
    np.testing.assert_allclose(a, a_discrete, atol=2e-3)


def test_variance_preserving_noise_near_the_data_keeps_its_digits():
    _, s = paths.variance_preserving(jnp.float32([1 - 2.0**-20]))
    np.testing.assert_allclose(s, np.sqrt(0.1 * 2.0**-20), rtol=1e-3)
