"""The multilayer perceptron: its shapes, what it is told, its tangents."""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut.guidance import Guided
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
        network(*at) for at in (AT, (x, t, jnp.array(0.0), label), (x, jnp.array(0.7), d, label), (x, t, d, jnp.array(3)))
    ]
    assert len({tuple(np.asarray(answer).tolist()) for answer in answers}) == 4
    np.testing.assert_array_equal(network(x, t, d, None), answers[-1])
    assert np.isfinite(answers).all()


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


def test_what_it_is_told_of_guidance_matters_and_a_label_alone_tells_of_none(key, network):
    plain = network
    config, rng = dataclasses.replace(CONFIG, guided="interval"), np.random.default_rng(0)
    structure = eqx.filter_eval_shape(lambda key: config.build((2,), 3, key=key), key)
    network = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), jnp.float32), structure)
    x, t, d, label = jax.tree.map(lambda a: a[None], AT)
    numbers = [(1.0, 0.0, 1.0), (3.0, 0.0, 1.0), (3.0, 0.2, 1.0), (3.0, 0.0, 0.7)]
    run = eqx.filter_jit(NetworkField(network))
    told = [run(x, t, d, Guided(label, *jnp.array(n)[:, None])) for n in numbers]
    assert len({tuple(np.asarray(answer[0]).round(4).tolist()) for answer in told}) == 4
    np.testing.assert_allclose(run(x, t, d, label), told[0], rtol=1e-5)
    with pytest.raises(ValueError, match="has no input for one"):
        NetworkField(plain)(x, t, d, Guided(label, t, t, t))


def test_sizes_that_do_not_work_are_refused():
    cases: list[tuple[dict[str, Any], str]] = [
        ({"depth": 0}, "depth=0: use 1 or more"),
        ({"frequencies": 5}, "frequencies=5: use an even number"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            MLPConfig(**options)
