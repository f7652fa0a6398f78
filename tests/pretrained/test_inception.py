"""Inception-V3: recorded features, the files of its weights, and torch-fidelity's own module with the same weights."""

import hashlib
import json
import pathlib
import pickle
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inceptions
import torchfiles
from eqx_shortcut.evaluate.networks import NetworkFeatures, inception_features
from eqx_shortcut.evaluate.preprocess import REFERENCE, TF
from eqx_shortcut.pretrained.classifier import fill
from eqx_shortcut.pretrained.inception import EPSILON, Inception, Unit, _names, average_pool, load_inception, max_pool

SHARED = pathlib.Path(__file__).parents[3] / "shared" / "tensors" / "inception_tensors.json"


def largest(found, expected) -> float:
    """Error as a share of the largest value."""
    return float(np.abs(np.asarray(found) - expected).max() / np.abs(expected).max())


@pytest.fixture(scope="module")
def published() -> dict[str, np.ndarray]:
    return inceptions.parameters(inceptions.published_shapes())


def test_recorded_features_of_the_original_code():
    shapes = inceptions.recorded_shapes()
    like, tensors = inceptions.of_shapes(shapes), inceptions.tensors(inceptions.parameters(shapes))
    network = fill(like, tensors, _names, epsilon=EPSILON, source="the rule")
    images, expected = inceptions.images(), inceptions.golden()
    np.testing.assert_array_equal(images[:, :4, :4], expected["inception/input_probe"])
    found = NetworkFeatures("FID", {}, network, REFERENCE, batch=3)(images)
    for vector, recorded in zip(found.vectors, expected["inception/acts"], strict=True):
        assert largest(vector, recorded) < 1e-4
    assert found.logits is None
    assert found.spatial is not None and found.spatial.shape == (3, 2023)


def test_pools_by_hand(key):
    x = jax.random.normal(key, (5, 6, 2))
    ones = np.pad(np.ones((5, 6, 1)), [(1, 1), (1, 1), (0, 0)])
    padded = np.pad(np.asarray(x), [(1, 1), (1, 1), (0, 0)])
    squares, counts = (np.stack([array[a : a + 5, b : b + 6] for a in range(3) for b in range(3)]) for array in (padded, ones))
    np.testing.assert_allclose(average_pool(x), squares.sum(0) / counts.sum(0), atol=1e-6)
    np.testing.assert_array_equal(max_pool(x, stride=1, padding=1), np.where(counts > 0, squares, -np.inf).max(0))
    np.testing.assert_array_equal(max_pool(x, stride=2, padding=0), squares.max(0)[1:-1:2, 1:-1:2])


def test_normalisation_is_folded_into_the_kernel(key):
    unit = Unit(iter([key]), 3, 4, 3)
    rng = np.random.default_rng(0)
    scale, bias, mean, variance = (rng.random(4).astype(np.float32) + 0.1 for _ in range(4))
    weight = np.asarray(unit.conv.kernel).transpose(3, 2, 0, 1)
    tensors = {"conv.weight": weight, "bn.weight": scale, "bn.bias": bias, "bn.running_mean": mean, "bn.running_var": variance}
    x = jax.random.normal(key, (5, 6, 3))
    y = (np.asarray(unit.conv(x)) - mean) / np.sqrt(variance + EPSILON) * scale + bias
    folded = fill(unit, tensors, _names, epsilon=EPSILON, source="these")
    np.testing.assert_allclose(folded(x), np.maximum(y, 0), atol=1e-5)


# Files


def test_tensors_are_those_of_the_published_file():
    if not SHARED.exists():
        pytest.skip(f"needs the names and shapes in the published file, as JSON at {SHARED}")
    stored = json.loads(SHARED.read_text())["tensors"]
    named = {name: np.broadcast_to(np.float32(0), shape) for name, shape in inceptions.published_shapes().items()}
    expected = {name: list(tensor.shape) for name, tensor in (inceptions.tensors(named) | inceptions.last_layer()).items()}
    assert {name: shape for name, shape in stored.items() if not name.endswith("num_batches_tracked")} == expected


@pytest.mark.slow
def test_every_file_of_the_same_weights_is_the_same_network(published, tmp_path):
    """Both formats of torch and the original code's pickle; and what is computed does not depend on the devices."""
    tensors = inceptions.tensors(published) | inceptions.last_layer()
    (tmp_path / "archive.pth").write_bytes(torchfiles.archive(tensors))
    (tmp_path / "row.pth").write_bytes(
        torchfiles.row(tensors | {"Mixed_5b.branch1x1.bn.num_batches_tracked": np.ones(1, np.int64)})
    )
    (tmp_path / "original.pkl").write_bytes(pickle.dumps(inceptions.nested(published), 4))
    archive, row, original = (
        load_inception(path) for path in sorted(tmp_path.iterdir(), key=lambda path: "arow".find(path.name[0]))
    )
    assert original.fc is None and archive.fc is not None
    for other in (row, eqx.tree_at(lambda net: net.fc, original, archive.fc, is_leaf=lambda node: node is None)):
        assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), archive, other))
    features = inception_features(tmp_path / "archive.pth", preprocessing=TF, batch=8)
    digest = hashlib.sha256((tmp_path / "archive.pth").read_bytes()).hexdigest()
    assert features.name == "FID"
    assert features.protocol == {"network": "Inception-V3", "weights": f"sha256 {digest[:16]}", "preprocessing": "tf"}
    images = np.random.default_rng(0).uniform(-1, 1, (3, 32, 32, 3)).astype(np.float32)
    alone = NetworkFeatures("", {}, archive, TF, batch=1)(images)
    assert alone.logits is not None and alone.logits.shape == (3, 1008)
    for found, expected in zip(features(images), alone, strict=True):
        assert found is not None and expected is not None and largest(found, expected) < 1e-5


