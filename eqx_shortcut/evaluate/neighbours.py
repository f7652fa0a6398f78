"""Comparisons of two sets of vectors by nearest neighbours."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float64, Shaped

from .features import pixels
from .pairwise import blocks, centre_of, squared_distances


class PRDC(NamedTuple):
    """Shares of one set inside balls around the other, from 0 to 1; density is a mean count without a bound."""

    precision: float
    """Samples in a ball of a reference: how many are realistic."""
    recall: float
    """References in a ball of a sample: how much of the data is reached."""
    density: float
    """Balls of references that a sample is in, in the mean over samples, divided by `density_k`: about 1, and not bounded."""
    coverage: float
    """References whose ball holds a sample."""


def prdc(
    samples: Float[np.ndarray, "samples features"],
    references: Float[np.ndarray, "references _"],
    *,
    k: int = 3,
    density_k: int = 5,
) -> PRDC:
    """Precision and recall with balls up to the k-th neighbour, density and coverage with balls short of the density_k-th.

    A vector is not its own neighbour, but copies of it are. Float64 throughout, a block of pairs in memory at a time. Balls
    include their surface for precision and recall and exclude it for density and coverage, as in the authors' code.
    Raises ValueError if the features differ, if a value is not finite, or if a vector has too few neighbours. Sources:
    Kynkaanniemi et al. (2019), eq. 1 and 2; Naeem et al. (2020).
    """
    centre = centre_of(samples, references)
    inner, outer = sorted((k, density_k))
    if inner < 1:
        raise ValueError(f"k={k}, density_k={density_k}: use 1 or more")
    if min(len(samples), len(references)) <= outer:
        raise ValueError(
            f"{len(samples)} samples and {len(references)} references do not all have {outer} neighbours: "
            f"use {outer + 1} or more of each"
        )
    reference_radii = _squared_radii(references, centre, outer)
    wide, close = reference_radii[:, k - 1 : k], reference_radii[:, density_k - 1 : density_k]
    reach = _squared_radii(samples, centre, k)[:, k - 1]
    realistic, reached, covered = (np.zeros(n, bool) for n in (len(samples), len(references), len(references)))
    inside = 0
    for rows, reference in blocks(references, centre):
        for columns, sample in blocks(samples, centre):
            squared = squared_distances(reference, sample)
            realistic[columns] |= (squared <= wide[rows]).any(axis=0)
            reached[rows] |= (squared <= reach[columns]).any(axis=1)
            within = squared < close[rows]
            covered[rows] |= within.any(axis=1)
            inside += np.count_nonzero(within)
    density = float(inside / (density_k * len(samples)))
    return PRDC(float(realistic.mean()), float(reached.mean()), density, float(covered.mean()))


def nearest_distances(
    queries: Shaped[np.ndarray, "queries *shape"], references: Shaped[np.ndarray, "references *shape"]
) -> Float[np.ndarray, " queries"]:
    """Euclidean distance of each query to its nearest reference, over all elements."""
    from scipy.spatial import KDTree

    return KDTree(pixels(references)).query(pixels(queries), workers=-1)[0]


def _squared_radii(
    vectors: Float[np.ndarray, "count features"], centre: Float64[np.ndarray, " features"], k: int
) -> Float64[np.ndarray, "count k"]:
    """Squared distances of each vector to its k nearest others, in rising order."""
    nearest = np.full((len(vectors), k), np.inf)
    for rows, a in blocks(vectors, centre):
        # Distances are symmetric, so that a block serves the rows of both its sides.
        for columns, b in blocks(vectors, centre, start=rows.start):
            squared = squared_distances(a, b)
            if rows == columns:
                np.fill_diagonal(squared, np.inf)
            else:
                nearest[columns] = _smallest(nearest[columns], squared.T, k)
            nearest[rows] = _smallest(nearest[rows], squared, k)
    return np.sort(nearest, axis=1)


def _smallest(
    found: Float64[np.ndarray, "rows k"], more: Float64[np.ndarray, "rows columns"], k: int
) -> Float64[np.ndarray, "rows k"]:
    return np.partition(np.concatenate([found, more], axis=1), k - 1, axis=1)[:, :k]
