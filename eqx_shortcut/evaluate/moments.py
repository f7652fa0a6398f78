"""Count, mean and scatter of sets of vectors, gathered batch by batch in float64 and merged exactly."""

import dataclasses
from collections.abc import Iterable

import numpy as np
from jaxtyping import Float, Shaped


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
        check_comparable(self, other)
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


def moments(batches: Iterable[Shaped[np.ndarray, "_ features"]]) -> Moments:
    """Moments of the vectors of all batches, one batch in memory at a time. Raises ValueError if there are none."""
    total = None
    for batch in batches:
        if not len(batch):
            continue
        part = Moments.of(batch)
        total = part if total is None else total + part
    if total is None:
        raise ValueError("no vectors to take moments of: there were no batches, or all were empty")
    return total


def check_comparable(a: Moments, b: Moments) -> None:
    """Raises ValueError unless both are of as many features."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"moments of {a.mean.size} and of {b.mean.size} features cannot be compared: use the same features for both"
        )
