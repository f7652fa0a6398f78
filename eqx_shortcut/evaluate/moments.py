"""Mean and covariance of a set of vectors, gathered batch by batch in float64 and merged exactly."""

import dataclasses
import functools
import operator
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Shaped


@dataclasses.dataclass(frozen=True)
class Gaussian:
    """Mean and covariance of a set of vectors whose count is not known, as most files of statistics hold them."""

    mean: Float[np.ndarray, " features"]
    covariance: Float[np.ndarray, "features features"]


@dataclasses.dataclass(frozen=True)
class Moments:
    """Count, mean and scatter `sum (x - mean)(x - mean)^T` of a set of vectors; `a + b` is that of both sets together."""

    count: int
    mean: Float[np.ndarray, " features"]
    scatter: Float[np.ndarray, "features features"]

    @classmethod
    def of(cls, vectors: Shaped[np.ndarray, "batch features"]) -> "Moments":
        """Moments of one batch. Raises ValueError if a value is not finite, or for more features than `LARGEST` allows."""
        check_size(vectors.shape[1])
        vectors = np.asarray(vectors, np.float64)
        if not len(vectors):
            raise ValueError("no vectors to take moments of: the batch was empty")
        check_finite(vectors)
        mean = vectors.mean(axis=0)
        centred = vectors - mean
        return cls(len(vectors), mean, centred.T @ centred)

    def __add__(self, other: "Moments") -> "Moments":
        check_features(self.mean.size, other.mean.size)
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

    @property
    def gaussian(self) -> Gaussian:
        """Mean and unbiased covariance alone. Needs two vectors at least."""
        return Gaussian(self.mean, self.covariance)


def moments(batches: Iterable[Shaped[np.ndarray, "_ features"]]) -> Moments:
    """Moments of the vectors of all batches, one batch in memory at a time. Raises ValueError if there are none."""
    parts = (Moments.of(batch) for batch in batches if len(batch))
    if (first := next(parts, None)) is None:
        raise ValueError("no vectors to take moments of: there were no batches, or all were empty")
    return functools.reduce(operator.add, parts, first)


LARGEST = 8.0
"""GiB that a covariance may take: 32,768 features, as of pixels of 104 x 104 x 3. A sum of two takes three times as much."""


def check_size(features: int) -> None:
    """Raises ValueError, before memory is allocated, if a covariance of `features` features takes more than `LARGEST` GiB."""
    size = features**2 * 8 / 2**30
    if size > LARGEST:
        raise ValueError(
            f"a covariance of {features:,} features takes {size:,.1f} GiB, more than {LARGEST:g}: use the features of a "
            "network (inception, efficientnet), or smaller images"
        )


def check_finite(vectors: Shaped[np.ndarray, "count features"]) -> None:
    """Raises ValueError, with the number of vectors at fault, if a value is not finite."""
    bad = np.count_nonzero(~np.isfinite(vectors).all(axis=1))
    if bad:
        raise ValueError(
            f"{bad} of {len(vectors)} vectors hold NaN or infinity: a distance of them means nothing; look at the samples"
        )


def check_features(a: int, b: int) -> None:
    """Raises ValueError unless the numbers of features are equal."""
    if a != b:
        raise ValueError(f"vectors of {a} and of {b} features cannot be compared: use the same features for both")
