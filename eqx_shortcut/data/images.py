"""Sets of labelled images in memory, each read from the files people have them in."""

import dataclasses
import gzip
import io
import math
import pathlib
import zlib
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Integer, UInt8


class DataError(ValueError):
    """Data that cannot be trained on: says which file and index, the rule, and the remedy."""


@dataclasses.dataclass(frozen=True)
class Images:
    """Images as stored, with values from 0 to `peak`, and a label each from 0 to `classes - 1`."""

    pixels: UInt8[np.ndarray, "count height width channels"]
    labels: Integer[np.ndarray, " labels"]  # as many as images, which __post_init__ says better than the type checker
    classes: int
    peak: int = 255

    def __post_init__(self):
        if not len(self.pixels):
            raise DataError("there are no images: name the files that hold them")
        if len(self.pixels) != len(self.labels):
            raise DataError(f"{len(self.pixels)} images but {len(self.labels)} labels: the two files do not belong together")
        wrong = np.flatnonzero((self.labels < 0) | (self.labels >= self.classes))
        if wrong.size:
            raise DataError(
                f"label {self.labels[wrong[0]]} of image {wrong[0]} is not in 0 to {self.classes - 1} "
                f"({wrong.size} such labels): correct the labels"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        height, width, channels = self.pixels.shape[1:]
        return height, width, channels

    def scaled(self) -> Float[np.ndarray, "count height width channels"]:
        """The images as float32 in [-1, 1], which is what networks see and distances are measured on."""
        return self.pixels.astype(np.float32) / (self.peak / 2) - 1


@runtime_checkable
class Source(Protocol):
    """A frozen dataclass that says where images are and reads them."""

    mirror: bool
    """Whether a mirrored image is as likely as the image: photos yes, digits no."""

    def build(self) -> tuple[Images, Images]:
        """Training and held-out images. Raises DataError if a file is missing, truncated or contradicts itself."""
        ...


@dataclasses.dataclass(frozen=True)
class Digits:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 that come with the package."""

    mirror: bool = False
    """Mirror images at random."""

    def build(self) -> tuple[Images, Images]:
        """A fixed split, stratified by class: 1,400 training and 397 held-out images."""
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        flat, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
        pixels, labels = flat.astype(np.uint8).reshape(-1, 8, 8, 1), labels.astype(np.int32)
        rows = train_test_split(np.arange(len(labels)), train_size=1400, random_state=0, stratify=labels)
        train, held_out = (Images(pixels[part], labels[part], classes=10, peak=16) for part in rows)
        return train, held_out


@dataclasses.dataclass(frozen=True)
class FashionMNIST:
    """Fashion-MNIST (Xiao et al. 2017), or any set of the MNIST family, from its four gzipped IDX files."""

    path: pathlib.Path = pathlib.Path("/usr/share/datasets/fashion-mnist")
    """Folder of the IDX files; the default is where Debian's package dataset-fashion-mnist puts them."""
    mirror: bool = True
    """Mirror images at random."""

    def build(self) -> tuple[Images, Images]:
        """60,000 training and 10,000 held-out images of 28 x 28."""
        remedy = "install the Debian package dataset-fashion-mnist, or name the folder of its files with --data.path"
        return self._read("train", remedy), self._read("t10k", remedy)

    def _read(self, part: str, remedy: str) -> Images:
        pixels = read_idx(self.path / f"{part}-images-idx3-ubyte.gz", axes=3, remedy=remedy)
        labels = read_idx(self.path / f"{part}-labels-idx1-ubyte.gz", axes=1, remedy=remedy)
        return _images(f"{part} files in {self.path}", pixels[..., None], labels, classes=10)


@dataclasses.dataclass(frozen=True)
class CIFAR10:
    """CIFAR-10 (Krizhevsky 2009) from Hugging Face parquet files with columns `img` and `label`."""

    path: pathlib.Path = pathlib.Path("data/cifar10")
    """Folder of the files `train-*.parquet` and `test-*.parquet`."""
    mirror: bool = True
    """Mirror images at random."""

    def build(self) -> tuple[Images, Images]:
        """50,000 training and 10,000 held-out images of 32 x 32 x 3."""
        return self._read("train"), self._read("test")

    def _read(self, part: str) -> Images:
        files = sorted(self.path.glob(f"{part}-*.parquet"))
        if not files:
            raise DataError(
                f"no file {part}-*.parquet in {self.path.absolute()}: download the parquet files of the Hugging Face data "
                "set cifar10 and name their folder with --data.path"
            )
        parts = [_images(str(file), *read_parquet(file), classes=10) for file in files]
        odd = next((i for i, images in enumerate(parts) if images.shape != parts[0].shape), None)
        if odd is not None:
            raise DataError(
                f"{files[odd]} holds images of size {parts[odd].shape}, {files[0]} of {parts[0].shape}: resize them to one size"
            )
        return Images(
            np.concatenate([images.pixels for images in parts]), np.concatenate([images.labels for images in parts]), classes=10
        )


def _images(where: str, pixels: np.ndarray, labels: np.ndarray, *, classes: int) -> Images:
    try:
        return Images(pixels, labels.astype(np.int32), classes=classes)
    except DataError as error:
        raise DataError(f"{where}: {error}") from error


def read_idx(path: pathlib.Path, *, axes: int, remedy: str) -> UInt8[np.ndarray, "..."]:
    """The array of bytes in a gzipped IDX file (the format of MNIST) of so many axes."""
    if not path.exists():
        raise DataError(f"no file {path}: {remedy}")
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}): copy or download it again") from error
    header = 4 + 4 * axes
    if len(raw) < header or raw[:4] != bytes([0, 0, 8, axes]):
        raise DataError(f"{path} does not begin like an IDX file of bytes with {axes} axes: {remedy}")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", axes, offset=4))
    if len(raw) - header != math.prod(shape):
        raise DataError(
            f"{path} announces {' x '.join(map(str, shape))} bytes and holds {len(raw) - header}: it is truncated or "
            "damaged; copy or download it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)


def read_parquet(
    path: pathlib.Path, *, image: str = "img", label: str = "label"
) -> tuple[UInt8[np.ndarray, "count height width 3"], Integer[np.ndarray, " count"]]:
    """Images (encoded files, as the Hugging Face image column stores them) and labels of one parquet file."""
    import pyarrow
    import pyarrow.parquet

    try:
        found = pyarrow.parquet.read_schema(path).names
        if not {image, label} <= set(found):
            raise DataError(f"{path} has no columns {image!r} and {label!r}, found {found}: rename its columns")
        table = pyarrow.parquet.read_table(path, columns=[image, label])
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({error}): copy or download it again") from error
    if not len(table):
        raise DataError(f"{path}: there are no images in it: remove the file")
    if not pyarrow.types.is_integer(table.schema.field(label).type) or table[label].null_count:
        raise DataError(f"{path}: column {label!r} must hold whole numbers, one for each image: correct the labels")
    pixels = [_decode(cell, path, i) for i, cell in enumerate(table[image].to_pylist())]
    sizes = [picture.shape for picture in pixels]
    odd = next((i for i, size in enumerate(sizes) if size != sizes[0]), None)
    if odd is not None:
        raise DataError(f"{path}: image {odd} has size {sizes[odd]}, image 0 has {sizes[0]}: resize them to one size")
    return np.stack(pixels), table[label].to_numpy().astype(np.int32)


def _decode(cell: Any, path: pathlib.Path, index: int) -> UInt8[np.ndarray, "height width 3"]:
    import PIL.Image

    try:
        return np.asarray(PIL.Image.open(io.BytesIO(cell["bytes"])).convert("RGB"))
    except (OSError, SyntaxError, TypeError, KeyError) as error:
        raise DataError(f"{path}: image {index} cannot be decoded ({error}): repair or remove it") from error
