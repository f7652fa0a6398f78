"""From the samples of a run to pictures: by the autoencoder whose latents they are, by the run's source, or as they are."""

import os
import pathlib
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from . import data, settings, storage
from .data.encode import identity
from .pretrained.autoencoder import Autoencoder, decode_batch, from_training
from .pretrained.autoencoder_files import load_autoencoder

Draw = Callable[[Float[Array | np.ndarray, "count *shape"]], Float[np.ndarray, "count height width channels"]]
"""Samples to images in [-1, 1]."""


def pictures(run: str | os.PathLike[str], *, vae: str | os.PathLike[str] | None = None) -> Draw | None:
    """How the samples of a run folder become images in [-1, 1]; None if they do not.

    Latents are decoded by the run's autoencoder, which lies at `vae` or where it was during training; other samples are drawn
    by the `pictures` of the run's source, or have the shape of images. Raises ValueError if the autoencoder is missing or
    another one.
    """
    decode, record = decoder(run, vae), _record(run)
    if decode is not None:
        return decode
    source = settings.parse(record.get("data"))
    blank = np.zeros((1, *record["shape"]), np.float32)
    drawn = hasattr(source, "pictures") or data.pictures(source, blank) is not None
    return (lambda samples: np.asarray(data.pictures(source, samples))) if drawn else None


def decoder(run: str | os.PathLike[str], vae: str | os.PathLike[str] | None = None) -> Draw | None:
    """The decoding of a run's latents, None for other runs. Raises ValueError as `autoencoder` does."""
    network = autoencoder(run, vae)
    return None if network is None else lambda latents: decode_batch(network, from_training(network, jnp.asarray(latents)))


def autoencoder(run: str | os.PathLike[str], vae: str | os.PathLike[str] | None = None) -> Autoencoder | None:
    """The autoencoder of a run on latents, None for other runs. Raises ValueError if it is missing or another one."""
    record = _record(run)
    place = vae or (record.get("data") or {}).get("vae")
    if place is None:
        return None
    path = pathlib.Path(place)
    if not path.exists():
        raise ValueError(f"{run} draws latents, and no autoencoder is at {path.absolute()}: name its place with --vae")
    network = load_autoencoder(path)
    here = identity(network)
    if different := settings.differences(record.get("autoencoder", here), here):
        raise ValueError(f"{path} is not the autoencoder of {run} ({settings.named(different)}): name that one with --vae")
    return network


def _record(run: str | os.PathLike[str]) -> dict[str, Any]:
    return settings.read(storage.as_path(run) / "config.json")
