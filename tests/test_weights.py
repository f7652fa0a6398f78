import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import weights

ERROR = jnp.array([0.0, 0.5, 2.0])


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_adaptive_weights_are_their_power_and_get_no_gradient(power):
    found = weights.adaptive(ERROR, power=power, eps=0.1)
    np.testing.assert_allclose(found, 1 / (ERROR + 0.1) ** power, rtol=1e-6)
    np.testing.assert_array_equal(jax.grad(lambda e: jnp.sum(weights.adaptive(e, power=power)))(ERROR), np.zeros(3))


def test_a_learned_weight_is_least_at_the_log_of_the_error():
    error = ERROR[1:]
    slope = jax.grad(lambda w: jnp.sum(weights.learned(error, w)))
    np.testing.assert_allclose(slope(jnp.log(error)), 0, atol=1e-6)
    assert np.all(np.asarray(slope(jnp.log(error) + 0.1)) > 0) and np.all(np.asarray(slope(jnp.log(error) - 0.1)) < 0)
    np.testing.assert_allclose(weights.learned(error, jnp.log(error)), 1 + jnp.log(error), rtol=1e-6)
