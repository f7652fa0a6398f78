"""Representation autoencoders: the answers of their code, published sizes, and every fault in one sentence."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcaes
import raes
from eqx_shortcut.models.layers import position_table
from eqx_shortcut.pretrained.autoencoder import Autoencoder, from_training, to_training
from eqx_shortcut.pretrained.autoencoder_files import CONFIG, load_autoencoder
from eqx_shortcut.pretrained.rae import RAE, RAEConfig, bicubic, positions
from eqx_shortcut.pretrained.rae_files import rae_config
from published import GOLDEN
from raes import SIDE

CLOSE = {"rtol": 0, "atol": 2e-4}
OLD = {"q_proj": "attention.query", "k_proj": "attention.key", "v_proj": "attention.value", "o_proj": "output.dense"}


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> RAE:
    found = load_autoencoder(dcaes.write(tmp_path_factory.mktemp("rae") / "vae", raes.SMALL, raes.weights()))
    assert isinstance(found, RAE) and isinstance(found, Autoencoder)
    return found


def test_it_answers_as_its_code_does(network):
    """Whose latents are in the units of training."""
    with np.load(GOLDEN / "autoencoders.npz") as file:
        latent, image = jnp.asarray(file["rae_latent"]), file["rae_image"]
    assert (network.factor, network.channels, network.scale, network.shift) == (4, 128, 0.5, 0)
    posterior = eqx.filter_jit(network.encode)(jnp.asarray(dcaes.image(SIDE, SIDE)))
    assert posterior.log_variance is None
    np.testing.assert_allclose(to_training(network, jnp.asarray(posterior.mean)), latent, **CLOSE)
    np.testing.assert_allclose(eqx.filter_jit(network.decode)(from_training(network, latent)), image, **CLOSE)


def test_names_of_earlier_versions_and_tensors_without_use_are_read(network, tmp_path):
    tensors = {
        "encoder.embeddings.mask_token": np.zeros((1, 128), np.float32),
        "decoder.decoder_pos_embed": np.zeros((1, 10, 24)),
    }
    for name, value in raes.weights().items():
        for new, old in OLD.items():
            name = name.replace(f".attention.{new}.", f".attention.{old}.")
        tensors[name] = value
    assert sum(".attention.attention.query." in name for name in tensors) == 4
    found = load_autoencoder(dcaes.write(tmp_path, raes.SMALL, tensors))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(network), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_moment_stands_for_all_latents(tmp_path):
    one = {"_latents_mean": np.zeros(1, np.float32), "_latents_std": np.ones(1, np.float32)}
    found = load_autoencoder(dcaes.write(tmp_path, raes.SMALL, raes.weights() | one))
    assert isinstance(found, RAE) and found.latents_mean.shape == found.latents_std.shape == (3, 3, 128)
    assert not np.any(found.latents_mean) and np.all(found.latents_std == 1)


def test_published_sizes():
    """16 x 16 latents of 768 channels of an image of 256 x 256, and back."""
    config = rae_config(raes.PUBLISHED)
    network = eqx.filter_eval_shape(lambda key: config.build(key=key), jax.random.key(0))
    image = jax.ShapeDtypeStruct((256, 256, 3), jnp.float32)
    latent = eqx.filter_eval_shape(lambda n, x: n.encode(x).mean, network, image)
    assert latent.shape == network.latent_shape(image.shape) == (16, 16, 768) and network.factor == 16
    assert eqx.filter_eval_shape(lambda n, z: n.decode(z), network, latent).shape == image.shape


def test_images_of_another_size_are_refused(network):
    with pytest.raises(ValueError, match="an image of 16 x 12 is not one of 12 x 12: resize it to that"):
        network.encode(jnp.zeros((16, 12, 3)))


def test_resizing_by_half_weighs_pixels_by_a_cubic_of_minus_three_quarters():
    """At an edge the weights of what lies beyond are the outermost pixel's."""
    matrix = 32 * bicubic(8, 4)
    np.testing.assert_allclose(matrix[:2], [[16, 19, -3, 0, 0, 0, 0, 0], [0, -3, 19, 19, -3, 0, 0, 0]], atol=1e-5)
    np.testing.assert_allclose(matrix[::-1, ::-1], matrix, atol=1e-5)


@pytest.mark.parametrize(("old", "new"), [(4, 6), (7, 4), (5, 5)])
def test_resizing_keeps_constants(old, new):
    np.testing.assert_allclose(bicubic(old, new).sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(bicubic(new, new), np.eye(new))


def test_positions_are_the_usual_ones_at_sixteen_patches_a_side():
    np.testing.assert_allclose(positions(8, 16), position_table(8, 16, 16), atol=1e-6)
    np.testing.assert_allclose(
        positions(8, 4)[::2], position_table(8, 16, 16).reshape(16, 16, 8)[::4, ::8].reshape(-1, 8), atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"encoder_type": "siglip2"}, "encoder_type='siglip2', and only 'dinov2' can be read"),
        ({"reshape_to_2d": False}, "reshape_to_2d=False, and only True can be read"),
        (
            {"encoder_input_size": 43},
            r"config\.json describes no autoencoder that can be built .*patch divides the encoder's side",
        ),
        ({"encoder_hidden_size": 96}, r"use sizes of 1 or more, of which .* 64 its channels"),
        ({"patch_size": "16"}, r"config\.json describes no autoencoder that can be built"),
    ],
)
def test_configs_that_cannot_be(tmp_path, change, words):
    (tmp_path / CONFIG).write_text(json.dumps(raes.SMALL | change))
    with pytest.raises(ValueError, match=words):
        load_autoencoder(tmp_path)


NAME = "encoder.encoder.layer.1.attention.q_proj.weight"
FAULTS = {
    "missing": ({NAME: None}, rf"lacks the tensor {NAME} or encoder\S*attention\.query\.weight: fetch it again"),
    "too many": ({"encoder.layernorm.weight": np.zeros(128)}, r"holds 1 tensors that .* such as encoder\.layernorm\.weight"),
    "another size": ({NAME: np.zeros((128, 64))}, r"has shape \(128, 64\), not \(128, 128\)"),
    "other latents": ({"_latents_std": np.ones((128, 4, 4))}, r"_latents_std has shape \(128, 4, 4\), not \(128, 1, 3, 3\)"),
    "no token": ({"encoder.embeddings.cls_token": np.ones(())}, r"cls_token has shape \(\), not \(128, 1\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_of_another_network_are_named(tmp_path, fault):
    changed, said = FAULTS[fault]
    tensors = {name: value for name, value in (raes.weights() | changed).items() if value is not None}
    with pytest.raises(ValueError, match=said):
        load_autoencoder(dcaes.write(tmp_path, raes.SMALL, tensors))


def test_sizes_must_divide():
    with pytest.raises(ValueError, match=r"RAEConfig\(.*decoder_heads=5.*its heads and 4 the decoder's width"):
        RAEConfig(decoder_heads=5)
