"""Improved MeanFlow's transformer: its authors' two answers, and the same weights in and out."""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import published
from eqx_shortcut.guidance import Guided
from eqx_shortcut.models import NetworkField
from eqx_shortcut.models.network import check_network
from eqx_shortcut.objectives import ImprovedMeanFlow
from eqx_shortcut.pretrained.improved_mean_flow import from_parameters, to_parameters
from eqx_shortcut.types import Batch

WEIGHTS = published.weights(published.shapes("transformer_shapes.json")["imf"])


@functools.cache
def network():
    return from_parameters(WEIGHTS, size=published.SIZE, heads=published.HEADS, key=jax.random.key(0))


@eqx.filter_jit
def answers(network, t, condition):
    return NetworkField(network)(jnp.asarray(published.images()), t, jnp.asarray(published.D), condition)


def condition() -> Guided:
    return Guided(*map(jnp.asarray, (published.LABELS, published.SCALE, published.START, published.STOP)))


@pytest.mark.parametrize(("name", "view"), [("imf", lambda n: n), ("imf_velocity", lambda n: n.velocity)])
def test_it_answers_as_its_code_does(name, view):
    """Its times are those of noise, so that guidance from `start` to `stop` is from `1 - stop` to `1 - start`; no `t`."""
    with np.load(published.GOLDEN / "transformers.npz") as file:
        expected = file[name]
    assert expected.std() > 0.1
    for t in (published.T, published.T[::-1].copy()):
        np.testing.assert_allclose(answers(view(network()), jnp.asarray(t), condition()), -expected, rtol=0, atol=2e-4)


def test_a_label_alone_is_no_guidance():
    plain = Guided(jnp.asarray(published.LABELS), jnp.ones(4), jnp.zeros(4), jnp.ones(4))
    t = jnp.asarray(published.T)
    np.testing.assert_allclose(answers(network(), t, plain.cond), answers(network(), t, plain), atol=1e-6)


def test_weights_go_in_and_out_to_the_bit():
    found = to_parameters(network())
    assert found.keys() == WEIGHTS.keys()
    for name, value in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_other_parameters_are_refused_by_name():
    less = {name: value for name, value in WEIGHTS.items() if name != "v_heads_0/mlp_scale"}
    with pytest.raises(ValueError, match=r"1 missing \(v_heads_0/mlp_scale\), 0 left over"):
        from_parameters(less, size=published.SIZE, heads=published.HEADS, key=jax.random.key(0))
    with pytest.raises(ValueError, match="of no network of improved MeanFlow"):
        from_parameters({"a": np.ones(2)}, key=jax.random.key(0))


def test_its_objective_trains_it():
    """With scales and times that it is told, and its second end."""
    config, objective = network().config, ImprovedMeanFlow(max_scale=8.0, intervals=True, velocity_head=True)
    example = Batch(jnp.zeros((published.SIZE, published.SIZE, published.CHANNELS)), jnp.zeros((), jnp.int32))
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), example)
    check_network(config, objective, shapes, published.CLASSES)
