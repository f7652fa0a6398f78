"""Pairs of noise and the sample that a trained network makes of it: the data of reflow (Liu et al. 2023)."""

import dataclasses
import io
import json
import os
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from .. import storage
from ..types import Batch
from .errors import DataError
from .latents import shard_rows

MANIFEST = "pairs.json"


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Noise, the sample it became, and the label asked for."""

    noise: Float[np.ndarray, "count height width channels"]
    x: Float[np.ndarray, "count height width channels"]
    labels: Integer[np.ndarray, " count"]
    classes: int

    noun: ClassVar[str] = "pairs"

    def rows(self, indices: Integer[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        return {"noise": self.noise[indices], "x": self.x[indices], "labels": self.labels[indices]}

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width, channels = self.x.shape[1:]
        return height, width, channels

    def first(self, count: int) -> "Pairs":
        return Pairs(self.noise[:count], self.x[:count], self.labels[:count], self.classes)

    def batch(self, raw: dict[str, Array], key: PRNGKeyArray, *, mirror: bool) -> Batch:
        """Samples with their noise and labels, never mirrored: the noise would no longer be theirs."""
        return Batch(raw["x"].astype(jnp.float32), raw["labels"], raw["noise"].astype(jnp.float32))


def shard_path(folder: storage.Path, index: int) -> storage.Path:
    """Where shard `index` of a folder of pairs lies."""
    return folder / f"{index:05d}.npz"


def shards(manifest: dict[str, Any]) -> list[range]:
    """The numbers of the pairs in each shard."""
    return shard_rows(manifest["count"], manifest["shard"])


def write_shard(path: storage.Path, pairs: Pairs) -> None:
    """Writes pairs to a compressed .npz in half precision; a file that bears its name is whole."""
    file = io.BytesIO()
    np.savez_compressed(file, noise=pairs.noise.astype(np.float16), x=pairs.x.astype(np.float16), labels=pairs.labels)
    storage.write(path, file.getvalue())


def read_pairs(folder: str | os.PathLike[str], shape: tuple[int, ...]) -> Pairs:
    """All pairs of a folder, in half precision. Raises DataError if it is incomplete, damaged, or not of `shape`."""
    folder = storage.as_path(folder)
    if not storage.exists(folder / MANIFEST):
        raise DataError(f"{storage.absolute(folder)} holds no pairs (no {MANIFEST}): make them with eqx-shortcut pairs")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        wanted, stored, classes = shards(manifest), tuple(manifest["shape"]), manifest["classes"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{storage.absolute(folder)} holds no pairs ({error!r}): make them with eqx-shortcut pairs") from error
    if stored != shape:
        raise DataError(f"pairs in {folder} are of shape {stored}, the data of {shape}: make others")
    missing = [i for i in range(len(wanted)) if not shard_path(folder, i).exists()]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(wanted)} files of pairs are missing in {folder}, the first "
            f"{shard_path(folder, missing[0]).name}: repeat the command that makes them"
        )
    parts = [_read_shard(shard_path(folder, i), len(numbers)) for i, numbers in enumerate(wanted)]
    noise, x, labels = (np.concatenate([part[name] for part in parts]) for name in ("noise", "x", "labels"))
    return Pairs(noise, x, labels, classes)


def _read_shard(path: storage.Path, count: int) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            part = {name: stored[name] for name in ("noise", "x", "labels")}
    except Exception as error:  # zip, zlib and numpy each raise their own for a damaged file
        raise DataError(f"{path} is damaged ({error!r}): delete it and repeat the command that makes the pairs") from error
    if {len(array) for array in part.values()} != {count}:
        raise DataError(f"{path} does not hold {count} pairs: delete it and repeat the command that makes the pairs")
    return part
