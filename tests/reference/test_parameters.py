import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import reference
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.models.layers import Dense

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


@pytest.mark.parametrize(
    ("option", "said"),
    [({"mlp": "swiglu"}, "mlp=swiglu"), ({"qk_norm": True, "guided": "scale"}, "qk_norm=True, guided=scale")],
)
def test_parameters_that_the_reference_does_not_have_are_refused(option, said):
    config = dataclasses.replace(CONFIG, **option)
    structure = eqx.filter_eval_shape(lambda key: config.build(SHAPE, CLASSES, key=key), jax.random.key(0))
    with pytest.raises(ValueError, match=f"with {said} has parameters that the reference has no names for: keep its"):
        reference.to_parameters(structure)


def test_key_stands_before_query():
    stored, qkv = parameters(), network().blocks.qkv
    assert isinstance(qkv, Dense)
    for place, name in enumerate(("Dense_2", "Dense_1", "Dense_3")):
        np.testing.assert_array_equal(qkv.kernel[1, :, place].reshape(8, 8), stored[f"DiTBlock_1/{name}/kernel"])


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
        (without("DiTBlock_1/Dense_3/bias"), r"1 missing \(DiTBlock_1/Dense_3/bias\), 0 left over"),
        ({**parameters(), "DiTBlock_2/Dense_0/bias": np.zeros(48)}, r"0 missing, 1 left over \(DiTBlock_2/Dense_0/"),
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


def test_the_writing_back_is_the_references_nesting():
    tree = reference.nested(reference.to_parameters(network()))
    assert set(tree) == {name.split("/")[0] for name in SHAPES}
    assert set(tree["DiTBlock_1"]) == {"Dense_0", "Dense_1", "Dense_2", "Dense_3", "Dense_4", "MlpBlock_0"}
    flat = {"/".join(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}
    assert flat.keys() == SHAPES.keys()
    for name, value in parameters().items():
        np.testing.assert_array_equal(flat[name], value, err_msg=name)


@pytest.mark.parametrize("ratio", [1, 1.3, 4, 49 / 9])
@pytest.mark.parametrize(("hidden", "heads", "depth", "patch"), [(8, 2, 1, 1), (12, 3, 3, 2), (100, 5, 2, 4)])
def test_the_architecture_is_seen_in_the_shapes(hidden, heads, depth, patch, ratio):
    config = DiTConfig(hidden=hidden, depth=depth, heads=heads, patch=patch, mlp_ratio=ratio, step="none")

    def shapes(config):
        return jax.eval_shape(lambda key: reference.to_parameters(config.build((8, 8, 3), 7, key=key)), jax.random.key(0))

    stored = {name: np.broadcast_to(np.float32(0), leaf.shape) for name, leaf in shapes(config).items()}
    found, channels, classes = reference.architecture(stored, heads=heads, step="none")
    assert (found.hidden, found.heads, found.depth, found.patch, found.step) == (hidden, heads, depth, patch, "none")
    assert (channels, classes) == (3, 7)
    assert shapes(found) == shapes(config)


def test_every_width_of_an_mlp_is_a_ratio():
    for hidden in (8, 48, 384, 1152):
        for wide in range(1, 5 * hidden, 7):
            stored = {**parameters(), "DiTBlock_0/MlpBlock_0/Dense_0/kernel": np.zeros((hidden, wide))}
            stored["PatchEmbed_0/Conv_0/kernel"] = np.broadcast_to(0.0, (2, 2, 3, hidden))
            assert int(hidden * reference.architecture(stored, heads=1)[0].mlp_ratio) == wide


@pytest.mark.parametrize(("hidden", "heads"), [(384, 6), (768, 12), (1024, 16), (1152, 16)])
def test_published_widths_know_their_heads(hidden, heads):
    stored = {**parameters(), "PatchEmbed_0/Conv_0/kernel": np.broadcast_to(0.0, (2, 2, 3, hidden))}
    assert reference.architecture(stored)[0].heads == heads
    assert reference.architecture(stored, heads=4)[0].heads == 4


@pytest.mark.parametrize(
    ("stored", "heads", "message"),
    [
        (parameters(), None, "heads at width 8 cannot be seen in the parameters: give it with --heads"),
        (parameters(), 0, "heads=0: use 1 or more"),
        ({**parameters(), "LabelEmbedder_0/Embed_0/embedding": np.zeros((1, 8))}, 2, "has 1 row"),
        (parameters(), 3, "hidden=8 is not divisible by heads=3"),
        (without("PatchEmbed_0/Conv_0/kernel"), 2, "lack PatchEmbed_0/Conv_0/kernel"),
        (without("LabelEmbedder_0/Embed_0/embedding"), 2, "lack LabelEmbedder_0/Embed_0/embedding"),
        (without("DiTBlock_0/MlpBlock_0/Dense_0/kernel"), 2, "lack DiTBlock_0/MlpBlock_0/Dense_0/kernel"),
        ({**parameters(), "PatchEmbed_0/Conv_0/kernel": np.zeros((2, 3, 3, 8))}, 2, "patches of 2 x 3"),
        ({**parameters(), "PatchEmbed_0/Conv_0/kernel": np.zeros((12, 8))}, 2, r"shape \(12, 8\), and 4 axes"),
    ],
    ids=["heads", "none", "classes", "divisor", "patch", "label", "block", "oblong", "flat"],
)
def test_an_architecture_that_cannot_be_seen_is_a_sentence(stored, heads, message):
    with pytest.raises(reference.ReferenceCheckpointError, match=message):
        reference.architecture(stored, heads=heads)
