"""Pairs of vectors of two sets, a block of them in memory at a time."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Float64

from .moments import check_features, check_finite

ROWS = 1024
"""Vectors of each set in a block of pairs."""


def blocks(
    vectors: Float[np.ndarray, "count features"], centre: Float64[np.ndarray, " features"] | float = 0.0, *, start: int = 0
) -> Iterator[tuple[slice, Float64[np.ndarray, "rows features"]]]:
    """The vectors from `start` on, less `centre`, in float64, block by block, with the rows that they are."""
    for first in range(start, len(vectors), ROWS):
        rows = slice(first, min(first + ROWS, len(vectors)))
        yield rows, vectors[rows] - np.asarray(centre, np.float64)


def centre_of(
    a: Float[np.ndarray, "count_a features_a"], b: Float[np.ndarray, "count_b features_b"]
) -> Float64[np.ndarray, " features_a"]:
    """Mean of both sets together. Raises ValueError if they differ in features, one is empty, or a value is not finite."""
    check_features(a.shape[1], b.shape[1])
    if not (len(a) and len(b)):
        raise ValueError(f"sets of {len(a)} and of {len(b)} vectors cannot be compared: both need vectors")
    for vectors in (a, b):
        check_finite(vectors)
    return (a.sum(axis=0, dtype=np.float64) + b.sum(axis=0, dtype=np.float64)) / (len(a) + len(b))


def squared_distances(
    a: Float64[np.ndarray, "rows features"], b: Float64[np.ndarray, "columns features"]
) -> Float64[np.ndarray, "rows columns"]:
    """`|a|^2 + |b|^2 - 2 a b` of all pairs; where rounding hides the difference, exactly 0, so that copies are at no distance.

    Subtract a common centre first: what is lost to rounding is in proportion to the squares.
    """
    scale = np.einsum("if,if->i", a, a)[:, None] + np.einsum("if,if->i", b, b)
    squared = a @ b.T
    squared *= -2
    squared += scale
    # A sum of n products is off by n eps / 2 of their sizes at most (Higham 2002, section 3.1).
    squared[squared <= a.shape[1] * np.finfo(np.float64).eps * scale] = 0
    return squared
