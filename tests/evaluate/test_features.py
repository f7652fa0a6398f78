"""Features of images: what reaches a network under each protocol, how batches are run, and what is refused."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import inceptions
from eqx_shortcut import sharding
from eqx_shortcut.evaluate.features import Custom, Features, Pixels, coarse, pixels
from eqx_shortcut.evaluate.networks import NetworkFeatures
from eqx_shortcut.evaluate.preprocess import EFFICIENTNET, INCEPTION, PYTORCH_FID, REFERENCE, TF, Preprocessing, to_bytes
from eqx_shortcut.figures import to_bytes as bytes_saved
from eqx_shortcut.pretrained.classifier import Activations

RNG = np.random.default_rng(0)
CROSSINGS = [0, 1, 149, 150, 298]


def images(count: int, side: int = 4, channels: int = 3) -> np.ndarray:
    return RNG.uniform(-1, 1, (count, side, side, channels)).astype(np.float32)


class Means(eqx.Module):
    """A network whose features are told by hand."""

    scale: jax.Array

    def __call__(self, image):
        return Activations(self.scale * jnp.mean(image, axis=(0, 1)), image.reshape(-1), None)


PLAIN = Preprocessing("as they are", lambda image: image)


def features(batch: int) -> NetworkFeatures:
    return NetworkFeatures("means", {"network": "means"}, Means(jnp.float32(2)), PLAIN, batch)


# Preprocessing


@pytest.mark.parametrize("side", [32, 64, 256])
def test_resizing_is_that_of_the_original_code(side):
    recorded = inceptions.golden()
    seed = int(recorded["resize/seed"])
    image = np.random.default_rng([seed, 3, side]).uniform(-1.3, 1.3, (1, side, side, 3)).astype(np.float32)[0]
    found = np.asarray(REFERENCE.prepare(jnp.asarray(image)))
    assert found.shape == (299, 299, 3)
    expected = recorded[f"resize/{side}/out_rows_and_cols_0_1_149_150_298"]
    np.testing.assert_allclose(found[np.ix_(CROSSINGS, CROSSINGS)], expected, atol=1e-5)
    np.testing.assert_allclose(found.mean(dtype=np.float64), recorded[f"resize/{side}/mean"], atol=1e-7)


@pytest.mark.parametrize("shape", [(7, 20, 3), (400, 310, 3)])
def test_half_pixel_positions_are_jaxs(shape):
    image = jnp.asarray(RNG.uniform(-1, 1, shape), jnp.float32)
    expected = jax.image.resize(image, (299, 299, 3), "bilinear", antialias=False)
    # JAX computes the places in float32.
    np.testing.assert_allclose(REFERENCE.prepare(image), expected, atol=1e-4)


def test_an_image_of_the_networks_size_stays():
    image = images(1, 299)[0]
    pixels = bytes_saved(image).astype(np.float32)
    np.testing.assert_array_equal(REFERENCE.prepare(jnp.asarray(image)), image)
    np.testing.assert_allclose(TF.prepare(jnp.asarray(image)), (pixels - 128) / 128, atol=1e-6)
    np.testing.assert_allclose(PYTORCH_FID.prepare(jnp.asarray(image)), pixels / 127.5 - 1, atol=1e-6)
    small = images(1, 224)[0]
    expected = (bytes_saved(small).astype(np.float32) - 127) / 128
    np.testing.assert_allclose(EFFICIENTNET.prepare(jnp.asarray(small)), expected, atol=1e-5)


def test_bytes_are_those_of_a_saved_image():
    """At every edge between two bytes and beyond both ends."""
    edges = (np.arange(257, dtype=np.float32) - 0.5) / 127.5 - 1
    image = np.concatenate([edges, np.nextafter(edges, np.float32(-9)), np.nextafter(edges, np.float32(9)), [-7, 7, 0.3]])
    image = image.astype(np.float32).reshape(-1, 1, 1)
    np.testing.assert_array_equal(to_bytes(jnp.asarray(np.repeat(image, 3, axis=2)))[..., 0], bytes_saved(image)[..., 0])


def test_tensorflow_1_begins_at_the_corner():
    """A ramp stays a ramp from the first pixel on, and stops at the last."""
    ramp = np.broadcast_to(np.arange(10, dtype=np.float32)[:, None, None], (10, 10, 3)) / 127.5 - 1
    found = np.asarray(TF.prepare(jnp.asarray(ramp)))[:, 0, 0] * 128 + 128
    np.testing.assert_allclose(found, np.minimum(np.arange(299) * 10 / 299, 9), atol=1e-4)


def test_shrinking_for_efficientnet_is_antialiased():
    """Stripes finer than the new pixels become even grey."""
    stripes = np.where(np.arange(1792) % 2, 1.0, -1.0).astype(np.float32)[:, None, None] * np.ones((1, 4, 3), np.float32)
    found = np.asarray(EFFICIENTNET.prepare(jnp.asarray(stripes)))
    np.testing.assert_allclose(found[8:-8], 0.5 / 128, atol=2e-3)


@pytest.mark.parametrize("side", [32, 256, 400])
def test_resizing_is_torch_fidelitys_and_torchs(side):
    theirs = inceptions.fidelity_part("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    torch = pytest.importorskip("torch", reason=inceptions.REASON)

    image = images(1, side)[0]
    pixels = torch.from_numpy(bytes_saved(image).transpose(2, 0, 1)[None].astype(np.float32))
    tf = (theirs(pixels, size=(299, 299), align_corners=False) - 128) / 128
    half = torch.nn.functional.interpolate(pixels / 255, size=(299, 299), mode="bilinear", align_corners=False)
    for protocol, expected in ((TF, tf), (PYTORCH_FID, 2 * half - 1)):
        found = np.asarray(protocol.prepare(jnp.asarray(image)))
        np.testing.assert_allclose(found, expected.numpy()[0].transpose(1, 2, 0), atol=5e-5)


def test_protocols_are_told_apart_by_name():
    assert list(INCEPTION) == ["reference", "tf", "pytorch-fid"]
    image = jnp.asarray(images(1, 50)[0])
    prepared = [protocol.prepare(image) for protocol in INCEPTION.values()]
    assert all(float(jnp.abs(a - b).max()) > 1e-3 for i, a in enumerate(prepared) for b in prepared[:i])


# Batches


@pytest.mark.parametrize("count", [1, 4, 5, 9])
@pytest.mark.parametrize("batch", [1, 3, 4, 8])
def test_any_number_of_images_is_each_ones_features(count, batch):
    x = images(count)
    found = features(batch)(x)
    np.testing.assert_allclose(found.vectors, 2 * x.mean(axis=(1, 2)), atol=1e-6)
    np.testing.assert_array_equal(found.spatial, x.reshape(count, -1))
    assert found.logits is None and isinstance(found.vectors, np.ndarray)


def test_batches_that_divide_are_split_over_the_devices():
    (split, network), (alone, _) = (features(batch)._placed for batch in (16, 12))
    assert split.devices.size == len(jax.local_devices()) == 8 and alone.devices.size == 1
    assert network.scale.sharding.is_fully_replicated and len(network.scale.devices()) == 8


def test_one_program_serves_any_number_of_images():
    traces = []

    def network(image):
        traces.append(image.shape)
        return Activations(jnp.mean(image, axis=(0, 1)), None, None)

    counted = NetworkFeatures("counted", {}, network, PLAIN, batch=2)
    for count in (1, 2, 5):
        assert counted(images(count)).vectors.shape == (count, 3)
    assert traces == [(4, 4, 3)]


def test_grey_images_are_repeated():
    grey = images(2, channels=1)
    found = features(2)(grey)
    np.testing.assert_array_equal(found.vectors, features(2)(np.repeat(grey, 3, axis=3)).vectors)


def test_a_batch_holds_an_image_at_least():
    with pytest.raises(ValueError, match="batch=0: compute at least 1 image at once"):
        features(0)


# Without a network


def test_pixels_are_the_clipped_images():
    x = 2 * images(3, channels=1)
    np.testing.assert_array_equal(Pixels()(x).vectors, pixels(np.clip(x, -1, 1)))
    assert (Pixels().name, Pixels()(x).logits) == ("pixel Frechet distance", None)


def test_a_function_is_given_clipped_images_and_gives_vectors():
    custom = Custom(lambda x: jnp.asarray(x).max(axis=(1, 2)), "brightest pixels, v1")
    x = 2 * images(3)
    np.testing.assert_array_equal(custom(x).vectors, np.minimum(x.max(axis=(1, 2)), 1))
    assert custom.name in custom.protocol.values()
    wrong = (lambda x: x, lambda x: x[1:].mean(axis=(1, 2)), lambda x: x.mean(axis=(1, 2)) > 0)
    for function in wrong:
        with pytest.raises(ValueError, match=r"mine made an array of shape .*: return floats of shape"):
            Custom(function, "mine")(x)


EVERY = {"pixels": Pixels(), "custom": Custom(pixels, "mine"), "network": features(4)}


@pytest.mark.parametrize("some", EVERY.values(), ids=EVERY)
def test_what_are_no_images_is_refused_in_one_sentence(some):
    assert isinstance(some, Features)
    spoilt = images(9)
    spoilt[3, 0, 0, 0], spoilt[5, 1, 1, 1] = np.nan, np.inf
    cases = {
        "2 of 9 images hold NaN or infinity": spoilt,
        r"9 images have values from .* to .*, not one below 0": np.abs(images(9)),
        r"images have shape \(4, 4, 3\)": images(1)[0],
        r"shape \(2, 4, 4, 3\) and type uint8": np.zeros((2, 4, 4, 3), np.uint8),
        r"shape \(0, 4, 4, 3\)": images(0),
    }
    for words, wrong in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            some(wrong)
        assert "\n" not in str(caught.value)


def test_a_few_bright_images_are_not_refused():
    bright = np.abs(images(9))
    assert len(features(4)(bright[:7]).vectors) == 7
    bright[0, 0, 0, 0] = -0.01
    assert len(features(4)(bright).vectors) == 9


def test_networks_of_colours_refuse_other_channels():
    with pytest.raises(ValueError, match=r"have 2 channels, not 1 or 3"):
        features(4)(images(2, channels=2))


@pytest.mark.parametrize(
    ("shape", "side"), [((32, 32, 3), 1), ((8, 8, 1), 1), ((64, 64, 3), 2), ((96, 48, 3), 3), ((37, 37, 1), 2)]
)
def test_large_images_are_compared_by_means_over_squares(shape, side):
    images = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    found = coarse(images)
    assert found.shape == (2, shape[0] // side, shape[1] // side, shape[2])
    last = (shape[0] // side - 1) * side
    expected = images[1, last : last + side, :side].astype(np.float64).mean(axis=(0, 1))
    np.testing.assert_allclose(found[1, -1, 0], expected, atol=1e-6)


def test_features_are_computed_over_all_devices_inside_a_run_on_one():
    """The mesh of a run that is judged is in use then."""
    images = np.linspace(-1, 1, 3 * 9 * 9, dtype=np.float32).reshape(3, 9, 9, 1)
    with jax.set_mesh(sharding.make_mesh(devices=jax.devices()[:1])):
        inside = features(8)(images).vectors
    np.testing.assert_array_equal(inside, features(8)(images).vectors)
