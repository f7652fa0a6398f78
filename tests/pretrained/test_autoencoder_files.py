"""Files of autoencoders: what is read is what was written, under every published name, and every fault is named."""

import io
import json
import pathlib
import re
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pyarrow.parquet
import pytest
from safetensors.numpy import load_file, save_file

from eqx_shortcut.pretrained.autoencoder import decode_batch
from eqx_shortcut.pretrained.autoencoder_files import (
    CONFIG,
    KNOWN,
    OLD_ATTENTION,
    WEIGHTS,
    _sdvae_names,
    _taesd_names,
    _tiny_names,
    load_autoencoder,
)
from eqx_shortcut.pretrained.sdvae import SDVAEConfig
from eqx_shortcut.pretrained.taesd import TAESDConfig

SHARED = pathlib.Path(__file__).parents[3] / "shared"
TINY = TAESDConfig(latent_channels=5, width=8, encoder_blocks=(1, 2), decoder_blocks=(2, 1), pooled=True)
KL = SDVAEConfig((8, 16), 1, latent_channels=3, norm_num_groups=4, scaling_factor=0.3, shift_factor=0.1)
KL_JSON = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [8, 16],
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "latent_channels": 3,
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "scaling_factor": 0.3,
    "shift_factor": 0.1,
}
TINY_JSON = {
    "_class_name": "AutoencoderTiny",
    "encoder_block_out_channels": [8, 8],
    "decoder_block_out_channels": [8, 8],
    "latent_channels": 5,
    "num_encoder_blocks": [1, 2],
    "num_decoder_blocks": [2, 1],
}