def refused(path: pathlib.Path) -> str:
    with pytest.raises(ValueError) as caught:
        load_inception(path)
    assert "\n" not in str(caught.value) and path.name in str(caught.value)
    return str(caught.value)


def test_other_weights_are_named_with_the_files_hash(tmp_path):
    """Such as torchvision's, which has the same name, an auxiliary head and other classes."""
    path = tmp_path / "inception_v3_google.pth"
    zeros = {
        "Conv2d_1a_3x3.conv.weight": (32, 3, 3, 3),
        "AuxLogits.conv0.conv.weight": (128, 768, 1, 1),
        "fc.weight": (1000, 2048),
    }
    path.write_bytes(torchfiles.archive({name: np.zeros(shape, np.float32) for name, shape in zeros.items()}))
    message = refused(path)
    assert f"sha256 {hashlib.sha256(path.read_bytes()).hexdigest()[:8]}" in message
    first = "Conv2d_1a_3x3.bn.bias, Conv2d_1a_3x3.bn.running_mean, Conv2d_1a_3x3.bn.running_var"
    assert f"470 missing ({first}, ...), 1 left over (AuxLogits.conv0.conv.weight); parameter fc.weight has shape " in message
    assert "has shape (1000, 2048), the architecture asks for (1008, 2048)" in message


def test_a_pickle_is_read_by_name_and_never_run(tmp_path):
    path = tmp_path / "weights.pkl"
    kernel, mean = np.arange(24, dtype=np.float32).reshape(1, 2, 3, 4), np.ones(4, np.float32)
    path.write_bytes(
        pickle.dumps({"Mixed_5b": {"branch1x1": {"conv": {"kernel": kernel, "bias": None}, "bn": {"mean": mean}}}})
    )
    message = refused(path)
    assert "Mixed_5b.branch1x1.conv.weight has shape (4, 3, 1, 2)" in message
    path.write_bytes(b"\x80\x03cos\nsystem\nX\x0c\0\0\0touch canary\x85R.")
    assert "names the global os.system, and only" in refused(path)
    for value in ({"Mixed_5b": [1]}, {"Mixed_5b": "x"}, 3):
        path.write_bytes(pickle.dumps(value))
        refused(path)
    path.write_bytes(b"no weights")
    assert "is no pickle" in refused(path)
    part = {}
    for _ in range(3):  # a hundred references each would be a million parts in 2 KB
        part = {"a": part, "b": part}
    path.write_bytes(pickle.dumps(part))
    assert "a part twice" in refused(path)
    refused(tmp_path / "absent.pth")


# torch-fidelity


@pytest.fixture(scope="module")
def theirs(published, tmp_path_factory):
    module = inceptions.fidelity_part("feature_extractor_inceptionv3")
    torch = pytest.importorskip("torch", reason=inceptions.REASON)

    tensors = inceptions.tensors(published) | inceptions.last_layer()
    counts = {name.replace("running_mean", "num_batches_tracked"): np.zeros((), np.int64) for name in tensors if "mean" in name}
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save({name: torch.from_numpy(value.copy()) for name, value in (tensors | counts).items()}, path)
    names = ["2048", "logits_unbiased", "logits"]
    return path, module.FeatureExtractorInceptionV3("inception-v3-compat", names, feature_extractor_weights_path=str(path))


@pytest.fixture(scope="module")
def ours(theirs) -> Inception:
    return load_inception(theirs[0])


def test_all_outputs_are_torch_fidelitys(theirs, ours):
    torch = pytest.importorskip("torch", reason=inceptions.REASON)

    _, module = theirs
    seen = []
    handle = module.Mixed_6d.branch1x1.register_forward_hook(lambda _, inputs, output: seen.append(output))
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 40, 3), np.uint8)
    vectors, logits, _ = module(torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()))
    handle.remove()
    found = NetworkFeatures("", {}, ours, TF, batch=2)(pixels.astype(np.float32) / 127.5 - 1)
    assert largest(found.vectors, vectors.numpy()) < 1e-4
    assert largest(found.logits, logits.numpy()) < 1e-4
    assert largest(found.spatial, seen[0].numpy()[:, :7].transpose(0, 2, 3, 1).reshape(2, -1)) < 1e-4


def test_every_block_is_torch_fidelitys(theirs, ours):
    torch = pytest.importorskip("torch", reason=inceptions.REASON)

    _, module = theirs
    names = [name for name, _ in module.named_children() if re.match(r"(Conv2d|Mixed)_", name)]
    assert len(names) == 16
    seen = {}
    handles = [
        getattr(module, name).register_forward_hook(
            lambda _, inputs, output, name=name: seen.update({name: (inputs[0].numpy().copy(), output.numpy().copy())})
        )
        for name in names
    ]
    module(torch.from_numpy(np.random.default_rng(1).integers(0, 256, (1, 3, 64, 64), np.uint8)))
    for handle in handles:
        handle.remove()
    run = eqx.filter_jit(lambda block, x: block(x))
    for name, (x, y) in seen.items():
        found = run(ours.layers[name], jnp.asarray(x[0].transpose(1, 2, 0)))
        assert largest(found, y[0].transpose(1, 2, 0)) < 1e-4, name
