"""Preprocessing: the crop and the antialiased resize of the original, on RGB bytes that depend on the picture alone."""

import jax
import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from eqx_shortcut.data.errors import BadImage
from eqx_shortcut.data.preprocess import centre_crop, decode, resize, square
from stored import BAD, PIXELS, encode

RNG = np.random.default_rng(0)


def picture(height: int, width: int) -> np.ndarray:
    return RNG.integers(0, 256, (height, width, 3), np.uint8)


def resized_by_jax(image: np.ndarray, size: int) -> np.ndarray:
    """The same filter as tf.image.resize(antialias=True), written by others."""
    return np.asarray(jax.image.resize(jnp.asarray(image, jnp.float32), (size, size, 3), "linear", antialias=True))


@pytest.mark.parametrize(
    ("side", "size"), [(375, 256), (333, 100), (257, 256), (255, 256), (64, 256), (32, 64), (300, 7), (1, 5)]
)
def test_resize_is_the_antialiased_triangle_filter(side, size):
    image = picture(side, side)
    np.testing.assert_allclose(resize(image, size), resized_by_jax(image, size), atol=1e-3)


@pytest.mark.parametrize(
    ("height", "width", "top", "left"), [(5, 5, 0, 0), (5, 8, 0, 1), (5, 9, 0, 2), (8, 5, 1, 0), (9, 5, 2, 0), (6, 5, 0, 0)]
)
def test_the_crop_starts_where_tensorflow_starts_it(height, width, top, left):
    """tf.image.resize_with_crop_or_pad cuts floor(margin / 2) at the top and on the left."""
    image = picture(height, width)
    np.testing.assert_array_equal(centre_crop(image), image[top : top + 5, left : left + 5])


@pytest.mark.parametrize(("height", "width"), [(40, 61), (50, 33), (20, 20), (16, 24), (9, 12)])
def test_a_square_is_within_half_a_grey_level_of_the_original(height, width):
    image = picture(height, width)
    found = square(encode(image), 16)
    assert found.shape == (16, 16, 3) and found.dtype == np.uint8
    np.testing.assert_allclose(found, resized_by_jax(centre_crop(image), 16), atol=0.501)


def test_a_picture_of_the_right_size_is_left_as_it_is():
    image = picture(16, 16)
    np.testing.assert_array_equal(square(encode(image), 16), image)


GREY = PIXELS[0, ..., 0]
ALPHA = np.concatenate([PIXELS[0], GREY[..., None]], axis=-1)
PALETTE = PIL.Image.fromarray(PIXELS[0]).quantize(16)
KINDS = {
    "RGB": (encode(PIXELS[0]), PIXELS[0]),
    "RGBA": (encode(ALPHA), PIXELS[0]),
    "WebP": (encode(PIXELS[0], "webp", lossless=True), PIXELS[0]),
    "grey": (encode(GREY), GREY[..., None]),
    "grey and alpha": (encode(np.stack([GREY, GREY], axis=-1)), GREY[..., None]),
    "palette": (
        encode(np.asarray(PIXELS[0]), mode="P"),
        np.asarray(PIL.Image.fromarray(PIXELS[0]).convert("P").convert("RGB")),
    ),
    "palette with holes": (
        encode(PIXELS[0], mode="P", transparency=bytes(range(256))),
        np.asarray(PIL.Image.fromarray(PIXELS[0]).convert("P").convert("RGB")),
    ),
    "two colours": (encode(GREY > 128), (GREY > 128)[..., None] * np.uint8(255)),
    "array": (PIXELS[0], PIXELS[0]),
    "grey array": (GREY, GREY[..., None]),
    "array of one channel": (GREY[..., None], GREY[..., None]),
    "array with alpha": (ALPHA, PIXELS[0]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_8_bits_becomes_rgb(kind):
    encoded, expected = KINDS[kind]
    np.testing.assert_array_equal(decode(encoded), np.broadcast_to(expected, (*GREY.shape, 3)))


def test_a_jpeg_keeps_its_stored_orientation():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    assert decode(encode(PIXELS[0], "jpeg", exif=exif)).shape == PIXELS[0].shape


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_image_is_refused_with_its_reason(kind):
    encoded, reason = BAD[kind]
    with pytest.raises(BadImage) as caught:
        decode(encoded)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 5), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros(4, np.uint8)],
)
def test_an_array_that_is_no_picture_is_refused(pixels):
    with pytest.raises(BadImage, match="8-bit grey, palette or RGB is needed"):
        decode(pixels)
