"""What a run trains on, and how its samples become pictures."""

import dataclasses
import functools
import hashlib

import jax
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from .. import distributed, sharding, storage
from ..data import DataError, Encoded, Pairs, Rows, read_latents, read_pairs
from ..data.encode import check_cache, encode
from ..data.latents import MANIFEST, copied
from ..data.records import ImageRecords
from ..pretrained.autoencoder import Autoencoder, decode_batch, from_training
from ..pretrained.autoencoder_files import load_autoencoder
from .config import Config, LatentConfig

SHARD = 8192


@dataclasses.dataclass(frozen=True)
class Data:
    """Examples to train on and others held out."""

    train: Rows
    held_out: Rows
    mirror: bool
    autoencoder: Autoencoder | None = None
    latents: str | None = None
    """What tells the cache of latents from others, wherever it lies."""
    pairs: Pairs | None = None

    @property
    def rows(self) -> Rows:
        """What is trained on: the pairs if there are any, or the examples."""
        return self.train if self.pairs is None else self.pairs

    @property
    def replaced(self) -> dict[int, str]:
        """Bad images met so far in whose place the next good ones stood: index, and file and reason."""
        images = self.train.images if isinstance(self.train, Encoded) else self.train
        return images.bad if isinstance(images, ImageRecords) else {}

    def pictures(self, samples: Float[Array, "count *shape"]) -> Float[np.ndarray, "count height width channels"]:
        """Samples as images in [-1, 1]."""
        if self.autoencoder is None:
            return np.asarray(samples)
        return decode_batch(self.autoencoder, from_training(self.autoencoder, samples))


def open_data(config: Config, mesh: jax.sharding.Mesh) -> Data:
    """The data that the settings name. Raises DataError or ValueError, with the remedy, if they or weights are missing."""
    data = open_latents(config, mesh) if isinstance(config, LatentConfig) else Data(*config.data.build(), config.data.mirror)
    data = data if config.overfit is None else dataclasses.replace(data, train=data.train.first(config.overfit))
    if config.pairs is None:
        return data
    pairs = read_pairs(config.pairs, data.train.shape)
    return dataclasses.replace(data, pairs=pairs if config.overfit is None else pairs.first(config.overfit))


def open_latents(config: LatentConfig, mesh: jax.sharding.Mesh) -> Data:
    """Latents from the cache, which is filled first, or, without a cache, images that are encoded in every step."""
    if config.data is None and config.cache is None:
        raise DataError(
            "neither images nor latents are named, with data:image-folder --data.path FOLDER (or data:parquet, data:tfds, "
            "data:arrays) or --cache FOLDER: name one; the text at the top of --help says how to get them"
        )
    autoencoder = load_autoencoder(config.vae)
    if config.cache is None:
        return encoded(config, autoencoder, mesh)
    if config.data is not None and not storage.exists(config.cache / MANIFEST):
        encode(config.data, autoencoder, config.cache, batch=config.encode_batch, shard=SHARD)
    check_cache(config.cache, config.data, autoencoder)
    cache = config.cache
    if storage.is_remote(cache):
        progress = functools.partial(
            tqdm, desc=f"copying {cache}", unit="file", dynamic_ncols=True, disable=not distributed.is_main_process()
        )
        cache = copied(cache, storage.cache_home() / "latents", each=progress)
    train, held_out = (read_latents(cache, part) for part in ("train", "held_out"))
    mirror = train.mirrored if config.data is None else config.data.mirror
    if mirror and not train.mirrored:
        raise ValueError(f"{config.cache} holds no mirror images: use --data.no-mirror, or encode into another folder")
    digest = hashlib.sha256((config.cache / MANIFEST).read_bytes()).hexdigest()
    return Data(train, held_out, mirror, autoencoder, digest)


def encoded(config: LatentConfig, autoencoder: Autoencoder, mesh: jax.sharding.Mesh) -> Data:
    """Images that are encoded in every step."""
    assert config.data is not None
    size = min(config.encode_batch, config.batch)
    sharding.check_batch(size, mesh)
    if config.batch % size:
        raise ValueError(f"--batch {config.batch} is not a multiple of --encode-batch {size}: choose one that divides it")
    everywhere = sharding.replicate(autoencoder, mesh)
    train, held_out = (Encoded(part, everywhere, size) for part in config.data.build())
    _ = train.shape  # Raises ValueError for images of a size that the autoencoder does not halve.
    return Data(train, held_out, config.data.mirror, autoencoder)
