"""The protocol, its posterior, and its use on batches and large images; networks are tiny and untrained."""

import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut.pretrained import autoencoder
from eqx_shortcut.pretrained.autoencoder import (
    Autoencoder,
    Posterior,
    decode_batch,
    fingerprint,
    from_training,
    to_training,
)
from eqx_shortcut.pretrained.dcae import DCAEConfig, Level
from eqx_shortcut.pretrained.sdvae import SDVAEConfig
from eqx_shortcut.pretrained.taesd import TAESDConfig

SMALL = {
    "sdvae": SDVAEConfig((8, 16), 1, latent_channels=3, norm_num_groups=4, shift_factor=0.5),
    "taesd": TAESDConfig(latent_channels=5, width=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1)),
    "taef2": TAESDConfig(latent_channels=5, width=8, encoder_blocks=(1, 1), decoder_blocks=(1, 1), pooled=True),
    "dcae": DCAEConfig(
        (Level(8, 1), Level(8, 1)), (Level(8, 1), Level(8, 1, ())), latent_channels=4, head=4, scaling_factor=0.5
    ),
}


@functools.cache
def built(name: str) -> Any:
    return eqx.filter_jit(SMALL[name].build)(key=jax.random.key(0))


@pytest.fixture(params=SMALL)
def small(request) -> Autoencoder:
    return built(request.param)


def test_every_family_offers_the_protocol(small, key):
    assert isinstance(small, Autoencoder)
    image = jax.random.uniform(key, (8, 12, 3), minval=-1, maxval=1)
    posterior = eqx.filter_jit(small.encode)(image)
    assert small.factor == 2
    assert posterior.mean.shape == small.latent_shape(image.shape) == (4, 6, small.channels)
    assert eqx.filter_jit(small.decode)(jnp.asarray(posterior.mean)).shape == image.shape


@pytest.mark.parametrize(
    ("config", "shape"), [(SDVAEConfig(), (32, 32, 4)), (TAESDConfig(), (32, 32, 4)), (TAESDConfig(32), (32, 32, 32))]
)
def test_published_sizes(config, shape, key):
    full = eqx.filter_eval_shape(lambda k: config.build(key=k), key)
    assert full.factor == 8
    assert full.latent_shape((256, 256, 3)) == shape
    posterior = eqx.filter_eval_shape(lambda m, x: m.encode(x), full, jax.ShapeDtypeStruct((256, 256, 3), jnp.float32))
    assert posterior.mean.shape == shape


def test_size_of_the_published_sdvae(key):
    full = eqx.filter_eval_shape(lambda k: SDVAEConfig().build(key=k), key)
    assert sum(leaf.size for leaf in jax.tree.leaves(full)) == 83_653_863
    assert (full.scale, full.shift) == (0.18215, 0.0)


def test_training_units_there_and_back(small, key):
    raw = jax.random.normal(key, (4, 4, small.channels))
    latent = to_training(small, raw)
    np.testing.assert_allclose(latent, (np.asarray(raw) - small.shift) * small.scale, rtol=1e-6)
    np.testing.assert_allclose(from_training(small, latent), raw, atol=1e-6)


def test_an_image_that_does_not_divide_is_refused(small):
    with pytest.raises(ValueError, match="an image of 9 x 8 is not divisible by 2: crop or resize it to multiples of 2"):
        small.encode(jnp.zeros((9, 8, 3)))
    with pytest.raises(ValueError, match="an image of 8 x 7 is not divisible by 2"):
        small.encode(jnp.zeros((8, 7, 3)))


@pytest.mark.parametrize(
    ("config", "settings", "words"),
    [
        (SDVAEConfig, {"layers_per_block": 0}, "layers_per_block=0: use 1 or more"),
        (SDVAEConfig, {"block_out_channels": (48, 64)}, "not all multiples of norm_num_groups=32"),
        (SDVAEConfig, {"block_out_channels": ()}, "at least one width"),
        (TAESDConfig, {"encoder_blocks": (1, 2)}, "not of as many levels"),
    ],
)
def test_sizes_that_cannot_be(config, settings, words):
    with pytest.raises(ValueError, match=words):
        config(**settings)


