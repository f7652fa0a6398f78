"""Images as one array in a NumPy file."""

import contextlib
import dataclasses
import functools
import pathlib
import re
from collections.abc import Collection, Iterator, Mapping

import numpy as np
from jaxtyping import Shaped

from ...errors import first_line
from ..errors import DataError
from ..identity import hash_files
from ..parts import HELD_OUT, WORDS, Named, named
from .labels import choose_labels, not_taken, plain_labels

IMAGES = ("images", "arr_0")
CHANNELS = 4
"""The most channels of an image."""


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """The images of one .npy or .npz file. Those of a .npy file stay on the disk until they are asked for."""

    file: pathlib.Path
    written: int
    """When, in nanoseconds: a file written anew is read anew."""
    labels: Shaped[np.ndarray, " count"] | None
    count: int
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] = ()

    def encoded(self, index: int) -> np.ndarray:
        return np.array(_images(self.file, self.written)[index])

    def where(self, index: int) -> str:
        return f"image {index} of {self.file}"

    def __len__(self) -> int:
        return self.count

    def sha256(self) -> str:
        return hash_files([("", self.file.stat().st_size)])


def find_arrays(folder: pathlib.Path) -> tuple[pathlib.Path, pathlib.Path | None]:
    """The file of images to train on (train.npz, or x_train.npy), and that of those held out, if there is one."""
    files = sorted(
        file for file in folder.iterdir() if file.suffix.lower() in (".npz", ".npy") and not file.name.startswith(".")
    )
    stems = {part: {file.stem: file for file in files if named(file.stem) == Named(part, ())} for part in WORDS}  # .npz wins
    for several in stems.values():
        if len(several) > 1:
            raise DataError(f"{folder} holds {' and '.join(several)}, two names of one part: keep one of them")
    files_by_part = {part: file for part, one in stems.items() for file in one.values()}
    if "train" not in files_by_part:
        raise DataError(f"no train.npz or train.npy in {folder.absolute()}: name the file itself with --data.path")
    return files_by_part["train"], next((files_by_part[part] for part in HELD_OUT if part in files_by_part), None)


def open_arrays(file: pathlib.Path, label: str | None = None) -> ArrayRecords:
    """Images as bytes (count, height, width[, channels]).

    A .npz file holds `images` (or `arr_0`) and, if they have any, labels by a usual name (or `arr_1`), or the array `label`.
    Those of x.npy are in x_labels.npy, x_label.npy and so on. Raises DataError if the file is damaged or its arrays are none
    of images and labels.
    """
    if not file.exists():
        raise DataError(f"no file {file.absolute()}: name another with --data.path")
    written = file.stat().st_mtime_ns
    images = _images(file, written)
    flat = images.ndim == 3 and images.shape[-1] <= CHANNELS  # one image alone, or its channels
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size or flat:
        raise DataError(
            f"{file} holds {images.dtype} of shape {images.shape}: images are uint8 of shape (count, height, width, channels)"
        )
    if images.ndim == 4 and images.shape[-1] > CHANNELS:
        raise DataError(
            f"{file} holds images of shape {images.shape}, with {images.shape[-1]} channels: put the channels last, as by "
            "numpy.moveaxis(images, 1, -1)"
        )
    others = _members(file) if _zipped(file) else _beside(file)
    chosen = choose_labels(others, label, str(file), marked=("arr_1",))
    if chosen is None:
        return ArrayRecords(file, written, None, len(images), not_taken(others))
    values = _member(file, chosen) if _zipped(file) else _load(others[chosen])
    return ArrayRecords(file, written, plain_labels(values, len(images), str(file)), len(images))


def _zipped(file: pathlib.Path) -> bool:
    return file.suffix.lower() == ".npz"


@functools.lru_cache(maxsize=4)
def _images(file: pathlib.Path, written: int) -> np.ndarray:
    if not _zipped(file):
        return _load(file)
    member = next((name for name in IMAGES if name in _members(file, ())), None)
    if member is None:
        raise DataError(
            f"{file} has no array {' or '.join(map(repr, IMAGES))}: save it with np.savez(file, images=..., labels=...)"
        )
    return _member(file, member)


def _members(file: pathlib.Path, without: Collection[str] = IMAGES) -> dict[str, pathlib.Path]:
    """Names of the arrays in a file, those of images left out."""
    with _opened(file) as stored:
        return {name: file for name in stored if name not in without}


def _member(file: pathlib.Path, name: str) -> np.ndarray:
    with _opened(file) as stored:
        return stored[name]


def _beside(file: pathlib.Path) -> dict[str, pathlib.Path]:
    """Arrays beside one of images, by what their names have beside its own: x_labels.npy, and y_train.npy for x_train.npy."""
    words = re.split(r"[-_.]", file.stem)
    own = [word for word in words if word.casefold() not in ("images", "image", "x")]
    arrays = {}
    for other in sorted(file.parent.glob("*.npy")):
        rest = re.split(r"[-_.]", other.stem)
        if other != file and set(own) < set(rest):
            arrays["_".join(word for word in rest if word not in words)] = other
    return arrays


def _load(file: pathlib.Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises errors of several kinds for a damaged file
        raise DataError(f"{file} cannot be read as .npy ({first_line(error)}): copy or make it again") from error


@contextlib.contextmanager
def _opened(file: pathlib.Path) -> Iterator[Mapping[str, np.ndarray]]:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            yield stored
    except Exception as error:  # zip, zlib and numpy each raise their own for a damaged file
        raise DataError(f"{file} cannot be read as .npz ({first_line(error)}): copy or make it again") from error
