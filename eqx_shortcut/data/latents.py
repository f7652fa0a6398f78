"""A cache of latents: the moments of every image and of its mirror image, encoded once, read at the speed of memory."""

import dataclasses
import hashlib
import json
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from ..models.autoencoder import Posterior
from ..types import Batch
from .errors import DataError

MANIFEST = "manifest.json"
AGAIN = "and repeat the command that made the cache"
PARTS = ("train", "held_out")

Moments = Float[np.ndarray, "rows sides moments height width channels"]
"""Of each image and, where it may be mirrored, its mirror image (`sides`), mean and log-variance, if any (`moments`)."""


@dataclasses.dataclass(frozen=True)
class Latents:
    """One part of a cache, its files mapped into memory: what is read is what a batch asks for."""

    folder: pathlib.Path
    part: str
    shards: tuple[np.ndarray, ...]
    labels: Integer[np.ndarray, " count"]
    classes: int
    scale: float
    """What brings raw latents, less `shift`, about to unit variance."""
    shift: float

    noun: ClassVar[str] = "latents"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one latent."""
        height, width, channels = self.shards[0].shape[3:]
        return height, width, channels

    @property
    def mirrored(self) -> bool:
        """Whether there are moments of mirror images too."""
        return self.shards[0].shape[1] == 2

    def rows(self, indices: Integer[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """Moments, in half precision, and labels at `indices`."""
        size = len(self.shards[0])
        moments = np.empty((len(indices), *self.shards[0].shape[1:]), np.float16)
        # Row by row: each is one contiguous copy, and no index arrays are made for shards that hold few of them.
        for place, (shard, row) in enumerate(zip(*np.divmod(indices, size), strict=True)):
            moments[place] = self.shards[shard][row]
        return {"moments": moments, "labels": self.labels[indices]}

    def first(self, count: int) -> "Latents":
        """The first so many."""
        return dataclasses.replace(self, labels=self.labels[:count])

    def batch(self, raw: dict[str, Array], key: PRNGKeyArray, *, mirror: bool) -> Batch:
        """Latents in training units, drawn from the posterior of the image or, with probability 1/2 if `mirror`, of its mirror
        image."""
        k_mirror, k_posterior = jax.random.split(key)
        moments = raw["moments"]
        chosen = moments[:, 0].astype(jnp.float32)
        if mirror:
            sides = jax.random.bernoulli(k_mirror, 0.5, (moments.shape[0], 1, 1, 1, 1))
            chosen = jnp.where(sides, moments[:, 1].astype(jnp.float32), chosen)
        posterior = Posterior(chosen[:, 0], chosen[:, 1] if chosen.shape[1] > 1 else None)
        return Batch((posterior.sample(k_posterior) - self.shift) * self.scale, raw["labels"])

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process maps the files itself: it is not sent what they hold.
        return _again, (self.folder, self.part, len(self.labels))


@dataclasses.dataclass(frozen=True)
class Shard:
    """The files of one shard: moments, labels, and the checksum of both, which is written last."""

    folder: pathlib.Path
    index: int

    @property
    def moments(self) -> pathlib.Path:
        """An array that can be mapped into memory."""
        return self.folder / f"{self.index:05d}.npy"

    @property
    def labels(self) -> pathlib.Path:
        """One label an image."""
        return self.folder / f"{self.index:05d}.labels.npy"

    @property
    def seal(self) -> pathlib.Path:
        """A shard that has it is whole."""
        return self.folder / f"{self.index:05d}.sha256"

    @property
    def replaced(self) -> pathlib.Path:
        """Bad images in whose place the next good ones stand: index, and file and reason."""
        return self.folder / f"{self.index:05d}.replaced.json"

    def write(self, moments: Moments, labels: Integer[np.ndarray, " rows"]) -> None:
        """Writes moments in half precision, labels, and their checksum. Raises DataError if there is no room for them."""
        draft = self.seal.with_suffix(".part")
        try:
            _save(self.moments, moments.astype(np.float16))
            _save(self.labels, labels.astype(np.int32))
            draft.write_text(self.checksum())
            draft.rename(self.seal)
        except OSError as error:
            raise DataError(
                f"{self.moments} could not be written ({error}): free space on the disk and repeat the same command"
            ) from error

    def checksum(self) -> str:
        """SHA-256 of moments and labels."""
        digest = hashlib.sha256()
        for path in (self.moments, self.labels):
            with path.open("rb") as file:
                while block := file.read(2**24):
                    digest.update(block)
        return digest.hexdigest()


def shard_rows(count: int, size: int) -> list[range]:
    """The numbers of the images in each shard."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def read_latents(folder: pathlib.Path, part: str, *, check: bool = False) -> Latents:
    """One part of a cache. Raises DataError if it is incomplete or contradicts its manifest.

    `check` also compares every shard with its checksum, which reads it all.
    """
    manifest = read_manifest(folder)
    try:
        found, moments, classes = manifest["parts"][part], tuple(manifest["moments"]), manifest["classes"]
        ranges, seals = shard_rows(found["count"], manifest["shard"]), found["shards"]
        scale, shift = manifest["autoencoder"]["scale"], manifest["autoencoder"]["shift"]
    except (KeyError, TypeError) as error:
        raise DataError(f"{folder / MANIFEST} lacks {error} and is no cache of latents: delete it {AGAIN}") from error
    if len(ranges) != len(seals):
        raise DataError(f"{folder / MANIFEST} names {len(seals)} shards, its images fill {len(ranges)}: delete it {AGAIN}")
    arrays, labels = [], []
    for index, rows in enumerate(ranges):
        shard = Shard(folder / part, index)
        arrays.append(_array(shard.moments, (len(rows), *moments), np.float16))
        labels.append(_array(shard.labels, (len(rows),), np.int32))
        if check and shard.checksum() != seals[index]:
            raise DataError(f"{shard.moments} or its labels have changed since they were written: delete {shard.seal} {AGAIN}")
    return Latents(folder, part, tuple(arrays), np.concatenate(labels), classes, scale, shift)


def _again(folder: pathlib.Path, part: str, count: int) -> Latents:
    return read_latents(folder, part).first(count)


def read_manifest(folder: pathlib.Path) -> dict[str, Any]:
    """The manifest of a finished cache. Raises DataError if there is none."""
    path = folder / MANIFEST
    if not path.exists():
        raise DataError(
            f"{folder.absolute()} holds no finished cache of latents (no {MANIFEST}): make or finish it with encode_latents.py"
        )
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}): delete it {AGAIN}") from error


def _save(path: pathlib.Path, array: np.ndarray) -> None:
    # np.save does not notice that the last bytes of a file found no room.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def _array(path: pathlib.Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # NumPy raises several kinds for a missing, short or foreign file
        raise DataError(f"{path} cannot be read ({error}): delete its .sha256 {AGAIN}") from error
    # A plain view: rows of a memmap are made at half the speed.
    array = array.view(np.ndarray)
    if array.shape != shape or array.dtype != dtype:
        raise DataError(
            f"{path} holds {array.dtype} of shape {array.shape}, by the manifest it is {np.dtype(dtype)} of {shape}: delete "
            f"its .sha256 {AGAIN}"
        )
    return array
