"""Preprocessing of images in [-1, 1] for feature networks, on the device: one function for each protocol."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

INCEPTION_SIDE = 299
EFFICIENTNET_SIDE = 224

Image = Float[Array, "height width 3"]
Prepared = Float[Array, "side side 3"]
Positions = Float[np.ndarray, " side"]


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """How an image in [-1, 1] becomes the input of a network; distances are compared under one alone."""

    name: str
    """The name in results."""
    prepare: Callable[[Image], Prepared]
    """Prepares one image of any size for a feature network."""


def to_bytes(image: Image) -> Image:
    """The bytes of the image when it is saved, 0 to 255, as floats."""
    return jnp.clip(jnp.round((image + 1) * 127.5), 0, 255)


def bilinear(
    image: Float[Array, "height width channels"], rows: Positions, columns: Positions
) -> Float[Array, "side side channels"]:
    """The image at the crossings of the rows and columns, linearly between the four pixels around each.

    Positions count pixels from the centre of the first one, and must not be before it; beyond the last one nothing changes.
    """

    def between(image: Array, positions: np.ndarray) -> Array:
        below = np.floor(positions).astype(np.int32)
        above = np.minimum(below + 1, len(image) - 1)
        share = jnp.asarray(positions - below, image.dtype)[:, None, None]
        return image[below] + (image[above] - image[below]) * share

    return between(between(image.transpose(1, 0, 2), columns).transpose(1, 0, 2), rows)


def half_pixel_positions(pixels: int, side: int) -> Positions:
    """`(i + 1/2) pixels / side - 1/2`: both grids have the same borders (PyTorch, JAX, TensorFlow 2)."""
    return np.maximum((np.arange(side) + 0.5) * (pixels / side) - 0.5, 0)


def corner_positions(pixels: int, side: int) -> Positions:
    """`i pixels / side`: both grids begin at the same pixel's centre (TensorFlow 1), in float32 as there."""
    return np.arange(side, dtype=np.float32) * np.float32(pixels / side)


def _inception(image: Image, positions: Callable[[int, int], Positions]) -> Prepared:
    height, width, _ = image.shape
    return bilinear(image, positions(height, INCEPTION_SIDE), positions(width, INCEPTION_SIDE))


def _efficientnet(image: Image) -> Prepared:
    side = EFFICIENTNET_SIDE
    return (jax.image.resize(to_bytes(image), (side, side, 3), "cubic", antialias=True) - 127) / 128


REFERENCE = Preprocessing("reference", lambda image: jnp.clip(_inception(image, half_pixel_positions), -1, 1))
"""kvfrans/shortcut-models: resized with half-pixel centres, clipped to [-1, 1], never rounded to bytes."""
TF = Preprocessing("tf", lambda image: (_inception(to_bytes(image), corner_positions) - 128) / 128)
"""The original TensorFlow graph, torch-fidelity, ADM's evaluation: bytes, resized as TensorFlow 1 does, `(x - 128) / 128`."""
PYTORCH_FID = Preprocessing("pytorch-fid", lambda image: 2 * _inception(to_bytes(image) / 255, half_pixel_positions) - 1)
"""pytorch-fid: bytes, resized with half-pixel centres, `2 x / 255 - 1`."""
INCEPTION = {protocol.name: protocol for protocol in (REFERENCE, TF, PYTORCH_FID)}
"""The protocols of Inception by name, for command lines."""
EFFICIENTNET = Preprocessing("bytes, bicubic to 224 with antialias, (x - 127) / 128", _efficientnet)
"""The whole image, however large; pixels as the network was trained on."""
UNCHANGED = Preprocessing("clipped to [-1, 1]", lambda image: jnp.clip(image, -1, 1))
"""For networks trained on images of this size."""
