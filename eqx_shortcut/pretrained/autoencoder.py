"""Images to latents and back: what every autoencoder offers, and its use on batches and on large images."""

import hashlib
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


class Configured(eqx.Module):
    """An autoencoder of published sizes: `config` says channels, scale and shift of its latents under diffusers' names."""

    config: eqx.AbstractVar[Any]
    factor: eqx.AbstractVar[int]

    @property
    def channels(self) -> int:
        """Channels of the latent."""
        return self.config.latent_channels

    @property
    def scale(self) -> float:
        """Factor that brings raw latents about to unit variance."""
        return self.config.scaling_factor

    @property
    def shift(self) -> float:
        """Number that is taken off raw latents first."""
        return self.config.shift_factor

    def latent_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Shape of the latent of an image of `shape`; raises ValueError if `factor` does not divide its sides."""
        height, width = shape[:2]
        if height % self.factor or width % self.factor:
            raise ValueError(
                f"an image of {height} x {width} is not divisible by {self.factor}: crop or resize it to multiples of "
                f"{self.factor}"
            )
        return height // self.factor, width // self.factor, self.channels


def fingerprint(autoencoder: Autoencoder) -> str:
    """SHA-256 of the parameters: which weights these are, whatever the file that they came in."""
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(eqx.filter(autoencoder, eqx.is_array)):
        digest.update(f"{leaf.dtype}{leaf.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return digest.hexdigest()


def decode_batch(
    autoencoder: Autoencoder, latents: Float[Array | np.ndarray, "count rows columns channels"], *, batch: int = 8
) -> Float[np.ndarray, "count height width 3"]:
    """The image of every raw latent, on the host, by one compiled program of `batch` latents at a time.

    Memory of the device is that of one batch; the last is filled up, so one latent costs as much as `batch`.
    """
    if batch < 1:
        raise ValueError(f"batch={batch}: decode at least 1 latent at once")
    if not len(latents):
        raise ValueError("there are 0 latents: give at least 1")
    images = []
    for start in range(0, len(latents), batch):
        part = np.asarray(latents[start : start + batch])
        filled = np.pad(part, [(0, batch - len(part)), (0, 0), (0, 0), (0, 0)])
        images.append(np.asarray(_decode(autoencoder, jnp.asarray(filled))))
    return np.concatenate(images)[: len(latents)]


@eqx.filter_jit
def _decode(autoencoder, latents):
    return jax.vmap(autoencoder.decode)(latents)
