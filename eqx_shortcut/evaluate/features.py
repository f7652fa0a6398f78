"""Features of images, a vector each, in which distances between sets of images are measured."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped


class Extracted(NamedTuple):
    """The answers of a feature network to a batch of images, one row an image."""

    vectors: Float[np.ndarray, "batch features"]
    spatial: Float[np.ndarray, "batch places"] | None = None
    """Features that keep their place in the image (sFID), if the network has them."""
    logits: Float[np.ndarray, "batch classes"] | None = None
    """Logarithms of class probabilities up to a constant (Inception Score), if the network has them."""


@runtime_checkable
class Features(Protocol):
    """A function of images in [-1, 1], channels last, that says what it is."""

    @property
    def name(self) -> str:
        """The name of a Frechet distance in these features: `FID`, `FD-EffNetLite0`, `pixel Frechet distance`."""
        ...

    @property
    def protocol(self) -> Mapping[str, str]:
        """Network, hash of its weights, preprocessing: two sets of features are comparable only if these are equal."""
        ...

    def __call__(self, images: Float[np.ndarray, "batch height width channels"]) -> Extracted: ...


def pixels(images: Shaped[np.ndarray, "batch *shape"]) -> Float[np.ndarray, "batch features"]:
    """The images themselves, flattened: features that need no network."""
    return np.asarray(images, np.float64).reshape(len(images), math.prod(images.shape[1:]))


SIDE = 32
"""Pixels at most beside each other where images are compared without a network: the covariance of 64 x 64 takes a gigabyte."""


def block(shape: tuple[int, ...]) -> int:
    """Side of the square blocks that divide an image (height, width, channels) into at most `SIDE` by `SIDE`."""
    return -(-max(shape[:2]) // SIDE)


def coarse(images: Shaped[np.ndarray, "batch height width channels"]) -> Float[np.ndarray, "batch rows columns channels"]:
    """The means of each image over squares of side `block`, without what fills none; small images as they are."""
    n, (count, height, width, channels) = block(images.shape[1:]), images.shape
    rows, columns = height // n, width // n
    squares = images[:, : rows * n, : columns * n].reshape(count, rows, n, columns, n, channels)
    return images if n == 1 else squares.mean(axis=(2, 4), dtype=np.float64)


@dataclasses.dataclass(frozen=True)
class Pixels:
    """The images themselves, clipped to [-1, 1] and flattened, as features; any number of channels."""

    name = "pixel Frechet distance"
    protocol = MappingProxyType({"network": "none, pixels clipped to [-1, 1]"})

    def __call__(self, images: Shaped[np.ndarray, "..."]) -> Extracted:
        """Raises ValueError for what are no images in [-1, 1] (see check_images)."""
        check_images(images)
        return Extracted(pixels(np.clip(images, -1, 1)))


@dataclasses.dataclass(frozen=True)
class CoarsePixels:
    """The images themselves as features, averaged over squares to at most `SIDE` by `SIDE`, and not clipped."""

    name = "frechet"
    protocol = MappingProxyType({"network": f"none, pixels averaged to at most {SIDE} x {SIDE}"})

    def __call__(self, images: Shaped[np.ndarray, "..."]) -> Extracted:
        return Extracted(pixels(coarse(images)))


@dataclasses.dataclass(frozen=True)
class Custom:
    """Features by any function from images, clipped to [-1, 1], to one vector each; `name` says what a distance in them is."""

    function: Callable[[Any], Any]
    name: str

    @property
    def protocol(self) -> Mapping[str, str]:
        """The name alone: nothing more is known of the function, so let it tell one version from another."""
        return {"network": self.name}

    def __call__(self, images: Shaped[np.ndarray, "..."]) -> Extracted:
        """Raises ValueError for what are no images in [-1, 1] (see check_images), and if the function gives no vectors."""
        check_images(images)
        vectors = np.asarray(self.function(np.clip(images, -1, 1)))
        if vectors.ndim != 2 or len(vectors) != len(images) or vectors.dtype.kind != "f":
            raise ValueError(
                f"{self.name} made an array of shape {vectors.shape} and type {vectors.dtype} of {len(images)} images: "
                "return floats of shape (images, features)"
            )
        return Extracted(vectors)


MANY = 8
"""Images that cannot all be brighter than grey in every pixel, unless 0 stands for black."""


def check_images(images: Shaped[np.ndarray, "..."], *, channels: tuple[int, ...] = ()) -> None:
    """Raises ValueError unless these are floats (count, height, width, channels) in [-1, 1], with one of the `channels` if any.

    Values beyond [-1, 1] pass, as samples have them; whoever takes the images clips them. Many images without one negative
    value are refused, being in [0, 1].
    """
    remedy = "give floats of shape (count, height, width, channels) in [-1, 1], such as bytes / 127.5 - 1"
    if images.ndim != 4 or images.dtype.kind != "f" or not images.size:
        raise ValueError(f"images have shape {images.shape} and type {images.dtype}: {remedy}")
    if channels and images.shape[-1] not in channels:
        wanted = " or ".join(map(str, channels))
        raise ValueError(f"images of shape {images.shape} have {images.shape[-1]} channels, not {wanted}: {remedy}")
    finite = np.isfinite(images).all(axis=(1, 2, 3))
    if not finite.all():
        raise ValueError(
            f"{np.count_nonzero(~finite)} of {len(images)} images hold NaN or infinity: "
            "a distance of them means nothing; look at the samples"
        )
    if len(images) >= MANY and images.min() >= 0:
        raise ValueError(
            f"{len(images)} images have values from {images.min():.3g} to {images.max():.3g}, not one below 0: "
            "if 0 is their black, give 2 x - 1 of values up to 1, and bytes / 127.5 - 1"
        )
