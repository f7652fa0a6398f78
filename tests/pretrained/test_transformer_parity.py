"""Transformers written for torch and diffusers, read by those; `pip install -e ".[parity]"` brings them."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import published
from eqx_shortcut.models import NetworkField
from eqx_shortcut.pretrained.transformer_files import read_published, write_diffusers, write_torch
from eqx_shortcut.pretrained.transformers import Kind, from_tensors
from torch_build import load

REASON = "needs torch and diffusers: install the extra `parity`"
torch = pytest.importorskip("torch", reason=REASON)
pytest.importorskip("diffusers", reason=REASON)
diffusers = load("diffusers")
SHAPES = published.shapes("transformer_shapes.json")["small"]


@functools.cache
def network(kind: Kind):
    given = published.weights(SHAPES)
    return from_tensors(given, kind, key=jax.random.key(0), size=published.SIZE, heads=published.HEADS)


def assert_same(found, expected) -> None:
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("name", ["sit.pt", "sit.safetensors"])
def test_what_is_written_for_torch_has_the_names_of_sit(tmp_path, name):
    """Without variances, as its code has them with `learn_sigma=False`; the file comes back to the bit."""
    write_torch(tmp_path / name, network("sit"), "sit")
    found = read_published(tmp_path / name)
    outputs = SHAPES["final_layer.linear.bias"][0] // 2
    halved = {"final_layer.linear.bias": (outputs,), "final_layer.linear.weight": (outputs, published.WIDTH)}
    expected = {**SHAPES, **halved, "pos_embed": (1, 16, published.WIDTH)}
    assert {name: value.shape for name, value in found.tensors.items()} == expected
    if name.endswith(".pt"):
        state = torch.load(tmp_path / name, weights_only=True)
        assert all(torch.equal(state[key], torch.from_numpy(value.copy())) for key, value in found.tensors.items())
    assert_same(from_tensors(found.tensors, "sit", key=jax.random.key(0), heads=published.HEADS), network("sit"))


def test_diffusers_reads_what_is_written_for_it(tmp_path):
    """Every name and no other. Its rates of sinusoids end at 1e-4 and DiT's before it, so that they are set to DiT's."""
    write_diffusers(tmp_path / "dit", network("dit"), "dit")
    theirs, loading = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "dit", output_loading_info=True)
    assert not any(loading.values())
    for block in theirs.transformer_blocks:
        block.norm1.emb.time_proj.downscale_freq_shift = 0
    x = torch.from_numpy(published.images().transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        found = theirs.eval()(x, torch.from_numpy(published.LEVELS), torch.from_numpy(published.LABELS)).sample
    ours = from_tensors(published.weights(SHAPES), "sit", key=jax.random.key(0), size=published.SIZE, heads=published.HEADS)
    given = jnp.asarray(published.images()), jnp.asarray(published.LEVELS, jnp.float32), jnp.ones(4)
    expected = NetworkField(ours)(*given, jnp.asarray(published.LABELS))
    np.testing.assert_allclose(found.numpy().transpose(0, 2, 3, 1), expected, rtol=0, atol=2e-4)
    again = read_published(tmp_path / "dit")
    assert again.size is not None
    assert_same(from_tensors(again.tensors, "dit", key=jax.random.key(0), size=again.size, heads=again.heads), network("dit"))


def test_what_diffusers_writes_is_read(tmp_path):
    torch.manual_seed(0)
    theirs = diffusers.DiTTransformer2DModel(2, 12, 4, num_layers=1, sample_size=8, num_embeds_ada_norm=5)
    theirs.save_pretrained(tmp_path)
    found = read_published(tmp_path)
    ours = from_tensors(found.tensors, "dit", key=jax.random.key(0), size=8, heads=2)
    assert (ours.classes, ours.config.depth, found.heads, found.size) == (5, 1, 2, 8)
    np.testing.assert_array_equal(ours.patches.bias, theirs.pos_embed.proj.bias.detach().numpy())
