"""Pixels as they are stored to images as networks see them, on the device."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray, UInt8


def scaled(
    pixels: UInt8[Array, "batch height width channels"], peak: int, key: PRNGKeyArray, *, mirror: bool
) -> Float[Array, "batch height width channels"]:
    """Pixels of 0 to `peak` in [-1, 1], each image mirrored left to right with probability 1/2 if `mirror`."""
    x = pixels.astype(jnp.float32) / (peak / 2) - 1
    if not mirror:
        return x
    return jnp.where(jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1)), x[:, :, ::-1], x)
