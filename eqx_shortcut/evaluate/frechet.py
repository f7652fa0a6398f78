"""The Frechet distance of two sets of vectors: FID where they are Inception's features."""

import numpy as np
from jaxtyping import Float

from .moments import Moments, check_comparable


def frechet_distance(a: Moments, b: Moments) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))`, the squared Wasserstein-2 distance of two Gaussians.

    Heusel et al. (2017), eq. 6, where the features are Inception's (FID). The trace of the root is the sum of singular
    values of `A^(1/2) B^(1/2)`, which is exact for singular covariances too: 1e-12 of a set against itself, where
    eigenvalues of the product give 1e-5. Raises ValueError if the dimensions differ.
    """
    check_comparable(a, b)
    import scipy.linalg

    root = np.sum(scipy.linalg.svdvals(_square_root(a.covariance) @ _square_root(b.covariance)))
    squared = np.square(a.mean - b.mean).sum()
    return float(squared + np.trace(a.covariance) + np.trace(b.covariance) - 2 * root)


def _square_root(matrix: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    import scipy.linalg

    values, vectors = scipy.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T
