"""The small classifier: what it answers, and its file."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from eqx_shortcut.evaluate.networks import classifier_features
from eqx_shortcut.pretrained.small_classifier import SmallClassifier, load_classifier, save_classifier


@pytest.fixture(scope="module")
def network() -> SmallClassifier:
    return eqx.filter_jit(lambda key: SmallClassifier(10, key=key))(jax.random.key(0))


def test_its_file_gives_it_back_to_the_bit_in_less_than_a_megabyte(network, tmp_path):
    save_classifier(tmp_path / "a.safetensors", network, {"accuracy": 0.5})
    again, record = load_classifier(tmp_path / "a.safetensors")
    assert record == {"classes": 10, "accuracy": 0.5}
    assert jax.tree.structure(again) == jax.tree.structure(network)
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(network), strict=True):
        np.testing.assert_array_equal(a, b)
    assert (tmp_path / "a.safetensors").stat().st_size < 2**20


def test_features_are_what_it_answers_of_grey_images_as_coloured(network, tmp_path):
    save_classifier(tmp_path / "a.safetensors", network, {})
    images = np.random.default_rng(0).uniform(-1.2, 1.2, (3, 12, 12, 1)).astype(np.float32)
    features = classifier_features(tmp_path / "a.safetensors", batch=4)
    found, grey = features(images), jnp.clip(jnp.repeat(jnp.asarray(images), 3, axis=-1), -1, 1)
    pooled, _, logits = jax.vmap(network)(grey)
    np.testing.assert_allclose(found.vectors, pooled, rtol=1e-4, atol=1e-6)
    assert found.logits is not None
    np.testing.assert_allclose(found.logits, logits, rtol=1e-4, atol=1e-5)
    assert found.vectors.shape == (3, 128) and features.name == "classifier Frechet distance"


def test_other_files_are_refused(network, tmp_path):
    with pytest.raises(ValueError, match="no file"):
        load_classifier(tmp_path / "missing.safetensors")
    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"is no classifier of classifier\.py"):
        load_classifier(tmp_path / "other.safetensors")
    save_classifier(tmp_path / "wrong.safetensors", network, {"classes": 4})
    with pytest.raises(ValueError, match="it holds other tensors"):
        load_classifier(tmp_path / "wrong.safetensors")
