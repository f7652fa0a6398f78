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
