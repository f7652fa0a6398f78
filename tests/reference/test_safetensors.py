"""Networks as safetensors files: the same network back, names and layout that others expect, nothing else loaded."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from eqx_shortcut import reference, settings
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.models.dit import DiT
from eqx_shortcut.objectives import Shortcut
from eqx_shortcut.reference import safetensors

CONFIG, SHAPE, CLASSES = DiTConfig(hidden=8, depth=2, heads=2, step="linear", embed_scale=3.0, mlp_ratio=1.5), (4, 6, 3), 5
METADATA = {"objective": Shortcut(steps=4), "step": 7}


@pytest.fixture(scope="module")
def network() -> DiT:
    rng = np.random.default_rng(0)
    built = DiT(CONFIG, SHAPE, CLASSES, key=jax.random.key(0))
    return jax.tree.map(lambda a: jnp.asarray(rng.standard_normal(a.shape), a.dtype), built)


@pytest.fixture
def saved(tmp_path: pathlib.Path, network: DiT) -> pathlib.Path:
    safetensors.save(tmp_path / "n.safetensors", network, METADATA)
    return tmp_path / "n.safetensors"


def changed(path: pathlib.Path, tensors: dict | None = None, **header) -> pathlib.Path:
    """The file with other tensors, or with entries of its header changed."""
    with safe_open(path, framework="numpy") as file:
        stored = json.loads(file.metadata()[safetensors.HEADER])
    save_file(tensors or load_file(path), path, metadata={safetensors.HEADER: json.dumps(stored | header)})
    return path


def test_a_network_survives_the_round_trip(saved, network):
    found, metadata = safetensors.load(saved)
    assert jax.tree.structure(found) == jax.tree.structure(network)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(network), strict=True):
        np.testing.assert_array_equal(a, b)
    assert metadata == {"objective": settings.dump(METADATA["objective"]), "step": 7}
    assert settings.parse(metadata["objective"]) == METADATA["objective"]
    assert [path.name for path in saved.parent.iterdir()] == [saved.name]


def test_tensors_have_the_references_names_and_layout(saved, network):
    found = load_file(saved)
    expected = reference.to_parameters(network)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)
    assert found["DiTBlock_1/MlpBlock_0/Dense_0/kernel"].shape == (8, 12), "[in, out]"


def edited(path: pathlib.Path, name: str, value: np.ndarray | None) -> dict[str, np.ndarray]:
    tensors = {**load_file(path), name: value}
    return {key: tensor for key, tensor in tensors.items() if tensor is not None}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DiTBlock_1/Dense_2/bias", None, r"1 missing \(DiTBlock_1/Dense_2/bias\)"),
        ("Embed_0/embedding", None, r"1 missing \(Embed_0/embedding\)"),
        ("PatchEmbed_0/Conv_0/kernel", None, "lack PatchEmbed_0/Conv_0/kernel"),
        ("other", np.zeros(2), r"1 left over \(other\)"),
        ("DiTBlock_2/Dense_0/bias", np.zeros(48), "tensors are of 3 blocks, its settings of 2"),
        ("FinalLayer_0/Dense_1/bias", np.zeros(9), r"FinalLayer_0/Dense_1/bias has shape \(9,\)"),
    ],
)
def test_other_tensors_are_refused_by_name(saved, name, value, message):
    with pytest.raises(ValueError, match=message):
        safetensors.load(changed(saved, edited(saved, name, value)))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"network": {"kind": "os:DirEntry"}}, r"names os:DirEntry, and only classes of eqx_shortcut"),
        ({"metadata": {"objective": {"steps": [{"kind": "antigravity:x"}]}}}, "names antigravity:x"),
        ({"network": {"kind": ["os"]}}, "only classes of eqx_shortcut"),
        ({"network": settings.dump(Shortcut())}, "describes no network"),
        ({"network": settings.dump(CONFIG) | {"heads": 3}}, "not divisible by heads=3"),
        ({"network": settings.dump(CONFIG) | {"heads": "many"}}, "cannot be used"),
        ({"network": settings.dump(CONFIG) | {"colour": 3}}, "no field colour"),
        ({"network": settings.dump(CONFIG) | {"depth": 10**9}}, "tensors are of 2 blocks"),
        ({"shape": [4, 6]}, "cannot be used"),
        ({"shape": [4, 6, "3"]}, "describes no network"),
        ({"shape": [5, 6, 3]}, "not divisible by patch=2"),
        ({"classes": 0}, "describes no network"),
        ({"classes": 6}, r"LabelEmbedder_0/Embed_0/embedding has shape \(6, 8\), the architecture asks for \(7, 8\)"),
    ],
)
def test_a_header_of_other_making_is_a_sentence(saved, header, message):
    with pytest.raises(ValueError, match=message) as caught:
        safetensors.load(changed(saved, **header))
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    with pytest.raises(ValueError, match="no file"):
        safetensors.load(path)
    for data in (b"", b"\x80\x04something else entirely", (2**60).to_bytes(8, "little") + b"{"):
        path.write_bytes(data)
        with pytest.raises(ValueError, match="cannot be read as safetensors"):
            safetensors.load(path)
    save_file({"a": np.zeros(2)}, path)
    with pytest.raises(ValueError, match="has no metadata 'eqx_shortcut'"):
        safetensors.load(path)
    save_file({"a": np.zeros(2)}, path, metadata={safetensors.HEADER: "{"})
    with pytest.raises(ValueError, match=r"metadata of .* cannot be used"):
        safetensors.load(path)
