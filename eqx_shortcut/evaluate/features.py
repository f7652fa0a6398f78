"""What distances between images are measured in: from images to one vector each."""

import math
from collections.abc import Mapping
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Shaped


class Extracted(NamedTuple):
    """What a feature network says of a batch of images, one row an image."""

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
        """What a Frechet distance in these features is called: `FID`, `FD-EffNetLite0`, `pixel Frechet distance`."""
        ...

    @property
    def protocol(self) -> Mapping[str, str]:
        """What two sets of features must agree in to be compared: network, hash of its weights, preprocessing."""
        ...

    def __call__(self, images: Float[np.ndarray, "batch height width channels"]) -> Extracted: ...


def pixels(images: Shaped[np.ndarray, "batch *shape"]) -> Float[np.ndarray, "batch features"]:
    """The images themselves, flattened: features that need no network."""
    return np.asarray(images, np.float64).reshape(len(images), math.prod(images.shape[1:]))
