"""A cache of latents: the moments of every image and of its mirror image, encoded once, read at the speed of memory."""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Iterable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray

from .. import storage
from ..pretrained.autoencoder import Posterior
from ..types import Batch
from .errors import DataError

MANIFEST = "manifest.json"
AGAIN = "and repeat the command that made the cache"
PARTS = ("train", "held_out")

Moments = Float[np.ndarray, "rows sides moments height width channels"]
"""Axes of a latent: each image and, where it may be mirrored, its mirror image (`sides`); mean and log-variance, if any
(`moments`)."""


@dataclasses.dataclass(frozen=True)
class Latents:
    """One part of a cache, its files mapped into memory, so that only the rows of a batch are read."""

    folder: storage.Path
    part: str
    shards: tuple[np.ndarray, ...]
    labels: Integer[np.ndarray, " count"]
    classes: int
    scale: float
    """Factor that brings raw latents, less `shift`, to about unit variance."""
    shift: float
    names: tuple[str, ...] = ()
    """Names of the classes in order of their labels; empty if they have none."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how they were found."""

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
        """The first `count` latents."""
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

    folder: storage.Path
    index: int

    @property
    def moments(self) -> storage.Path:
        """An array that can be mapped into memory."""
        return self.folder / f"{self.index:05d}.npy"

    @property
    def labels(self) -> storage.Path:
        """One label an image."""
        return self.folder / f"{self.index:05d}.labels.npy"

    @property
    def checksum_file(self) -> storage.Path:
        """A shard that has it is whole."""
        return self.folder / f"{self.index:05d}.sha256"

    @property
    def replaced(self) -> storage.Path:
        """Bad images in whose place the next good ones stand: index, and file and reason."""
        return self.folder / f"{self.index:05d}.replaced.json"

    def write(self, moments: Moments, labels: Integer[np.ndarray, " rows"]) -> None:
        """Writes moments in half precision, labels, and their checksum.

        Raises DataError if there is no room for them, or if moments are not finite.
        """
        check_finite(moments, lambda row: f"row {row} of {self.moments}")
        try:
            _save(self.moments, moments.astype(np.float16))
            _save(self.labels, labels.astype(np.int32))
            storage.write(self.checksum_file, self.checksum())
        except OSError as error:
            raise DataError(
                f"{self.moments} could not be written ({error}): free space on the disk and repeat the same command"
            ) from error

    def checksum(self) -> str:
        """SHA-256 of moments and labels."""
        return storage.checksum((self.moments, self.labels))


def check_finite(moments: Float[np.ndarray, "rows ..."], where: Callable[[int], str]) -> None:
    """Raises DataError, saying `where` the first is, if rows of moments are not finite in half precision, beyond 65,504."""
    with np.errstate(over="ignore"):
        half = moments.astype(np.float16, copy=False)
    wrong = np.flatnonzero(~np.isfinite(half).all(axis=tuple(range(1, half.ndim))))
    if wrong.size:
        kind = "are not numbers" if np.isnan(half[wrong[0]]).any() else "are beyond half precision (65,504)"
        raise DataError(
            f"latents of {where(int(wrong[0]))} {kind}, {wrong.size} of {len(half)} encoded together: the autoencoder's file "
            "is damaged or does not fit the images; copy it again, or use another"
        )


