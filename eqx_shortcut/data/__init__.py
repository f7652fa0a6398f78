"""Data: images from the files people have them in, latents and pairs made of them, arrays of any kind, and the Grain pipeline.

What only training needs is imported on first use: a command line that lists its options knows the sources alone.
"""

import importlib
from typing import TYPE_CHECKING

from .errors import DataError
from .images import CIFAR10, Digits, FashionMNIST, Images
from .records import ImageRecords
from .source import Rows, Source, blank, null_of, pictures
from .sources import TFDS, Arrays, ImageFolder, ImageSource, Parquet

if TYPE_CHECKING:
    from .encoded import Encoded
    from .latent_images import LatentImages
    from .latents import Latents, read_latents
    from .memory import ArraySource
    from .pairs import Pairs, read_pairs
    from .pipeline import Batches, batches, example, prepare

_LATER = {
    "ArraySource": "memory",
    "Batches": "pipeline",
    "Encoded": "encoded",
    "LatentImages": "latent_images",
    "Latents": "latents",
    "Pairs": "pairs",
    "batches": "pipeline",
    "example": "pipeline",
    "prepare": "pipeline",
    "read_latents": "latents",
    "read_pairs": "pairs",
}

__all__ = [
    "CIFAR10",
    "TFDS",
    "ArraySource",
    "Arrays",
    "Batches",
    "DataError",
    "Digits",
    "Encoded",
    "FashionMNIST",
    "ImageFolder",
    "ImageRecords",
    "ImageSource",
    "Images",
    "LatentImages",
    "Latents",
    "Pairs",
    "Parquet",
    "Rows",
    "Source",
    "batches",
    "blank",
    "example",
    "null_of",
    "pictures",
    "prepare",
    "read_latents",
    "read_pairs",
]


def __getattr__(name: str):
    if name in _LATER:
        return getattr(importlib.import_module(f".{_LATER[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
