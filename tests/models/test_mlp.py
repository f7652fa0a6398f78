"""The multilayer perceptron: its shapes, what it is told, its tangents."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut.models import MLPConfig, NetworkField

CONFIG = MLPConfig(hidden=8, depth=2, frequencies=4)
AT = jnp.array([0.3, -1.2]), jnp.array(0.4), jnp.array(0.5), jnp.array(1)


@pytest.fixture
def network(key):
    """With a last layer that does not answer 0, as an untrained one does."""
    network = CONFIG.build((2,), 3, key=key)
    return eqx.tree_at(lambda n: n.out.kernel, network, jax.random.normal(key, network.out.kernel.shape))


@pytest.mark.parametrize("shape", [(2,), (2, 3)])
def test_answers_are_of_the_shape_of_examples_and_zero_at_first(key, shape):
    network = CONFIG.build(shape, 3, key=key)
    x, t = jnp.ones((5, *shape)), jnp.linspace(0, 1, 5)
    np.testing.assert_array_equal(NetworkField(network)(x, t, 1 - t, jnp.arange(5) % 4), jnp.zeros_like(x))


def test_time_step_and_label_all_matter_and_the_null_label_is_one_of_them(network):
    x, t, d, label = AT
    answers = [
        network(*at) for at in (AT, (x, t, jnp.array(0.0), label), (x, jnp.array(0.7), d, label), (x, t, d, network.null))
    ]
    assert len({tuple(np.asarray(answer).tolist()) for answer in answers}) == 4
    assert np.isfinite(answers).all() and int(network.null) == 3


def test_held_at_a_step_it_answers_so_at_every_step(network):
    x, t, _, label = AT
    held = network.held_at(0.25)
    for step in (0.0, 0.25, 1.0):
        np.testing.assert_allclose(held(x, t, jnp.array(step), label), network(x, t, jnp.array(0.25), label), rtol=1e-5)
    assert not np.allclose(held(*AT), network(*AT))


def test_the_tangent_is_the_derivative_along_the_path(network):
    x, t, d, label = AT
    along, one, h = jnp.array([1.0, 2.0]), jnp.array(1.0), 1e-2
    _, tangent = jax.jvp(lambda x, t, d: network(x, t, d, label), (x, t, d), (along, one, -one))
    ahead, behind = (network(x + s * along, t + s, d - s, label) for s in (h, -h))
    np.testing.assert_allclose(tangent, (ahead - behind) / (2 * h), rtol=2e-3)


def test_sizes_that_do_not_work_are_refused():
    for options, message in (
        ({"depth": 0}, "depth=0: use 1 or more"),
        ({"frequencies": 5}, "frequencies=5: use an even number"),
    ):
        with pytest.raises(ValueError, match=message):
            MLPConfig(**options)