def tensors_of(module: eqx.Module, names) -> dict[str, np.ndarray]:
    """Parameters in PyTorch's order under the usual names."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(module)
    found = {}
    for place, leaf in leaves:
        name = names(jax.tree_util.keystr(place, simple=True, separator="."))[0]
        found[name] = np.ascontiguousarray(
            np.asarray(leaf).transpose(*((3, 2, 0, 1) if leaf.ndim == 4 else range(leaf.ndim)[::-1]))
        )
    return found


def old(tensors: dict[str, np.ndarray], ndim: int) -> dict[str, np.ndarray]:
    """Attention under its old names, as matrices or as 1 x 1 convolutions."""
    found = {}
    for name, tensor in tensors.items():
        for new_layer, old_layer in OLD_ATTENTION.items():
            if f"attentions.0.{new_layer}." in name:
                name = name.replace(f".{new_layer}.", f".{old_layer}.")
                tensor = tensor[..., None, None] if ndim == 4 and tensor.ndim == 2 else tensor
        found[name] = tensor
    return found


def write(folder: pathlib.Path, tensors: dict[str, np.ndarray], config: dict) -> pathlib.Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def write_pair(folder: pathlib.Path, tensors: dict[str, np.ndarray]) -> pathlib.Path:
    for half in ("encoder", "decoder"):
        part = {name.removeprefix(f"{half}."): value for name, value in tensors.items() if name.startswith(f"{half}.")}
        save_file(part, folder / f"tiny_{half}.safetensors")
    return folder


def built(config: SDVAEConfig | TAESDConfig) -> Any:
    """With all parameters random, so that neither norms nor biases are trivial."""
    rng = np.random.default_rng(0)
    like = eqx.filter_eval_shape(lambda k: config.build(key=k), jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape).astype(np.float32)), like)


@pytest.fixture(scope="module")
def kl():
    return built(KL)


@pytest.fixture(scope="module")
def tiny():
    return built(TINY)


def assert_same(found, expected):
    assert found.config == expected.config
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("spelling", [None, 2, 4])
def test_sdvae_under_both_spellings_of_attention(kl, tmp_path, spelling):
    tensors = tensors_of(kl, _sdvae_names)
    if spelling:
        renamed = old(tensors, spelling)
        assert "encoder.mid_block.attentions.0.proj_attn.weight" in renamed and not any("to_out" in name for name in renamed)
        tensors = renamed
    assert_same(load_autoencoder(write(tmp_path, tensors, KL_JSON)), kl)


def test_sdvae_without_the_quantising_convolutions(tmp_path):
    config = SDVAEConfig((8,), 1, latent_channels=16, norm_num_groups=4, use_quant_conv=False, use_post_quant_conv=False)
    plain = built(config)
    stored = {"block_out_channels": [8], "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    stored = {**KL_JSON, **stored, "scaling_factor": 0.18215, "shift_factor": None}
    assert_same(load_autoencoder(write(tmp_path, tensors_of(plain, _sdvae_names), stored)), plain)


def test_half_precision_becomes_single(kl, tmp_path):
    half = {name: tensor.astype(np.float16) for name, tensor in tensors_of(kl, _sdvae_names).items()}
    found = load_autoencoder(write(tmp_path, half, KL_JSON))
    assert_same(found, jax.tree.map(lambda a: a.astype(jnp.float16).astype(jnp.float32), kl))


@pytest.mark.parametrize("names", ["tensors", "legacy_attention_tensors"])
def test_names_of_the_published_sdvae(key, names):
    listing = SHARED / "tensors" / "sdvae_tensors.json"
    if not listing.exists():
        pytest.skip(f"no {listing}: the names and shapes in sd-vae-ft-mse, which are not redistributed")
    lists = json.loads(listing.read_text())
    published = {**lists["tensors"], **lists[names]}
    full = eqx.filter_eval_shape(lambda k: SDVAEConfig().build(key=k), key)
    known = set()
    for place, leaf in jax.tree_util.tree_flatten_with_path(full)[0]:
        choices = _sdvae_names(jax.tree_util.keystr(place, simple=True, separator="."))
        name = choices[0] if names == "tensors" else choices[-1]
        known |= set(choices)
        shape = leaf.shape
        assert published[name] == list((shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape[::-1])
    assert known >= set(published)


def test_taesd_by_either_file_or_the_folder(tiny, tmp_path):
    folder = write_pair(tmp_path, tensors_of(tiny, _taesd_names))
    for path in (folder, folder / "tiny_encoder.safetensors", str(folder / "tiny_decoder.safetensors")):
        assert_same(load_autoencoder(path), tiny)


def test_taesd_of_other_sizes_is_known_by_its_names(tmp_path):
    config = TAESDConfig(3, 16, (2, 1, 1), (1, 1, 2))
    plain = built(config)
    assert_same(load_autoencoder(write_pair(tmp_path, tensors_of(plain, _taesd_names))), plain)


def test_taesd_of_diffusers(tmp_path):
    config = TAESDConfig(5, 8, (1, 2), (2, 1), scaling_factor=0.7)
    plain = built(config)
    tensors = tensors_of(plain, _tiny_names)
    assert "decoder.layers.0.weight" in tensors and "encoder.layers.1.conv.2.weight" in tensors
    assert_same(load_autoencoder(write(tmp_path, tensors, {**TINY_JSON, "scaling_factor": 0.7})), plain)


def test_taef2_reconstructs_photos():
    weights, photos = SHARED / "weights", SHARED / "data" / "imagenet_samples" / "train-00000-of-00001.parquet"
    if not (weights / "taef2_encoder.safetensors").exists() or not photos.exists():
        pytest.skip(f"no taef2_*.safetensors and photos in {SHARED}: real weights and photos are not redistributed")
    taef2 = load_autoencoder(weights)
    # Every 125th of the 1,000 photos, whose mean over all is 28.6 dB.
    rows = pyarrow.parquet.read_table(photos, columns=["image"])["image"].to_pylist()[::125]
    pixels = np.stack([np.asarray(PIL.Image.open(io.BytesIO(row["bytes"])).convert("RGB")) for row in rows])
    images = pixels.astype(np.float32) / 127.5 - 1
    latents = eqx.filter_jit(lambda model, x: jax.vmap(model.encode)(x))(taef2, jnp.asarray(images)).mean
    assert latents.shape[1:] == taef2.latent_shape((256, 256, 3)) == (32, 32, 32)
    answers = np.clip(decode_batch(taef2, latents), -1, 1)
    error = np.square((answers - images) / 2, dtype=np.float64).mean(axis=(1, 2, 3))
    assert np.mean(-10 * np.log10(error)) >= 28


def test_nothing_there(tmp_path):
    with pytest.raises(ValueError, match=r"no autoencoder in .*absent.*config\.json.*encoder\.safetensors.*hf download"):
        load_autoencoder(tmp_path / "absent")


def test_weights_missing_beside_their_config(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps(KL_JSON))
    with pytest.raises(ValueError, match=rf"no file .*{re.escape(WEIGHTS)}.*hf download"):
        load_autoencoder(tmp_path)


def test_half_of_a_pair(tiny, tmp_path):
    write_pair(tmp_path, tensors_of(tiny, _taesd_names))
    (tmp_path / "tiny_decoder.safetensors").unlink()
    with pytest.raises(ValueError, match=r"no file .*tiny_decoder\.safetensors"):
        load_autoencoder(tmp_path)


def test_two_pairs_in_a_folder(tiny, tmp_path):
    write_pair(tmp_path, tensors_of(tiny, _taesd_names))
    (tmp_path / "other_encoder.safetensors").touch()
    with pytest.raises(ValueError, match=r"holds 2 encoders, other_encoder.*, tiny_encoder.*: name one of the files"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(("name", "words"), [("model.bin", "is none of .*encoder.safetensors"), (WEIGHTS, "one file of two")])
def test_files_of_another_kind(tmp_path, name, words):
    (tmp_path / name).touch()
    with pytest.raises(ValueError, match=words):
        load_autoencoder(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"_class_name": "VQModel"}, "describes 'VQModel', which cannot be read: choose one of AutoencoderKL"),
        ({"act_fn": "relu"}, "act_fn='relu', and only 'silu' can be read"),
        (
            {"down_block_types": ["DownEncoderBlock2D", "AttnDownEncoderBlock2D"]},
            "down_block_types=.*only 'DownEncoderBlock2D'",
        ),
        ({"latents_mean": [0.1, 0.2, 0.3]}, "latents_mean=.*only None"),
    ],
)
def test_configs_of_other_networks(kl, tmp_path, change, words):
    write(tmp_path, tensors_of(kl, _sdvae_names), {**KL_JSON, **change})
    with pytest.raises(ValueError, match=words):
        load_autoencoder(tmp_path)


def test_the_well_known_files_are_those_of_the_page():
    page = (pathlib.Path(__file__).parents[2] / "docs" / "latents.md").read_text()
    assert set(re.findall(r"`([0-9a-f]{64})`", page)) == KNOWN.keys()


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_a_config_that_is_none(tmp_path, text):
    (tmp_path / CONFIG).write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is no config of diffusers"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(
    ("stored", "change"),
    [
        (KL_JSON, {"block_out_channels": 8}),
        (KL_JSON, {"block_out_channels": [8, "16"]}),
        (KL_JSON, {"norm_num_groups": 3}),
        (KL_JSON, {"scaling_factor": None}),
        (TINY_JSON, {"encoder_block_out_channels": []}),
        (TINY_JSON, {"num_encoder_blocks": 3}),
        (TINY_JSON, {"num_encoder_blocks": [1]}),
        (KL_JSON, {"_class_name": ["AutoencoderKL"]}),
    ],
)
def test_a_config_whose_values_make_no_network_is_named(tmp_path, stored, change):
    (tmp_path / CONFIG).write_text(json.dumps(stored | change))
    with pytest.raises(
        ValueError, match=r"config\.json describes (no autoencoder that can be built \(.*\)|.* which cannot be)"
    ):
        load_autoencoder(tmp_path)


def test_a_config_without_a_size(kl, tmp_path):
    write(tmp_path, tensors_of(kl, _sdvae_names), {k: v for k, v in KL_JSON.items() if k != "norm_num_groups"})
    with pytest.raises(ValueError, match=r"config\.json lacks 'norm_num_groups'"):
        load_autoencoder(tmp_path)


def test_widths_of_diffusers_tiny_must_agree(tmp_path):
    (tmp_path / CONFIG).write_text(json.dumps({**TINY_JSON, "decoder_block_out_channels": [8, 16]}))
    with pytest.raises(ValueError, match=r"decoder_block_out_channels=\[8, 16\], and only 8 can be read"):
        load_autoencoder(tmp_path)


def test_a_tensor_missing(kl, tmp_path):
    tensors = tensors_of(kl, _sdvae_names)
    del tensors["decoder.mid_block.attentions.0.to_q.weight"]
    write(tmp_path, tensors, KL_JSON)
    with pytest.raises(ValueError, match=r"lacks the tensor decoder\S*to_q\.weight or decoder\S*query\.weight: fetch it again"):
        load_autoencoder(tmp_path)


def test_a_tensor_too_many(kl, tmp_path):
    write(tmp_path, {**tensors_of(kl, _sdvae_names), "loss.logvar": np.zeros(1, np.float32)}, KL_JSON)
    with pytest.raises(ValueError, match=r"holds 1 tensors that its network has no place for, such as loss\.logvar"):
        load_autoencoder(tmp_path)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("encoder.conv_in.weight", (8, 4, 3, 3), r"\(8, 3, 3, 3\)"),
        ("encoder.mid_block.attentions.0.to_k.weight", (16, 8), r"\(16, 16\)"),
        ("decoder.conv_norm_out.bias", (9,), r"\(8,\)"),
    ],
)
def test_a_tensor_of_another_shape(kl, tmp_path, name, shape, expected):
    write(tmp_path, {**tensors_of(kl, _sdvae_names), name: np.zeros(shape, np.float32)}, KL_JSON)
    with pytest.raises(ValueError, match=rf"the tensor {re.escape(name)} has shape {re.escape(str(shape))}, not {expected}"):
        load_autoencoder(tmp_path)


def test_a_file_cut_short(kl, tmp_path):
    folder = write(tmp_path, tensors_of(kl, _sdvae_names), KL_JSON)
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"cannot be read as safetensors .*: copy it again"):
        load_autoencoder(folder)


def test_a_pair_of_another_network(kl, tmp_path):
    save_file(tensors_of(kl, _sdvae_names), tmp_path / "kl_encoder.safetensors")
    save_file(tensors_of(kl, _sdvae_names), tmp_path / "kl_decoder.safetensors")
    with pytest.raises(ValueError, match="do not hold the two halves of a tiny autoencoder"):
        load_autoencoder(tmp_path)


def test_halves_of_different_autoencoders(tiny, tmp_path):
    write_pair(tmp_path, tensors_of(tiny, _taesd_names))
    decoder = load_file(tmp_path / "tiny_decoder.safetensors")
    save_file({**decoder, "1.weight": np.zeros((8, 4, 3, 3), np.float32)}, tmp_path / "tiny_decoder.safetensors")
    with pytest.raises(ValueError, match=r"the tensor decoder\.1\.weight has shape \(8, 4, 3, 3\), not \(8, 5, 3, 3\)"):
        load_autoencoder(tmp_path)
