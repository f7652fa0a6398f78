"""Data: sets of labelled images, and the Grain pipeline that feeds them."""

from .errors import DataError
from .images import CIFAR10, Digits, FashionMNIST, Images
from .pairs import Pairs, read_pairs
from .pipeline import Batches, batches, prepare
from .records import ImageRecords
from .sources import TFDS, Arrays, ImageFolder, Parquet, Source

__all__ = [
    "CIFAR10",
    "TFDS",
    "Arrays",
    "Batches",
    "DataError",
    "Digits",
    "FashionMNIST",
    "ImageFolder",
    "ImageRecords",
    "Images",
    "Pairs",
    "Parquet",
    "Source",
    "batches",
    "prepare",
    "read_pairs",
]