def test_posterior_is_sampled_by_its_law(key):
    mean, deviation = (np.array([column], np.float32).T for column in ((-2.0, 0.0, 5.0), (0.1, 1.0, 3.0)))
    shape, rows = (3, 40_000), np.ones((1, 40_000), np.float32)
    drawn = np.asarray(Posterior(mean * rows, 2 * np.log(deviation) * rows).sample(key))
    assert drawn.shape == shape
    np.testing.assert_allclose(drawn.mean(axis=1, keepdims=True), mean, atol=float(5 * 3 / 200))
    np.testing.assert_allclose(drawn.std(axis=1, keepdims=True), deviation, rtol=0.02)
    # Skewness and excess kurtosis of the normal law.
    z = (drawn - mean) / deviation
    np.testing.assert_allclose((z**3).mean(axis=1), 0, atol=0.07)
    np.testing.assert_allclose((z**4).mean(axis=1), 3, atol=0.2)


def test_posterior_without_a_variance_is_its_mean(key):
    mean = jnp.arange(6.0).reshape(2, 3)
    posterior = Posterior(mean)
    np.testing.assert_array_equal(posterior.sample(key), mean)


def test_log_variances_are_bounded():
    small = built("sdvae")
    bias = jnp.array([0.0, 0.0, 0.0, -1e3, 0.0, 1e3])
    extreme = eqx.tree_at(lambda m: m.quant_conv.bias, small, bias)
    found = eqx.filter_jit(extreme.encode)(jnp.zeros((4, 4, 3))).log_variance
    assert found is not None
    assert np.all(found[..., 0] == -30) and np.all(found[..., 2] == 20)


def test_batches_are_their_examples(small, key):
    images = np.asarray(jax.random.uniform(key, (5, 8, 8, 3), minval=-1, maxval=1))
    posterior = eqx.filter_jit(lambda model, x: jax.vmap(model.encode)(x))(small, jnp.asarray(images))
    one = eqx.filter_jit(small.encode)(jnp.asarray(images[4]))
    np.testing.assert_allclose(posterior.mean[4], one.mean, atol=1e-5)
    if one.log_variance is None:
        assert posterior.log_variance is None
    else:
        assert posterior.log_variance is not None
        np.testing.assert_allclose(posterior.log_variance[4], one.log_variance, atol=1e-5)
    found = decode_batch(small, posterior.mean, batch=2)
    assert isinstance(found, np.ndarray) and found.shape == images.shape
    np.testing.assert_allclose(found[4], eqx.filter_jit(small.decode)(jnp.asarray(one.mean)), atol=1e-5)


def test_any_number_of_examples_is_one_program(monkeypatch):
    small, traces = built("taesd"), []

    def traced(model, latents):
        traces.append(latents.shape)
        return jax.vmap(model.decode)(latents)

    monkeypatch.setattr(autoencoder, "_decode", eqx.filter_jit(traced))
    for count in (1, 3, 8):
        assert len(decode_batch(small, np.zeros((count, 2, 2, 5), np.float32), batch=3)) == count
    assert traces == [(3, 2, 2, 5)]


def test_batches_that_cannot_be():
    small = built("taesd")
    with pytest.raises(ValueError, match="batch=0: decode at least 1 latent at once"):
        decode_batch(small, np.zeros((1, 2, 2, 5), np.float32), batch=0)
    with pytest.raises(ValueError, match="there are 0 latents: give at least 1"):
        decode_batch(small, np.zeros((0, 2, 2, 5), np.float32))


def test_a_fingerprint_tells_weights_apart_and_not_where_they_lie(small):
    copied, shaken = (jax.tree.map(lambda leaf, by=by: leaf + by if eqx.is_array(leaf) else leaf, small) for by in (0, 1e-3))
    assert fingerprint(copied) == fingerprint(small) != fingerprint(shaken)
