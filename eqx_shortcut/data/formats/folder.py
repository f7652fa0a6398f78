"""Image files in folders."""

import dataclasses
import os
import pathlib

import numpy as np
from jaxtyping import Integer

from ..errors import DataError

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """The image files of one folder, or of its sub-folders, each of which is a class."""

    folder: pathlib.Path
    files: tuple[str, ...]
    """Paths inside the folder."""
    labels: Integer[np.ndarray, " count"]
    names: tuple[str, ...]

    def encoded(self, index: int) -> bytes:
        path = self.folder / self.files[index]
        try:
            return path.read_bytes()
        except OSError as error:
            raise DataError(f"{path} (image {index}) cannot be read ({error.strerror}): restore it") from error

    def where(self, index: int) -> str:
        return f"image {index}, {self.folder / self.files[index]},"


def open_folder(folder: pathlib.Path) -> FolderRecords:
    """Images in the order of their paths; their classes are the sub-folders in the order of their names, if there are any.

    Raises DataError if there are no images, or some in the folder itself and some in sub-folders.
    """
    found = {name: _images(folder / name) for name in ("", *_folders(folder))}
    flat, classes = found.pop(""), {name: files for name, files in found.items() if files}
    if flat and classes:
        raise DataError(
            f"{folder} holds images itself ({flat[0]}) and in sub-folders ({next(iter(classes))}): put all into sub-folders, "
            "one a class, or none"
        )
    if not flat and not classes:
        raise DataError(
            f"no images ({', '.join(SUFFIXES)}) in {folder.absolute()} or its sub-folders: name their folder with --data.path"
        )
    if flat:
        return FolderRecords(folder, tuple(flat), np.zeros(len(flat), np.int32), ())
    files = tuple(f"{name}/{file}" for name, files in classes.items() for file in files)
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(files) for files in classes.values()])
    return FolderRecords(folder, files, labels, tuple(classes))


def _folders(folder: pathlib.Path) -> list[str]:
    try:
        return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        raise DataError(f"no folder {folder.absolute()} ({error.strerror}): name another with --data.path") from error


def _images(folder: pathlib.Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.lower().endswith(SUFFIXES))
