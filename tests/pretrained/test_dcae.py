"""Deep compression autoencoders: the answers of their code, published names and shapes, and every fault in one sentence."""

import functools
import json
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import dcaes
from eqx_shortcut.pretrained import autoencoder_files
from eqx_shortcut.pretrained.autoencoder_configs import dcae_config
from eqx_shortcut.pretrained.autoencoder_files import CONFIG, WEIGHTS, _dcae_names, load_autoencoder, torch_shape
from eqx_shortcut.pretrained.dcae import DCAE, DCAEConfig, Level, attend, averaged, repeated
from eqx_shortcut.storage import checksum
from published import GOLDEN

CLOSE = {"rtol": 0, "atol": 2e-4}


def built(config: dcaes.Config, name: str) -> DCAE:
    """Shapes alone."""
    return eqx.filter_eval_shape(lambda key: dcae_config(config).build(key=key), jax.random.key(0))


def places(network: DCAE) -> dict[str, Any]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(eqx.filter(network, lambda leaf: hasattr(leaf, "shape")))
    return {_dcae_names(jax.tree_util.keystr(at, simple=True, separator="."))[0]: leaf for at, leaf in leaves}


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Each small autoencoder, with the folder it was read from; do not change it."""

    @functools.cache
    def load(name: str):
        folder = dcaes.write(tmp_path_factory.mktemp(name) / "vae", dcaes.SMALL[name], dcaes.weights(name))
        return load_autoencoder(folder), folder

    return load


@pytest.mark.parametrize("name", dcaes.SMALL)
def test_it_answers_as_its_code_does(loaded, name):
    network, _ = loaded(name)
    assert isinstance(network, DCAE) and (network.factor, network.channels, network.scale, network.shift) == (4, 8, 0.4, 0)
    with np.load(GOLDEN / "autoencoders.npz") as file:
        latent, image = file[f"{name}_latent"], file[f"{name}_image"]
    posterior = eqx.filter_jit(network.encode)(jnp.asarray(dcaes.image(16, 24)))
    assert posterior.log_variance is None
    np.testing.assert_allclose(posterior.mean, latent, **CLOSE)
    np.testing.assert_allclose(eqx.filter_jit(network.decode)(jnp.asarray(latent)), image, **CLOSE)


@pytest.mark.parametrize("name", dcaes.SMALL)
def test_what_is_read_is_what_was_written(loaded, name):
    """A value for a value, in torch's order; products of pixels may lack the sides of a convolution."""
    given = dcaes.weights(name)
    found = places(loaded(name)[0])
    assert found.keys() == given.keys()
    for at, leaf in found.items():
        order = {4: (3, 2, 0, 1), 3: (2, 0, 1)}.get(leaf.ndim, range(leaf.ndim)[::-1])
        np.testing.assert_array_equal(np.asarray(leaf).transpose(*order).reshape(given[at].shape), given[at], err_msg=at)


@pytest.mark.parametrize("name", [name for name in dcaes.SHAPES if name in dcaes.PUBLISHED])
def test_published_names_and_shapes(name):
    expected = dcaes.SHAPES[name]
    found = {at: torch_shape(leaf.shape) for at, leaf in places(built(dcaes.PUBLISHED[name], name)).items()}
    assert found.keys() == expected.keys()
    for at, shape in found.items():
        assert shape == expected[at] or (*shape, 1, 1) == expected[at], at


