"""Images as one array in a NumPy file."""

import dataclasses
import functools
import pathlib
from collections.abc import Iterable

import numpy as np
from jaxtyping import Integer

from ..errors import DataError

IMAGES, LABELS = ("images", "arr_0"), ("labels", "arr_1")


@dataclasses.dataclass(frozen=True)
class ArrayRecords:
    """The images of one .npy or .npz file. Those of a .npy file stay on the disk until they are asked for."""

    file: pathlib.Path
    labels: Integer[np.ndarray, " count"]
    names: tuple[str, ...] = ()

    def encoded(self, index: int) -> np.ndarray:
        return np.array(_images(self.file)[index])

    def where(self, index: int) -> str:
        return f"image {index} of {self.file}"


def open_arrays(file: pathlib.Path) -> ArrayRecords:
    """Images as bytes (count, height, width[, channels]).

    A .npz file holds `images` and, if they have any, `labels` (or `arr_0` and `arr_1`); labels of x.npy are in x_labels.npy.
    Raises DataError if the file is damaged or its arrays are none of images and labels.
    """
    images, labels = _images(file), _labels(file)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or not images.size:
        raise DataError(
            f"{file} holds {images.dtype} of shape {images.shape}: images are uint8 of shape (count, height, width, channels)"
        )
    if labels is None:
        return ArrayRecords(file, np.zeros(len(images), np.int32))
    if labels.dtype.kind not in "iu" or labels.shape != (len(images),):
        raise DataError(
            f"labels of {file} are {labels.dtype} of shape {labels.shape}: give {len(images)} whole numbers, one an image"
        )
    return ArrayRecords(file, labels.astype(np.int32))


@functools.lru_cache(maxsize=4)
def _images(file: pathlib.Path) -> np.ndarray:
    if file.suffix != ".npz":
        return _load(file)
    found = _member(file, IMAGES)
    if found is None:
        raise DataError(
            f"{file} has no array {' or '.join(map(repr, IMAGES))}: save it with np.savez(file, images=..., labels=...)"
        )
    return found


def _labels(file: pathlib.Path) -> np.ndarray | None:
    if file.suffix == ".npz":
        return _member(file, LABELS)
    beside = file.with_name(f"{file.stem}_labels.npy")
    return _load(beside) if beside.exists() else None


def _load(file: pathlib.Path) -> np.ndarray:
    try:
        return np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises errors of several kinds for a damaged file
        raise DataError(f"{file} cannot be read as .npy ({_line(error)}): copy or make it again") from error


def _member(file: pathlib.Path, names: Iterable[str]) -> np.ndarray | None:
    try:
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as stored:
            return next((stored[name] for name in names if name in stored), None)
    except Exception as error:  # zip, zlib and numpy each raise their own for a damaged file
        raise DataError(f"{file} cannot be read as .npz ({_line(error)}): copy or make it again") from error


def _line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
