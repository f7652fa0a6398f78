"""A network of one example as a field of a batch: rows in turns are the same field, in less memory."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch
from eqx_shortcut.models.field import NetworkField
from eqx_shortcut.objectives import Networks, Objective, Shortcut

WIDTH, HIDDEN, CLASSES, ROWS = 3, 64, 5, 12
BATCH = Batch(jax.random.normal(jax.random.key(1), (ROWS, WIDTH)), jnp.arange(ROWS) % CLASSES)


class Network(eqx.Module):
    """Two layers, with dropout between them."""

    enter: jax.Array
    leave: jax.Array

    def __call__(self, x, t, d, cond, *, key=None):
        hidden = jnp.tanh(jnp.concatenate([x, t[None], d[None], cond[None].astype(x.dtype)]) @ self.enter)
        kept = 1.0 if key is None else jax.random.bernoulli(key, 0.7, (HIDDEN,)).astype(x.dtype)
        return (hidden * kept) @ self.leave


@pytest.fixture
def network() -> Network:
    return Network(*(0.5 * jax.random.normal(jax.random.key(n), size) for n, size in enumerate([(6, HIDDEN), (HIDDEN, 3)])))


def gradient(objective: Objective, network, turns: int):
    def loss(online):
        return objective(Networks(online, network, null=CLASSES, microbatches=turns), BATCH, jax.random.key(3), jnp.float32(0))

    return eqx.filter_jit(eqx.filter_value_and_grad(loss, has_aux=True))(network)


def test_the_loss_its_parts_and_its_gradient_are_those_of_the_whole_batch(network):
    """Six bootstrap rows for two step sizes: in three turns of four, each turn for itself would hold two."""
    objective = Shortcut(steps=4, bootstrap_every=2)
    whole, parts = (gradient(objective, network, turns) for turns in (1, 3))
    for a, b in zip(*(jax.tree.leaves(found) for found in (whole, parts)), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)
    assert float(whole[0][0]) > 0.1


@pytest.mark.parametrize(("rows", "turns"), [(12, 4), (9, 6), (7, 4)])
def test_a_field_in_turns_answers_row_by_row_what_it_answers_at_once(network, rows, turns):
    """Under the same dropout masks; where the turns do not divide the rows, in as many as do."""
    x, t = jnp.resize(BATCH.x, (rows, WIDTH)), jnp.linspace(0, 0.9, rows)
    answers = [NetworkField(network, jax.random.key(4), n)(x, t, t / 2, jnp.arange(rows) % CLASSES) for n in (1, turns)]
    np.testing.assert_allclose(answers[1], answers[0], atol=1e-6)


def test_turns_divide_the_memory_of_a_gradient(network):
    def temporaries(turns: int) -> int:
        def loss(network, x):
            t = jnp.zeros(len(x))
            return jnp.mean(NetworkField(network, microbatches=turns)(x, t, t, jnp.zeros(len(x), int)) ** 2)

        x = jax.ShapeDtypeStruct((2048, WIDTH), jnp.float32)
        analysis = jax.jit(jax.grad(loss)).lower(network, x).compile().memory_analysis()
        assert analysis is not None
        return analysis.temp_size_in_bytes

    assert temporaries(8) < temporaries(1) / 4
