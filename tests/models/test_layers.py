import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut.models import layers
from eqx_shortcut.models.layers import (
    Dense,
    ScalarEmbedding,
    dropout,
    layer_norm,
    modulate,
    position_table,
    rms_norm,
    sinusoids,
)


@pytest.mark.parametrize("outputs", [5, (5,), (3, 2, 4)])
@pytest.mark.parametrize("batch", [(), (7,), (2, 7)])
def test_dense_is_kernel_and_bias(key, batch, outputs):
    dense = Dense(6, outputs, key=key)
    dense = jax.tree.map(lambda a: a + 0.5, dense)
    x = jax.random.normal(key, (*batch, 6))
    expected = np.tensordot(np.asarray(x, np.float64), np.asarray(dense.kernel, np.float64), 1) + np.asarray(dense.bias)
    np.testing.assert_allclose(dense(x, jnp.float32), expected, atol=1e-5)
    assert dense(x, jnp.bfloat16).dtype == jnp.bfloat16


def test_initialisations(key):
    wide = Dense(200, (4, 100), key=key)
    limit = math.sqrt(6 / 600)
    assert float(jnp.abs(wide.kernel).max()) <= limit
    np.testing.assert_allclose(jnp.var(wide.kernel), 2 / 600, rtol=0.02)
    np.testing.assert_allclose(jnp.std(layers.normal(key, (200, 400))), 0.02, rtol=0.02)
    assert not np.any(layers.zeros(key, (3, 4))) and not np.any(wide.bias)


@pytest.mark.parametrize("value", [0.0, 0.37, 7.0, 100.0])
@pytest.mark.parametrize("size", [8, 256])
def test_sinusoids_are_cosines_then_sines_of_falling_rates(value, size):
    rates = [10_000 ** (-i / (size // 2)) for i in range(size // 2)]
    expected = [math.cos(value * r) for r in rates] + [math.sin(value * r) for r in rates]
    np.testing.assert_allclose(sinusoids(jnp.float32(value), size), expected, atol=2e-5)


@pytest.mark.parametrize(("size", "height", "width"), [(8, 3, 5), (16, 4, 4), (12, 1, 2)])
def test_positions_by_their_formula(size, height, width):
    table = position_table(size, height, width)
    assert table.shape == (height * width, size)
    quarter = size // 4
    for row in range(height):
        for column in range(width):
            rates = [10_000 ** (-i / quarter) for i in range(quarter)]
            expected = [wave(place * r) for place in (column, row) for wave in (math.sin, math.cos) for r in rates]
            np.testing.assert_allclose(table[row * width + column], expected, atol=1e-6)


def test_positions_differ():
    assert np.unique(position_table(16, 6, 7), axis=0).shape[0] == 42


def test_layer_norm_standardises_each_token(key):
    x = 3 + 5 * jax.random.normal(key, (4, 64))
    y = np.asarray(layer_norm(x), np.float64)
    np.testing.assert_allclose(y.mean(axis=1), 0, atol=1e-5)
    np.testing.assert_allclose(y.var(axis=1), 1, atol=1e-4)


def test_layer_norm_of_a_constant_is_zero():
    for value in (0.0, 1e-3, 1e4):
        np.testing.assert_allclose(layer_norm(jnp.full((1, 8), value)), 0, atol=1e-2)


def test_layer_norm_takes_statistics_in_float32(key):
    x = (100 + jax.random.normal(key, (4, 256))).astype(jnp.bfloat16)
    found = layer_norm(x)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(jnp.float32), layer_norm(x.astype(jnp.float32)), atol=0.02)


@pytest.mark.parametrize("scale", [1e-2, 7.0, -3.0])
def test_rms_norm_gives_unit_mean_square_and_ignores_the_scale(key, scale):
    x = 3 + jax.random.normal(key, (4, 64))
    np.testing.assert_allclose(jnp.mean(jnp.square(rms_norm(x)), axis=1), np.ones(4), atol=1e-5)
    np.testing.assert_allclose(rms_norm(scale * x), np.sign(scale) * rms_norm(x), rtol=1e-3)
    low = rms_norm((100 * x).astype(jnp.bfloat16))
    assert low.dtype == jnp.bfloat16
    np.testing.assert_allclose(low.astype(jnp.float32), rms_norm(x), rtol=0.02)


def test_modulation_scales_then_shifts(key):
    x = jax.random.normal(key, (3, 2))
    found = modulate(x, jnp.array([1.0, -1.0]), jnp.array([0.5, -1.0]))
    np.testing.assert_allclose(found, np.asarray(x) * [1.5, 0.0] + [1.0, -1.0], rtol=1e-6)


def test_dropout_zeroes_at_its_rate_and_keeps_the_mean(key):
    found = np.asarray(dropout(jnp.ones(8192), 0.25, key))
    assert set(np.unique(found)) == {0.0, np.float32(4 / 3)}
    assert abs((found == 0).mean() - 0.25) < 5 * math.sqrt(0.25 * 0.75 / 8192)


def test_no_key_or_no_rate_no_dropout(key):
    x = jnp.ones(8)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, key) is x


def test_scalar_embedding_by_its_formula(key):
    embed = ScalarEmbedding(12, scale=10.0, key=key, frequencies=8)
    waves = np.asarray(sinusoids(jnp.float32(2.5), 8), np.float64)
    hidden = waves @ np.asarray(embed.hidden.kernel)
    expected = hidden / (1 + np.exp(-hidden)) @ np.asarray(embed.out.kernel)
    np.testing.assert_allclose(embed(jnp.float32(0.25), jnp.float32), expected, atol=1e-6)


def test_scalar_embedding_answers_in_float32(key):
    embed = ScalarEmbedding(12, scale=1.0, key=key)
    low, high = embed(jnp.float32(0.3), jnp.bfloat16), embed(jnp.float32(0.3), jnp.float32)
    assert low.dtype == jnp.float32
    np.testing.assert_allclose(low, high, atol=2e-3)
    assert np.any(low != high)


def test_parts_of_a_dense_layer_are_slices_of_its_answer(key):
    k_layer, k_bias, k_x = jax.random.split(key, 3)
    layer = layers.Dense(5, (3, 2, 4), key=k_layer)
    layer = eqx.tree_at(lambda layer: layer.bias, layer, jax.random.normal(k_bias, (3, 2, 4)))
    x = jax.random.normal(k_x, (7, 5))
    np.testing.assert_allclose(jnp.stack(layer.apart(x, jnp.float32), axis=1), layer(x, jnp.float32), rtol=1e-6)
