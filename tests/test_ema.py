import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import ema

AVERAGE = {"w": jnp.array([1.0, -2.0]), "h": jnp.ones(2, jnp.bfloat16), "count": jnp.array(3), "f": abs, "none": None}
ONLINE = {"w": jnp.array([5.0, 0.0]), "h": jnp.zeros(2, jnp.bfloat16), "count": jnp.array(9), "f": abs, "none": None}


def test_blends_inexact_arrays():
    found = ema.update(AVERAGE, ONLINE, 0.75)
    np.testing.assert_allclose(found["w"], [2.0, -1.5])
    np.testing.assert_allclose(found["h"].astype(float), [0.75, 0.75])
    assert found["h"].dtype == jnp.bfloat16


def test_other_leaves_are_the_averages():
    found = ema.update(AVERAGE, ONLINE, 0.75)
    assert int(found["count"]) == 3 and found["f"] is abs and found["none"] is None


@pytest.mark.parametrize(("decay", "expected"), [(0.0, ONLINE), (1.0, AVERAGE)])
def test_limits(decay, expected):
    np.testing.assert_array_equal(ema.update(AVERAGE, ONLINE, decay)["w"], expected["w"])


def test_distance_to_a_constant_falls_geometrically(x64):
    average, online = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([5.0, 0.0])}
    found = average
    for _ in range(20):
        found = ema.update(found, online, 0.9)
    np.testing.assert_allclose(found["w"] - online["w"], 0.9**20 * (average["w"] - online["w"]), rtol=1e-12)