def shard_rows(count: int, size: int) -> list[range]:
    """The numbers of the images in each shard."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def read_latents(folder: str | os.PathLike[str], part: str, *, check: bool = False) -> Latents:
    """One part of a cache. Raises DataError if it is incomplete or contradicts its manifest, or lies in an object store.

    `check` also compares every shard with its checksum, which reads it all.
    """
    folder = storage.as_path(folder)
    if storage.is_remote(folder):
        raise DataError(f"{folder} cannot be mapped into memory: copy it to a disk first, with data.latents.copied")
    manifest = read_manifest(folder)
    try:
        stored, moments, classes = manifest["parts"][part], tuple(manifest["moments"]), manifest["classes"]
        ranges, checksums = shard_rows(stored["count"], manifest["shard"]), stored["shards"]
        scale, shift = manifest["autoencoder"]["scale"], manifest["autoencoder"]["shift"]
    except (KeyError, TypeError) as error:
        raise _foreign(folder, error) from error
    if len(ranges) != len(checksums):
        raise DataError(f"{folder / MANIFEST} names {len(checksums)} shards, its images fill {len(ranges)}: delete it {AGAIN}")
    arrays, labels = [], []
    for index, rows in enumerate(ranges):
        shard = Shard(folder / part, index)
        arrays.append(_array(shard.moments, (len(rows), *moments), np.float16))
        labels.append(_array(shard.labels, (len(rows),), np.int32))
        if check and shard.checksum() != checksums[index]:
            raise _changed(shard)
    return Latents(folder, part, tuple(arrays), np.concatenate(labels), classes, scale, shift, class_names(manifest))


def class_names(manifest: dict[str, Any]) -> tuple[str, ...]:
    """Names of the classes that a cache was made with; caches of earlier versions do not tell them."""
    return tuple(manifest.get("identity", {}).get("names", ()))


def _foreign(folder: storage.Path, error: Exception) -> DataError:
    return DataError(f"{folder / MANIFEST} lacks {error} and is no cache of latents: delete it {AGAIN}")


def _changed(shard: Shard) -> DataError:
    return DataError(
        f"{shard.moments} or its labels have changed since they were written: delete {shard.checksum_file} {AGAIN}"
    )


def blank(folder: storage.Path) -> Latents:
    """One latent of zeros of the kind that a cache holds, by its manifest alone."""
    manifest = read_manifest(folder)
    try:
        one = zeros(manifest["moments"], manifest["classes"], f"latents in {folder}")
        return dataclasses.replace(one, names=class_names(manifest))
    except (KeyError, TypeError) as error:
        raise _foreign(folder, error) from error


def zeros(moments: Sequence[int], classes: int, *notes: str) -> Latents:
    """One latent of zeros of class 0, of such `moments`: sides, moments, height, width and channels."""
    file = np.zeros((1, *moments), np.float16)
    return Latents(pathlib.Path(), "", (file,), np.zeros(1, np.int32), classes, 1.0, 0.0, notes=notes)


def copied(cache: storage.Path, home: storage.Path, each: Callable[[list[Shard]], Iterable[Shard]] = iter) -> storage.Path:
    """The folder below `home` with a copy of a cache that lies in an object store; shards that it lacks are copied.

    It is named by the checksum of the manifest, so that another cache has another one. `each` wraps the shards to copy, as a
    progress bar does. Raises DataError if a copy contradicts the manifest.
    """
    manifest = read_manifest(cache)
    local = home / storage.checksum([cache / MANIFEST])
    try:
        parts = manifest["parts"].items()
        checksums = {Shard(local / name, i): checksum for name, part in parts for i, checksum in enumerate(part["shards"])}
    except (KeyError, TypeError, AttributeError) as error:
        raise _foreign(cache, error) from error
    local.mkdir(parents=True, exist_ok=True)
    for shard in each([shard for shard in checksums if not shard.checksum_file.exists()]):
        source = Shard(cache / shard.folder.name, shard.index)
        shard.folder.mkdir(exist_ok=True)
        _copy(source.moments, shard.moments)
        _copy(source.labels, shard.labels)
        if shard.checksum() != checksums[shard]:
            raise _changed(source)
        storage.write(shard.checksum_file, checksums[shard])
    storage.write(local / MANIFEST, (cache / MANIFEST).read_bytes())
    return local


def _copy(source: storage.Path, target: storage.Path) -> None:
    # Under a name of its own until it is whole: another process may have the file mapped, or be at the same.
    try:
        with storage.draft_of(target) as draft, source.open("rb") as old, draft.open("wb") as new:
            shutil.copyfileobj(old, new, 2**24)
    except OSError as error:
        raise DataError(
            f"{source} could not be copied to {target} ({error}): free space there, or name another disk by XDG_CACHE_HOME"
        ) from error


def _again(folder: storage.Path, part: str, count: int) -> Latents:
    return read_latents(folder, part).first(count)


def read_manifest(folder: storage.Path) -> dict[str, Any]:
    """The manifest of a finished cache. Raises DataError if there is none."""
    path = folder / MANIFEST
    if not storage.exists(path):
        raise DataError(
            f"{storage.absolute(folder)} holds no finished cache of latents (no {MANIFEST}): make or finish it with "
            "eqx-shortcut encode"
        )
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise DataError(f"{path} cannot be read ({error}): delete it {AGAIN}") from error


def _save(path: storage.Path, array: np.ndarray) -> None:
    # np.save does not notice that the last bytes of a file found no room.
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(array))
        file.write(np.ascontiguousarray(array).data)


def _array(path: storage.Path, shape: tuple[int, ...], dtype: type) -> np.ndarray:
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
