"""Images of any size, in every format that people have them in: folder, parquet, TensorFlow Datasets, NumPy.

Each source imports the reader of its format when it opens it: `--help` lists the sources and reads nothing.
"""

import abc
import dataclasses
import pathlib
from typing import Annotated, ClassVar

import tyro

from .. import ranges
from ..ranges import Count, Proper
from .classes import split
from .errors import DataError
from .images import Images, black
from .names import listed
from .parts import find_files
from .records import ImageRecords, OnBadImage, Records, class_count

HELD_OUT = ("validation", "val", "test")
"""Names of the part that is not trained on, the first one found."""

Parts = tuple[Records, Records | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photos(abc.ABC, ranges.Checked):
    """A source of photos, each cropped to its central square and resized."""

    names: ClassVar[tuple[str, ...]] = ()
    indexed: ClassVar[bool] = False
    """Whether the first `build` writes an index."""
    path: pathlib.Path
    """File or folder of the images."""
    size: Count = 256
    """Height and width of the images (1 or more)."""
    mirror: bool = True
    """Mirror images at random."""
    on_bad_image: OnBadImage = "refuse"
    """For an image that cannot be used: refuse ends the run and names it, replace puts the next good image in its place."""
    held_out: Proper = 0.02
    """Share of the images to hold out, if no part of them is for validation or test (more than 0, below 1)."""

    def build(self) -> tuple[ImageRecords, ImageRecords]:
        """Training images, and those held out: the part that is named so, or a fixed share, drawn at random once for all."""
        parts = split(*self.parts(), self.held_out, replace=self.on_bad_image == "replace")
        options = {"size": self.size, "classes": class_count(*parts), "on_bad_image": self.on_bad_image}
        train, held_out = (ImageRecords(**vars(part), **options) for part in parts)
        return train, held_out

    def blank(self) -> Images:
        """One black image; with the number of classes, where the images are there and are not indexed first."""
        known = self.path.exists() and not self.indexed
        classes = self.build()[0].classes if known else 1
        said = f"images in {self.path}" if known else f"{self.path} is not read: 1 class"
        return black((self.size, self.size, 3), classes, said)

    @abc.abstractmethod
    def parts(self) -> Parts:
        """Records to train on, and those held out, or None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder(Photos):
    """Image files: PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg, or, without labels, all in one
    folder. Folders inside a class belong to it."""

    def parts(self) -> Parts:
        from .formats.folder import open_folders

        return open_folders(self.path)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(Photos):
    """Hugging Face parquet files with a column `image` or `img` and, for labels, `label` or
    another usual name: one file, or a folder of train-*.parquet and validation-*.parquet, or of others."""

    label: str | None = None
    """Column of the labels, if several could be it or none has a usual name."""

    def parts(self) -> Parts:
        from .formats.parquet import open_parquet

        train, held_out, aside = find_files(self.path, "parquet")
        if not train:
            raise DataError(f"no parquet file at {self.path.absolute()}: name the file or its folder with --data.path")
        records, notes = open_parquet(train, self.label), [f"left aside: files {listed(aside)}"] * bool(aside)
        records = dataclasses.replace(records, notes=(*records.notes, *notes))
        return records, open_parquet(held_out, self.label) if held_out else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(Photos):
    """A data set that TensorFlow Datasets prepared, as array_record or tfrecord: imagenet2012, celebahq256, lsunc. PATH is
    the folder of its version, which holds features.json. Reading it for the first time takes a pass over all files."""

    indexed: ClassVar[bool] = True
    split: str = "train"
    """Split to train on; the held-out one has `validation`, `val` or `test` in place of `train` in its name."""
    index: pathlib.Path = pathlib.Path("runs/index")
    """Folder to keep the index of the records in."""
    label: str | None = None
    """Feature of the labels, if several could be it or none has a usual name."""

    def parts(self) -> Parts:
        from .formats.tfds import open_split, splits

        found = splits(self.path)
        if self.split not in found:
            listed = f"the splits {', '.join(found)}" if found else "no tfrecord or array_record files"
            raise DataError(
                f"no split {self.split!r} in {self.path.absolute()}, which holds {listed}: name one with --data.split, or the "
                "folder of the version with --data.path"
            )
        named = (self.split.replace("train", name) for name in HELD_OUT)
        held_out = next((found[name] for name in named if name in found and name != self.split), None)
        train, rest = (open_split(files, self.index, self.label) if files else None for files in (found[self.split], held_out))
        assert train is not None
        return train, rest


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays(Photos):
    """Images as an array of bytes (count, height, width[, channels]): a .npz file with `images` and, for labels, `labels`;
    or a .npy file, its labels in NAME_labels.npy; or a folder of train.npz or train.npy, and val likewise."""

    label: str | None = None
    """Array of the labels, if several could be it or none has a usual name."""

    def parts(self) -> Parts:
        from .formats.arrays import find_arrays, open_arrays

        if not self.path.is_dir():
            return open_arrays(self.path, self.label), None
        train, held_out = find_arrays(self.path)
        return open_arrays(train, self.label), open_arrays(held_out, self.label) if held_out else None


ImageSource = (
    Annotated[ImageFolder, tyro.conf.subcommand("image-folder")]
    | Annotated[Parquet, tyro.conf.subcommand("parquet")]
    | Annotated[TFDS, tyro.conf.subcommand("tfds")]
    | Annotated[Arrays, tyro.conf.subcommand("arrays")]
)
"""The choice between them on a command line."""
