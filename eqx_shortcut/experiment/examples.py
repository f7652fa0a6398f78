"""The examples of a run, and how its samples become pictures."""

import dataclasses

import jax
import numpy as np
from jaxtyping import Array, Float

from ..data import DataError, Encoded, LatentImages, Pairs, Rows, Source, pictures, read_pairs
from ..data.identity import Identified, Identity, identity
from ..data.records import ImageRecords
from ..pretrained.autoencoder import Autoencoder
from .config import Config


@dataclasses.dataclass(frozen=True)
class Data:
    """Examples to train on and others held out."""

    train: Rows
    held_out: Rows
    mirror: bool
    source: Source | None = None
    """The source that built them."""
    pairs: Pairs | None = None

    @property
    def rows(self) -> Rows:
        """The rows to train on: the pairs if there are any, else the examples."""
        return self.train if self.pairs is None else self.pairs

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The autoencoder whose latents the examples are; None if they are no latents."""
        return getattr(self.source, "autoencoder", None)

    @property
    def identity(self) -> Identity | None:
        """The hashes that identify the images wherever they lie; None for other data."""
        if isinstance(self.train, Identified) and isinstance(self.held_out, Identified):
            return identity(self.train, self.held_out)
        return getattr(self.source, "identity", None)

    @property
    def latents(self) -> str | None:
        """The hash that identifies the cache of latents wherever it lies; None if the examples are no latents."""
        return getattr(self.source, "digest", None)

    @property
    def replaced(self) -> dict[int, str]:
        """Bad images met so far, replaced by the next good ones: their index, with file and reason."""
        images = self.train.images if isinstance(self.train, Encoded) else self.train
        return images.bad if isinstance(images, ImageRecords) else {}

    def pictures(self, samples: Float[Array | np.ndarray, "count *shape"]) -> Float[np.ndarray, "count height width channels"]:
        """Samples as images in [-1, 1]. Raises ValueError if they are none and the source draws none."""
        found = pictures(self.source, samples)
        if found is None:
            raise ValueError(f"samples of shape {samples.shape[1:]} are no images: give the source a method pictures(samples)")
        return found


def open_data(config: Config, mesh: jax.sharding.Mesh) -> Data:
    """The data that the settings name. Raises DataError or ValueError, with the remedy, if they or weights are missing."""
    source = config.data
    if source is None:
        raise DataError("no data are named: name them with data:KIND (--help lists the kinds) and --data.path")
    with jax.set_mesh(mesh):
        if isinstance(source, LatentImages):
            source.fill(print)
        train, held_out = source.build()
    train = train if config.overfit is None else train.first(config.overfit)
    data = Data(train, held_out, getattr(source, "mirror", False), source)
    if config.pairs is None:
        return data
    pairs = read_pairs(config.pairs, data.train.shape)
    return dataclasses.replace(data, pairs=pairs if config.overfit is None else pairs.first(config.overfit))
