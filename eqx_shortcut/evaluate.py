"""Distances between sets of images, from moments gathered batch by batch in float64."""

import dataclasses
import math
from collections.abc import Callable, Iterable

import numpy as np
from jaxtyping import Float, Shaped

Features = Callable[[Shaped[np.ndarray, "batch *shape"]], Float[np.ndarray, "batch features"]]
"""What a distance is measured in: from images in [-1, 1] to one vector each."""


def pixels(images: Shaped[np.ndarray, "batch *shape"]) -> Float[np.ndarray, "batch features"]:
    """The images themselves, flattened: features that need no network."""
    return np.asarray(images, np.float64).reshape(len(images), math.prod(images.shape[1:]))


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter `sum (x - mean)(x - mean)^T` of a set of vectors; `a + b` is that of both sets together."""

    count: int
    mean: Float[np.ndarray, " features"]
    scatter: Float[np.ndarray, "features features"]

    @classmethod
    def of(cls, vectors: Shaped[np.ndarray, "batch features"]) -> "Moments":
        """Moments of one batch. Raises ValueError if a value is not finite."""
        vectors = np.asarray(vectors, np.float64)
        if not len(vectors):
            raise ValueError("no vectors to take moments of: the batch was empty")
        if not np.isfinite(vectors).all():
            raise ValueError(
                f"{np.count_nonzero(~np.isfinite(vectors).all(axis=1))} of {len(vectors)} vectors hold NaN or infinity: "
                "a distance of them means nothing; look at the samples"
            )
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        return cls(len(vectors), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        _check_comparable(self, other)
        count = self.count + other.count
        shift = other.mean - self.mean
        scatter = self.scatter + other.scatter + np.outer(shift, shift) * (self.count * other.count / count)
        return Moments(count, self.mean + shift * (other.count / count), scatter)

    @property
    def covariance(self) -> Float[np.ndarray, "features features"]:
        """Unbiased covariance, singular if there are no more vectors than features. Needs two vectors at least."""
        if self.count < 2:
            raise ValueError(f"a covariance needs at least 2 vectors, found {self.count}")
        return self.scatter / (self.count - 1)


def moments(batches: Iterable[Shaped[np.ndarray, "_ *shape"]], features: Features = pixels) -> Moments:
    """Moments of the features of all batches, one batch in memory at a time. Raises ValueError if there are none."""
    total = None
    for batch in batches:
        if not len(batch):
            continue
        part = Moments.of(features(batch))
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no images to take moments of: there were no batches, or all were empty")
    return total


def frechet_distance(a: Moments, b: Moments) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))`, the squared Wasserstein-2 distance of two Gaussians.

    Heusel et al. (2017), eq. 6, where the features are Inception's (FID). The trace of the root is the sum of singular
    values of `A^(1/2) B^(1/2)`, which is exact for singular covariances too: 1e-12 of a set against itself, where
    eigenvalues of the product give 1e-5. Raises ValueError if the dimensions differ.
    """
    _check_comparable(a, b)
    import scipy.linalg

    root = np.sum(scipy.linalg.svdvals(_square_root(a.covariance) @ _square_root(b.covariance)))
    squared = np.square(a.mean - b.mean).sum()
    return float(squared + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root)


def _check_comparable(a: Moments, b: Moments) -> None:
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"moments of {a.mean.size} and of {b.mean.size} features cannot be compared: use the same features for both"
        )


def _square_root(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    import scipy.linalg

    values, vectors = scipy.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def nearest_distances(
    queries: Shaped[np.ndarray, "queries *shape"], references: Shaped[np.ndarray, "references *shape"]
) -> Float[np.ndarray, " queries"]:
    """Euclidean distance of each query to its nearest reference, over all elements."""
    from scipy.spatial import KDTree

    return KDTree(pixels(references)).query(pixels(queries), workers=-1)[0]
