import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut.models.attention import QKNormed, attend, rotary_table, rotate
from eqx_shortcut.models.layers import Dense

ROWS, COLUMNS, DIM = 4, 5, 16


def heads(key, tokens: int = ROWS * COLUMNS):
    return jax.random.normal(key, (2, tokens, DIM))


def test_attention_is_the_mean_of_values_by_the_softmax_of_the_products(key):
    q, k, v = (heads(key) for key in jax.random.split(key, 3))
    weights = np.exp(np.einsum("hqc,hkc->hqk", *(np.asarray(a, np.float64) for a in (q, k))))
    expected = np.einsum("hqk,hkc->hqc", weights / weights.sum(axis=2, keepdims=True), np.asarray(v, np.float64))
    np.testing.assert_allclose(attend(q, k, v), expected, atol=1e-4)


def test_rotations_keep_lengths_and_turn_the_first_patch_by_nothing(key):
    x, table = heads(key), rotary_table(DIM, ROWS, COLUMNS)
    turned = rotate(x, table)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])
    assert rotate(x.astype(jnp.bfloat16), table).dtype == jnp.bfloat16


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (2, 3)])
def test_logits_of_turned_queries_and_keys_depend_on_relative_positions_alone(key, shift):
    """One query and one key at all places of the grid, and at all places moved by so many rows and columns."""
    k_query, k_key = jax.random.split(key)
    q, k = (jnp.broadcast_to(heads(key, 1), (2, ROWS * COLUMNS, DIM)) for key in (k_query, k_key))
    wide = rotary_table(DIM, ROWS + 2, COLUMNS + 3).reshape(2, ROWS + 2, COLUMNS + 3, -1)

    def logits(row, column):
        table = wide[:, row : row + ROWS, column : column + COLUMNS].reshape(2, ROWS * COLUMNS, -1)
        return np.einsum("hqc,hkc->hqk", rotate(q, table), rotate(k, table))

    np.testing.assert_array_equal(wide[:, :ROWS, :COLUMNS].reshape(2, ROWS * COLUMNS, -1), rotary_table(DIM, ROWS, COLUMNS))
    found = logits(0, 0)
    np.testing.assert_allclose(logits(*shift), found, atol=1e-4)
    row = found[0, 0].reshape(ROWS, COLUMNS)
    assert len({*np.round(row.ravel(), 3)}) == ROWS * COLUMNS, "every place has its own logit"


def test_queries_and_keys_are_normalised_and_values_are_not(key):
    dense = Dense(6, (3, 2, DIM), key=key)
    layer, x = QKNormed(dense, DIM), jax.random.normal(key, (5, 6))
    q, k, v = jnp.unstack(layer(x, jnp.float32), axis=1)
    for part, size in ((q, 4.0), (k, 1.0)):
        np.testing.assert_allclose(jnp.sqrt(jnp.mean(part**2, axis=-1)), np.full((5, 2), size), rtol=1e-4)
    np.testing.assert_array_equal(v, dense(x, jnp.float32)[:, 2])
    assert layer(x, jnp.bfloat16).dtype == jnp.bfloat16
