"""Images as an autoencoder's latents, encoded on the device in every step."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Array, Integer, PRNGKeyArray

from ..pretrained.autoencoder import Autoencoder, to_training
from ..rows import merge_microbatches, split_microbatches
from ..types import Batch
from .images import Images, floats
from .records import ImageRecords


class Encode(eqx.Module):
    """From raw images to a Batch of latents: mirrored, encoded, the posterior sampled, in training units.

    A module, so that a compiled step takes the autoencoder's weights as an argument and does not contain them.
    """

    autoencoder: Autoencoder
    peak: int = eqx.field(static=True)
    size: int = eqx.field(static=True)

    def __call__(self, raw: dict[str, Array], key: PRNGKeyArray, *, mirror: bool) -> Batch:
        k_mirror, k_posterior = jax.random.split(key)
        images = floats(raw["pixels"], self.peak, k_mirror, mirror=mirror)
        count, size = len(images), min(self.size, len(images))
        if count % size:
            raise ValueError(f"--batch {count} is not a multiple of --encode-batch {size}: choose one that divides it")
        parts = split_microbatches(images, count // size)  # one after another
        posterior = merge_microbatches(jax.lax.map(jax.vmap(self.autoencoder.encode), parts))
        return Batch(to_training(self.autoencoder, posterior.sample(k_posterior)), raw["labels"])


@dataclasses.dataclass(frozen=True)
class Encoded:
    """Images that a network sees as latents; `size` of them are encoded at once, which bounds the memory of a step."""

    images: Images | ImageRecords
    autoencoder: Autoencoder
    size: int

    noun: ClassVar[str] = "images"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one latent; raises ValueError if the autoencoder does not divide the images."""
        return self.autoencoder.latent_shape(self.images.shape)

    @property
    def classes(self) -> int:
        return self.images.classes

    @property
    def labels(self) -> Integer[np.ndarray, " count"]:
        return self.images.labels

    @property
    def names(self) -> tuple[str, ...]:
        return self.images.names

    @property
    def notes(self) -> tuple[str, ...]:
        return self.images.notes

    def digest(self) -> str:
        return self.images.digest()

    def first(self, count: int) -> "Encoded":
        return dataclasses.replace(self, images=self.images.first(count))

    def rows(self, indices: Integer[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        return self.images.rows(indices)

    def note(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The rows, with bad images counted where the images are files (see ImageRecords.note)."""
        return self.images.note(rows) if isinstance(self.images, ImageRecords) else dict(rows)

    @property
    def batch(self) -> Encode:
        """The function from raw images to a Batch of latents."""
        return Encode(self.autoencoder, self.images.peak, self.size)
