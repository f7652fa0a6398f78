"""Data: sets of labelled images, and the Grain pipeline that feeds them."""

from .encoded import Encoded
from .errors import DataError
from .images import CIFAR10, Digits, FashionMNIST, Images
from .latents import Latents, read_latents
from .pairs import Pairs, read_pairs
from .pipeline import Batches, Rows, batches, prepare
from .records import ImageRecords
from .sources import TFDS, Arrays, ImageFolder, Parquet, Source

__all__ = [
    "CIFAR10",
    "TFDS",
    "Arrays",
    "Batches",
    "DataError",
    "Digits",
    "Encoded",
    "FashionMNIST",
    "ImageFolder",
    "ImageRecords",
    "Images",
    "Latents",
    "Pairs",
    "Parquet",
    "Rows",
    "Source",
    "batches",
    "prepare",
    "read_latents",
    "read_pairs",
]