@pytest.mark.parametrize("name", dcaes.PUBLISHED)
def test_published_sizes(name):
    """`f` times smaller with `c` channels, as the names say, and back."""
    match = re.search(r"f(\d+)c(\d+)", name)
    assert match
    network, (factor, channels) = built(dcaes.PUBLISHED[name], name), map(int, match.groups())
    image = jax.ShapeDtypeStruct((256, 384, 3), jnp.float32)
    latent = eqx.filter_eval_shape(lambda n, x: n.encode(x).mean, network, image)
    assert latent.shape == network.latent_shape(image.shape) == (256 // factor, 384 // factor, channels)
    assert eqx.filter_eval_shape(lambda n, z: n.decode(z), network, latent).shape == image.shape


def test_linear_attention_is_attention_by_products(key):
    q, k, v = (jax.random.uniform(k, (6, 2, 3)) for k in jax.random.split(key, 3))
    products = np.einsum("nhc,mhc->hnm", q, k)
    expected = np.einsum("hnm,mhd->nhd", products / products.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(attend(q, k, v), expected, rtol=1e-5)
    np.testing.assert_array_equal(attend(0 * q, k, v), 0)


def test_means_undo_repetition(key):
    x = jax.random.normal(key, (2, 3, 4))
    np.testing.assert_array_equal(repeated(x, 8)[..., 1::2], x)
    np.testing.assert_allclose(averaged(repeated(x, 12), 4), x, rtol=1e-6)


def test_counters_of_batches_are_left_out_and_half_precision_is_read(loaded, tmp_path):
    network, _ = loaded("shuffled")
    counter = {"decoder.up_blocks.1.1.norm.num_batches_tracked": np.array(7)}
    half = {name: value.astype(np.float16) for name, value in dcaes.weights("shuffled").items()}
    found = load_autoencoder(dcaes.write(tmp_path, dcaes.SMALL["shuffled"], half | counter))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(network), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b.astype(jnp.float16))


TENSOR = "encoder.down_blocks.2.0.attn.to_qkv_multiscale.0.proj_in.weight"
FAULTS = {
    "a tensor missing": ({TENSOR: None}, rf"lacks the tensor {re.escape(TENSOR)}: fetch it again"),
    "a tensor too many": ({"loss.logvar": np.zeros(1)}, r"holds 1 tensors that .* such as loss\.logvar"),
    "a channel more": ({TENSOR: np.zeros((49, 1, 5, 5))}, rf"{TENSOR} has shape \(49, 1, 5, 5\), not \(48, 1, 5, 5\)"),
    "no depthwise one": ({TENSOR: np.zeros((48, 48, 5, 5))}, r"has shape \(48, 48, 5, 5\), not \(48, 1, 5, 5\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_tensors_of_another_network_are_named(tmp_path, fault):
    changed, said = FAULTS[fault]
    tensors = {name: value for name, value in (dcaes.weights("convolved") | changed).items() if value is not None}
    with pytest.raises(ValueError, match=said):
        load_autoencoder(dcaes.write(tmp_path, dcaes.SMALL["convolved"], tensors))


def test_a_file_cut_short(loaded, tmp_path):
    folder = dcaes.write(tmp_path, dcaes.SMALL["convolved"], dcaes.weights("convolved"))
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot be read as safetensors .*: copy it again"):
        load_autoencoder(folder)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"in_channels": 4}, "in_channels=4, and only 3 can be read"),
        ({"latent_channels": 5}, r"widths \[8, 8, 16\] and latent_channels=5 do not divide: use powers of 2"),
        ({"attention_head_dim": 32}, "attention at 16 channels has no head of 32"),
        ({"decoder_norm_types": "layer_norm"}, "norm_types is 'layer_norm', and rms_norm, batch_norm alone are known"),
        ({"decoder_act_fns": ["silu", "mish", "silu"]}, "act_fns is 'mish', and silu, relu alone are known"),
        ({"encoder_block_types": ["ResBlock", "ResBlock", "EViT_GLU"]}, "block_types is 'EViT_GLU', and ResBlock"),
        ({"upsample_block_type": "bicubic"}, "upsample_block_type is 'bicubic', and pixel_shuffle, interpolate alone"),
        ({"encoder_layers_per_block": [1, 1]}, "config.json describes no autoencoder that can be built"),
        ({"encoder_layers_per_block": [1, 0, 1]}, r"have \[1, 0, 1\] blocks.* 0 blocks in the first level alone"),
        ({"encoder_layers_per_block": 2}, "config.json describes no autoencoder that can be built"),
        ({"decoder_qkv_multiscales": None}, "config.json describes no autoencoder that can be built"),
    ],
)
def test_configs_that_cannot_be(tmp_path, change, words):
    (tmp_path / CONFIG).write_text(json.dumps({"_class_name": "AutoencoderDC", **dcaes.SMALL["shuffled"], **change}))
    with pytest.raises(ValueError, match=words):
        load_autoencoder(tmp_path)


def test_levels_of_the_halves_agree():
    levels = (Level(8, 1), Level(8, 1))
    with pytest.raises(ValueError, match="the encoder has 2 levels and the decoder 1: give both the same number, 2 or more"):
        DCAEConfig(levels, levels[:1])


def test_a_config_without_a_size(tmp_path):
    config = {name: value for name, value in dcaes.SMALL["shuffled"].items() if name != "decoder_block_types"}
    (tmp_path / CONFIG).write_text(json.dumps({"_class_name": "AutoencoderDC", **config}))
    with pytest.raises(ValueError, match=r"config\.json lacks 'decoder_block_types'"):
        load_autoencoder(tmp_path)


def test_a_well_known_file_beside_the_config_of_another_is_named(loaded, tmp_path, monkeypatch):
    """Shapes do not tell it where but a scale differs; its own config is read."""
    network, folder = loaded("convolved")
    monkeypatch.setitem(autoencoder_files.KNOWN, checksum([folder / WEIGHTS]), ("some/where", network.config))
    assert load_autoencoder(folder).scale == 0.4
    other = dcaes.write(tmp_path, dcaes.SMALL["convolved"] | {"scaling_factor": 0.5}, dcaes.weights("convolved"))
    assert checksum([other / WEIGHTS]) == checksum([folder / WEIGHTS])
    with pytest.raises(ValueError, match=r"is the file of some/where, and config\.json beside it is of another .*: fetch both"):
        load_autoencoder(other)
