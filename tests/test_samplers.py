import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import samplers
from eqx_shortcut.rows import rows

MEAN, SPREAD = 0.7, 0.3


def scale(t):
    return jnp.sqrt((1 - t) ** 2 + (t * SPREAD) ** 2)


def average_velocity(x, t, d, cond):
    """Of data N(MEAN, SPREAD^2): the flow map carries `x` to `(t + d) MEAN + scale(t + d) / scale(t) (x - t MEAN)`."""
    t, d = rows(t, x), rows(d, x)
    return ((t + d) * MEAN + scale(t + d) / scale(t) * (x - t * MEAN) - x) / d


def velocity(x, t, d, cond):
    t = rows(t, x)
    return MEAN + (t * SPREAD**2 - (1 - t)) / scale(t) ** 2 * (x - t * MEAN)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 1), (1, 2, 3, 2)])
@pytest.mark.parametrize("steps", [1, 2, 7, 128])
def test_average_velocities_land_on_the_same_point(x64, key, shape, steps):
    noise = jax.random.normal(key, (5, *shape), dtype=float)
    found = samplers.euler(average_velocity, noise, steps=steps)
    np.testing.assert_allclose(found, MEAN + SPREAD * noise, atol=1e-12)


def test_instantaneous_velocities_converge_at_first_order(x64, key):
    noise = jax.random.normal(key, (5, 3), dtype=float)
    error = [jnp.abs(samplers.euler(velocity, noise, steps=n) - MEAN - SPREAD * noise).max() for n in (64, 128, 256)]
    np.testing.assert_allclose([error[0] / error[1], error[1] / error[2]], 2, rtol=0.05)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_steps_start_at_multiples_of_d(steps):
    def field(x, t, d, cond):
        return jnp.stack([t, d], axis=1)

    found = samplers.euler(field, jnp.zeros((3, 2)), steps=steps)
    np.testing.assert_allclose(found, np.tile([(steps - 1) / (2 * steps), 1 / steps], (3, 1)), rtol=1e-6)


def test_one_compilation_serves_every_number_of_steps(key):
    traces = []

    def field(x, t, d, cond):
        traces.append(x.shape)
        return average_velocity(x, t, d, cond)

    sample = jax.jit(lambda noise, steps: samplers.euler(field, noise, steps=steps))
    noise = jax.random.normal(key, (4, 3))
    sample(noise, 1)
    compiled = len(traces)
    for steps in (2, 7, 128):
        np.testing.assert_allclose(sample(noise, steps), MEAN + SPREAD * noise, atol=1e-4)
    assert len(traces) == compiled


def test_conditions_reach_the_field():
    cond = {"shift": jnp.arange(2.0)}
    found = samplers.euler(lambda x, t, d, cond: jnp.zeros_like(x) + rows(cond["shift"], x), jnp.zeros((2, 3)), cond, steps=4)
    np.testing.assert_allclose(found, [[0, 0, 0], [1, 1, 1]])


def test_samples_keep_the_dtype_of_the_noise(key):
    noise = jax.random.normal(key, (2, 3), jnp.bfloat16)
    assert samplers.euler(lambda x, t, d, cond: x.astype(jnp.float32), noise, steps=3).dtype == jnp.bfloat16
