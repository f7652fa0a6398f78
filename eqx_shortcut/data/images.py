"""Sets of labelled images in memory, each read from the files people have them in."""

import dataclasses
import hashlib
import pathlib
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Integer, PRNGKeyArray, UInt8

from ..types import Batch
from .errors import BadImage, DataError
from .formats.idx import read_idx
from .preprocess import decode


@dataclasses.dataclass(frozen=True)
class Images:
    """Images as stored, with values from 0 to `peak`, and a label each from 0 to `classes - 1`."""

    pixels: UInt8[np.ndarray, "count height width channels"]
    labels: Integer[np.ndarray, " labels"]  # as many as images, which __post_init__ says better than the type checker
    classes: int
    peak: int = 255
    names: tuple[str, ...] = ()
    """Names of the classes in order of their labels; empty if they have none."""
    notes: tuple[str, ...] = ()
    """Remarks for the user on how they were found."""

    noun: ClassVar[str] = "images"

    def __post_init__(self):
        if not len(self.pixels):
            raise DataError("there are no images: name the files that hold them")
        if len(self.pixels) != len(self.labels):
            raise DataError(f"{len(self.pixels)} images but {len(self.labels)} labels: the two files do not belong together")
        check_labels(self.labels, self.classes)

    def rows(self, indices: Integer[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """Images and labels at `indices`."""
        return {"pixels": self.pixels[indices], "labels": self.labels[indices]}

    def first(self, count: int) -> "Images":
        """The first `count` images."""
        return dataclasses.replace(self, pixels=self.pixels[:count], labels=self.labels[:count])

    def batch(self, raw: dict[str, Array], key: PRNGKeyArray, *, mirror: bool) -> Batch:
        """Images in [-1, 1] with their labels, mirrored with probability 1/2 each if `mirror`."""
        return Batch(floats(raw["pixels"], self.peak, key, mirror=mirror), raw["labels"])

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.pixels.shape[1:]
        return height, width, channels

    def where(self, index: int) -> str:
        """One image in words."""
        return f"image {index}"

    def digest(self) -> str:
        """SHA-256 of images and labels."""
        return hashlib.sha256(self.pixels.tobytes() + self.labels.astype("<i4").tobytes()).hexdigest()

    def scaled(self) -> Float[np.ndarray, "count height width channels"]:
        """The images as float32 in [-1, 1], which is what networks see and distances are measured on."""
        return self.pixels.astype(np.float32) / (self.peak / 2) - 1


def floats(
    pixels: UInt8[Array, "batch height width channels"], peak: int, key: PRNGKeyArray, *, mirror: bool
) -> Float[Array, "batch height width channels"]:
    """Pixels of 0 to `peak` in [-1, 1], on the device, each image mirrored left to right with probability 1/2 if `mirror`."""
    x = pixels.astype(jnp.float32) / (peak / 2) - 1
    return jnp.where(jax.random.bernoulli(key, 0.5, (x.shape[0], 1, 1, 1)), x[:, :, ::-1], x) if mirror else x


def black(shape: tuple[int, int, int], classes: int, *notes: str) -> Images:
    """One black image of class 0, for a plan without data."""
    return Images(np.zeros((1, *shape), np.uint8), np.zeros(1, np.int32), classes, notes=notes)


def check_labels(labels: Integer[np.ndarray, " count"], classes: int, where: Callable[[int], str] = "image {}".format) -> None:
    """Raises DataError, saying `where` the first wrong one is, unless all labels are in 0 to `classes - 1`."""
    wrong = np.flatnonzero((labels < 0) | (labels >= classes))
    if wrong.size:
        raise DataError(
            f"label {labels[wrong[0]]} of {where(int(wrong[0]))} is not in 0 to {classes - 1} ({wrong.size} such labels): "
            f"correct the labels{', or leave out images without one, as -1 often says' * bool(labels[wrong[0]] == -1)}"
        )


@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 that come with the package."""

    names: ClassVar[tuple[str, ...]] = tuple("0123456789")
    mirror: bool = False
    """Mirror images at random."""

    def build(self) -> tuple[Images, Images]:
        """A fixed split, stratified by class: 1,400 training and 397 held-out images."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        flat, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
        pixels, labels = flat.astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int32)
        rows = train_test_split(np.arange(len(labels)), train_size=1400, random_state=0, stratify=labels)
        train, held_out = (Images(pixels[part], labels[part], classes=10, peak=16, names=self.names) for part in rows)
        return train, held_out


@dataclasses.dataclass(frozen=True)
class FashionMNIST:
    """Fashion-MNIST (Xiao et al. 2017), or any set of the MNIST family, from its four gzipped IDX files.

    The names of the classes are those of Fashion-MNIST, whichever set the files hold.
    """

    names: ClassVar[tuple[str, ...]] = tuple(
        "T-shirt/trouser/pullover/dress/coat/sandal/shirt/sneaker/bag/ankle boot".split("/")
    )
    path: pathlib.Path = pathlib.Path("/usr/share/datasets/fashion-mnist")
    """Folder of the IDX files; the default is where Debian's package dataset-fashion-mnist puts them."""
    mirror: bool = False
    """Mirror images at random; not by default, since its shoes all point one way."""

    def blank(self) -> Images:
        """One black image."""
        return black((28, 28, 1), 10)

    def build(self) -> tuple[Images, Images]:
        """60,000 training and 10,000 held-out images of 28 x 28."""
        remedy = "install the Debian package dataset-fashion-mnist, or name the folder of its files with --data.path"
        return self._read("train", remedy), self._read("t10k", remedy)

    def _read(self, part: str, remedy: str) -> Images:
        pixels = read_idx(self.path / f"{part}-images-idx3-ubyte.gz", axes=3, remedy=remedy)
        labels = read_idx(self.path / f"{part}-labels-idx1-ubyte.gz", axes=1, remedy=remedy)
        try:
            return Images(pixels[..., None], labels.astype(np.int32), classes=10, names=self.names)
        except DataError as error:
            raise DataError(f"{part} files in {self.path}: {error}") from error


@dataclasses.dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 (Krizhevsky 2009) from Hugging Face parquet files with columns `img` and `label`."""

    names: ClassVar[tuple[str, ...]] = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
    path: pathlib.Path = pathlib.Path("data/cifar10")
    """Folder of the files `train-*.parquet` and `test-*.parquet`."""
    mirror: bool = True
    """Mirror images at random."""

    def blank(self) -> Images:
        """One black image."""
        return black((32, 32, 3), 10)

    def build(self) -> tuple[Images, Images]:
        """50,000 training and 10,000 held-out images of 32 x 32 x 3."""
        return self._read("train"), self._read("test")

    def _read(self, part: str) -> Images:
        from .formats.parquet import open_parquet

        files = sorted(self.path.glob(f"{part}-*.parquet"))
        if not files:
            raise DataError(
                f"no file {part}-*.parquet in {self.path.absolute()}: download the parquet files of the Hugging Face data "
                "set cifar10 and name their folder with --data.path"
            )
        records = open_parquet(files, "label")
        labels = records.labels
        assert labels is not None  # it is asked for
        if labels.dtype.kind not in "iu":
            raise DataError(f"labels of {files[0]} are no numbers of the {len(self.names)} classes: correct them")
        check_labels(labels, 10, records.where)
        pixels = [_decode(records, i) for i in range(len(labels))]
        odd = next((i for i, image in enumerate(pixels) if image.shape != pixels[0].shape), None)
        if odd is not None:
            raise DataError(
                f"{records.where(odd)} has size {pixels[odd].shape}, {records.where(0)} has {pixels[0].shape}: resize them "
                "to one size"
            )
        return Images(np.stack(pixels), labels.astype(np.int32), classes=10, names=self.names)


def _decode(records: Any, index: int) -> UInt8[np.ndarray, "height width 3"]:
    try:
        return decode(records.encoded(index))
    except BadImage as error:
        raise DataError(f"{records.where(index)} cannot be used ({error}): repair or remove it") from error
