"""Where images of any size are, in every format that people have them in: folder, parquet, TensorFlow Datasets, NumPy."""

import abc
import dataclasses
import pathlib
from typing import ClassVar

from .errors import DataError
from .formats.arrays import open_arrays
from .formats.folder import open_folder
from .formats.parquet import open_parquet
from .formats.tfds import open_split, splits
from .records import ImageRecords, OnBadImage, Records, class_count, hold_out

HELD_OUT = ("validation", "val", "test")
"""Names of the part that is not trained on, the first one found."""

Parts = tuple[Records, Records | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photos(abc.ABC):
    """What all sources of photos share: each image is cropped to its central square and resized."""

    names: ClassVar[tuple[str, ...]] = ()
    path: pathlib.Path
    """File or folder of the images."""
    size: int = 256
    """Height and width of the images."""
    mirror: bool = True
    """Mirror images at random."""
    on_bad_image: OnBadImage = "refuse"
    """What becomes of an image that cannot be used: an end with its name, or the next good one in its place."""
    held_out: float = 0.02
    """Share of the images held out, where they have no part of that kind."""

    def __post_init__(self):
        if self.size < 1:
            raise ValueError(f"--data.size {self.size}: use 1 or more")
        if not 0 < self.held_out < 1:
            raise ValueError(f"--data.held-out {self.held_out}: use a share above 0 and below 1")

    def build(self) -> tuple[ImageRecords, ImageRecords]:
        """Training images, and those held out: the part that is named so, or a fixed share, drawn at random once for all."""
        train, held_out = self.parts()
        classes = class_count(train) if held_out is None else class_count(train, held_out)
        train, held_out = hold_out(train, self.held_out) if held_out is None else (train, held_out)
        return (
            ImageRecords(train, self.size, classes, self.on_bad_image),
            ImageRecords(held_out, self.size, classes, self.on_bad_image),
        )

    @abc.abstractmethod
    def parts(self) -> Parts:
        """Records to train on, and those held out, or None."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageFolder(Photos):
    """JPEG, PNG and WebP files: PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg, or PATH/CLASS/*.jpg, or, without labels,
    all in one folder."""

    def parts(self) -> Parts:
        if not (self.path / "train").is_dir():
            return open_folder(self.path), None
        held_out = next((self.path / name for name in HELD_OUT if (self.path / name).is_dir()), None)
        return open_folder(self.path / "train"), open_folder(held_out) if held_out else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parquet(Photos):
    """Hugging Face parquet files with a column `image` or `img` and, for labels, `label`: one file, or a folder of
    train-*.parquet and validation-*.parquet, or of others."""

    def parts(self) -> Parts:
        files = [self.path] if self.path.is_file() else sorted(self.path.glob("*.parquet"))
        if not files:
            raise DataError(f"no parquet file at {self.path.absolute()}: name the file or its folder with --data.path")
        train = [file for file in files if file.name.startswith("train")]
        rest = (found for name in HELD_OUT if (found := [file for file in files if file.name.startswith(name)]))
        held_out = next(rest, None) if train else None
        return open_parquet(train or files), open_parquet(held_out) if held_out else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class TFDS(Photos):
    """A data set that TensorFlow Datasets prepared, as array_record or tfrecord: imagenet2012, celebahq256, lsunc. PATH is
    the folder of its version, which holds features.json. Reading it for the first time takes a pass over all files."""

    split: str = "train"
    """Split to train on; the held-out one has `validation`, `val` or `test` in place of `train` in its name."""
    index: pathlib.Path = pathlib.Path("runs/index")
    """Folder to keep the index of the records in."""

    def parts(self) -> Parts:
        found = splits(self.path)
        if self.split not in found:
            listed = f"the splits {', '.join(found)}" if found else "no tfrecord or array_record files"
            raise DataError(
                f"no split {self.split!r} in {self.path.absolute()}, which holds {listed}: name one with --data.split, or the "
                "folder of the version with --data.path"
            )
        named = (self.split.replace("train", name) for name in HELD_OUT)
        held_out = next((found[name] for name in named if name in found and name != self.split), None)
        return open_split(found[self.split], self.index), open_split(held_out, self.index) if held_out else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrays(Photos):
    """Images as an array of bytes (count, height, width[, channels]): a .npz file with `images` and, for labels, `labels`; a
    .npy file, its labels in NAME_labels.npy; or a folder of train.npz or train.npy, and val likewise."""

    def parts(self) -> Parts:
        if not self.path.is_dir():
            return open_arrays(self.path), None
        train, *rest = (self._file(name) for name in ("train", *HELD_OUT))
        if train is None:
            raise DataError(f"no train.npz or train.npy in {self.path.absolute()}: name the file itself with --data.path")
        held_out = next(filter(None, rest), None)
        return open_arrays(train), open_arrays(held_out) if held_out else None

    def _file(self, name: str) -> pathlib.Path | None:
        return next((file for end in ("npz", "npy") if (file := self.path / f"{name}.{end}").exists()), None)
