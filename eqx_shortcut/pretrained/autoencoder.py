"""Images to latents and back: what every autoencoder offers, and its use on batches and on large images."""

import functools
import hashlib
from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray


class Posterior(eqx.Module):
    """Latents given an image: `N(mean, exp(log_variance))` in each element, or `mean` itself where there is no variance."""

    mean: Float[Array | np.ndarray, "*shape"]
    log_variance: Float[Array | np.ndarray, "*shape"] | None = None

    @property
    def mode(self) -> Float[Array | np.ndarray, "*shape"]:
        """The likeliest latents, which are their mean."""
        return self.mean

    def sample(self, key: PRNGKeyArray) -> Float[Array, "*shape"]:
        """`mean + exp(log_variance / 2) * noise` with standard normal noise; the mean where there is no variance."""
        mean = jnp.asarray(self.mean)
        if self.log_variance is None:
            return mean
        return mean + jnp.exp(0.5 * jnp.asarray(self.log_variance)) * jax.random.normal(key, mean.shape, mean.dtype)


@runtime_checkable
class Autoencoder(Protocol):
    """An image of one example, values in [-1, 1], to a latent `factor` times smaller on each side, and back.

    `encode` and `decode` speak of raw latents; those that a generative model is trained on are `(raw - shift) * scale`
    (see `to_training` and `from_training`).
    """

    @property
    def factor(self) -> int:
        """Pixels of the image per pixel of the latent, along a side."""
        ...

    @property
    def channels(self) -> int:
        """Channels of the latent."""
        ...

    @property
    def scale(self) -> float:
        """Factor that brings raw latents about to unit variance."""
        ...

    @property
    def shift(self) -> float:
        """Number that is taken off raw latents first."""
        ...

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of the latent of an image of `shape`; raises ValueError if `factor` does not divide its sides."""
        ...

    def encode(self, image: Float[Array, "height width 3"]) -> Posterior:
        """The raw latents of an image in [-1, 1]; raises ValueError if `factor` does not divide its sides."""
        ...

    def decode(self, latent: Float[Array, "rows columns channels"]) -> Float[Array, "height width 3"]:
        """The image of a raw latent, in [-1, 1] up to overshoot."""
        ...


def to_training(autoencoder: Autoencoder, raw: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`(raw - shift) * scale`: raw latents in the units that generative models are trained in."""
    return (raw - autoencoder.shift) * autoencoder.scale


def from_training(autoencoder: Autoencoder, latent: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`latent / scale + shift`: the inverse of `to_training`."""
    return latent / autoencoder.scale + autoencoder.shift


def latent_shape(shape: tuple[int, ...], factor: int, channels: int) -> tuple[int, int, int]:
    """`(height / factor, width / factor, channels)`; raises ValueError if a side is not a multiple of `factor`."""
    height, width = shape[:2]
    if height % factor or width % factor:
        raise ValueError(
            f"an image of {height} x {width} is not divisible by {factor}: crop or resize it to multiples of {factor}"
        )
    return height // factor, width // factor, channels


def fingerprint(autoencoder: Autoencoder) -> str:
    """SHA-256 of the parameters: which weights these are, whatever the file that they came in."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(autoencoder, eqx.is_array)):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def encode_batch(
    autoencoder: Autoencoder, images: Float[Array | np.ndarray, "count height width 3"], *, batch: int = 8
) -> Posterior:
    """The posterior of every image, on the host, by one compiled program of `batch` images at a time.

    Memory of the device is that of one batch; the last is filled up, so one image costs as much as `batch`.
    """
    autoencoder.latent_shape(images.shape[1:])
    return _in_batches(functools.partial(_encode, autoencoder), images, batch)


def decode_batch(
    autoencoder: Autoencoder, latents: Float[Array | np.ndarray, "count rows columns channels"], *, batch: int = 8
) -> Float[np.ndarray, "count height width 3"]:
    """The image of every raw latent, on the host, by one compiled program of `batch` latents at a time.

    Memory of the device is that of one batch; the last is filled up, so one latent costs as much as `batch`.
    """
    return _in_batches(functools.partial(_decode, autoencoder), latents, batch)


def decode_tiled(
    autoencoder: Autoencoder, latent: Float[Array | np.ndarray, "rows columns channels"], *, tile: int = 64, overlap: int = 16
) -> Float[np.ndarray, "height width 3"]:
    """The image of a raw latent of any size, on the host, in tiles of `tile` latent pixels that overlap by `overlap`.

    Each tile fades in linearly over the overlap, down from the tile above and then right from the tile before, as in diffusers'
    `tiled_decode`. A tile sees nothing beyond itself (attention and normalisation are its own), so the image differs from
    that of one `decode`, which a latent of one tile gets. Tiles at the far edges are smaller: up to four programs are
    compiled. Raises ValueError if the tiles do not advance.
    """
    if not 0 <= overlap < tile:
        raise ValueError(f"overlap={overlap} is not in 0 to tile - 1 = {tile - 1}: choose a smaller overlap or larger tiles")
    stride = tile - overlap if max(latent.shape[:2]) > tile else tile
    blend, keep = overlap * autoencoder.factor, stride * autoencoder.factor
    bands, above = [], []
    for top in range(0, latent.shape[0], stride):
        row = []
        for place, left in enumerate(range(0, latent.shape[1], stride)):
            part = np.array(_decode(autoencoder, jnp.asarray(latent[None, top : top + tile, left : left + tile]))[0])
            if above:
                _fade(above[place], part, blend)
            if row:
                _fade(row[-1].swapaxes(0, 1), part.swapaxes(0, 1), blend)
            row.append(part)
        bands.append(np.concatenate([part[:keep, :keep] for part in row], axis=1))
        above = row
    return np.concatenate(bands)


def _fade(before: Float[np.ndarray, "..."], part: Float[np.ndarray, "..."], extent: int) -> None:
    """Blends the last rows of `before` into the first of `part`, in place."""
    extent = min(len(before), len(part), extent)
    if extent:
        weight = (np.arange(extent, dtype=part.dtype) / extent)[:, None, None]
        part[:extent] = before[-extent:] * (1 - weight) + part[:extent] * weight


def _in_batches(function: Callable[[Array], Any], rows: Float[Array | np.ndarray, "count ..."], batch: int) -> Any:
    if batch < 1:
        raise ValueError(f"batch={batch}: compute at least 1 example at once")
    if not len(rows):
        raise ValueError("there are 0 examples: give at least 1")
    parts = []
    for start in range(0, len(rows), batch):
        part = np.asarray(rows[start : start + batch])
        filled = np.pad(part, [(0, batch - len(part))] + [(0, 0)] * (part.ndim - 1))
        parts.append(jax.tree.map(np.asarray, function(jnp.asarray(filled))))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[: len(rows)], *parts)


@eqx.filter_jit
def _encode(autoencoder, images):
    return jax.vmap(autoencoder.encode)(images)


@eqx.filter_jit
def _decode(autoencoder, latents):
    return jax.vmap(autoencoder.decode)(latents)
