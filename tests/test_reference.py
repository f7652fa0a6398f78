import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import reference
from eqx_shortcut.models import DiTConfig

CONFIG, SHAPE, CLASSES = DiTConfig(hidden=8, depth=2, heads=2, patch=2, mlp_ratio=2), (4, 6, 3), 5
SHAPES = {
    "PatchEmbed_0/Conv_0/kernel": (2, 2, 3, 8),
    "PatchEmbed_0/Conv_0/bias": (8,),
    "LabelEmbedder_0/Embed_0/embedding": (6, 8),
    "Embed_0/embedding": (256, 1),
    "FinalLayer_0/Dense_0/kernel": (8, 16),
    "FinalLayer_0/Dense_0/bias": (16,),
    "FinalLayer_0/Dense_1/kernel": (8, 12),
    "FinalLayer_0/Dense_1/bias": (12,),
}
BLOCK = {f"Dense_{j}": (8, 8) for j in range(1, 5)}
BLOCK |= {"Dense_0": (8, 48), "MlpBlock_0/Dense_0": (8, 16), "MlpBlock_0/Dense_1": (16, 8)}
EMBEDDER = {"Dense_0": (256, 8), "Dense_1": (8, 8)}
for _i in range(2):
    for _group, _layers in {f"DiTBlock_{_i}": BLOCK, f"TimestepEmbedder_{_i}": EMBEDDER}.items():
        for _name, _shape in _layers.items():
            SHAPES |= {f"{_group}/{_name}/kernel": _shape, f"{_group}/{_name}/bias": _shape[1:]}


def parameters() -> dict[str, np.ndarray]:
    """Every entry another number, so that none can be swapped unseen."""
    found, start = {}, 0
    for name, shape in SHAPES.items():
        found[name] = np.arange(start, start + np.prod(shape), dtype=np.float32).reshape(shape)
        start += np.prod(shape)
    return found


@functools.cache
def network():
    return reference.from_parameters(parameters(), CONFIG, SHAPE, CLASSES)


def test_parameters_survive_the_round_trip():
    found = reference.to_parameters(network())
    assert found.keys() == SHAPES.keys()
    for name, value in parameters().items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


def test_networks_survive_the_round_trip():
    structure = eqx.filter_eval_shape(lambda key: CONFIG.build(SHAPE, CLASSES, key=key), jax.random.key(0))
    rng = np.random.default_rng(0)
    built = jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), leaf.dtype), structure)
    again = reference.from_parameters(reference.to_parameters(built), CONFIG, SHAPE, CLASSES)
    assert jax.tree.structure(again) == jax.tree.structure(built)
    for found, expected in zip(jax.tree.leaves(again), jax.tree.leaves(built), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_key_stands_before_query():
    stored, qkv = parameters(), network().blocks.qkv.kernel
    for place, name in enumerate(("Dense_2", "Dense_1", "Dense_3")):
        np.testing.assert_array_equal(qkv[1, :, place].reshape(8, 8), stored[f"DiTBlock_1/{name}/kernel"])


def test_the_patch_kernel_reads_a_patch_row_by_row():
    np.testing.assert_array_equal(network().patches.kernel, parameters()["PatchEmbed_0/Conv_0/kernel"].reshape(12, 8))


def test_half_precision_parameters_become_float32():
    half = {name: np.zeros(shape, np.float16) for name, shape in SHAPES.items()}
    found = reference.from_parameters(half, CONFIG, SHAPE, CLASSES)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(found))


def without(name: str):
    return {key: value for key, value in parameters().items() if key != name}


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (without("DiTBlock_1/Dense_3/bias"), r"1 missing \(first: \['DiTBlock_1/Dense_3/bias'\]\), 0 left over"),
        ({**parameters(), "DiTBlock_2/Dense_0/bias": np.zeros(48)}, r"0 missing .*1 left over \(first: \['DiTBlock_2/Dense_0/"),
        (
            {**parameters(), "LabelEmbedder_0/Embed_0/embedding": np.zeros((7, 8))},
            r"LabelEmbedder_0/Embed_0/embedding has shape \(7, 8\), the architecture asks for \(6, 8\)",
        ),
        ({}, r"missing"),
    ],
    ids=["missing", "left over", "shape", "empty"],
)
def test_other_parameters_are_refused_by_name(stored, message):
    with pytest.raises(ValueError, match=message):
        reference.from_parameters(stored, CONFIG, SHAPE, CLASSES)
