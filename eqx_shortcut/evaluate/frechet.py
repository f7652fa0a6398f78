"""The Frechet distance of two sets of vectors: FID where they are Inception's features, sFID where these keep their place."""

import numpy as np
from jaxtyping import Float

from .moments import Gaussian, Moments, check_features


def frechet_distance(a: Moments | Gaussian, b: Moments | Gaussian) -> float:
    """`|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2))`, the squared Wasserstein-2 distance of two Gaussians.

    Heusel et al. (2017), eq. 6, where the features are Inception's (FID). The trace of the root is the sum of singular
    values of `F^T G` for any factors `A = F F^T` and `B = G G^T`: exact for singular covariances too, where eigenvalues of the
    product lose half their digits, and cheaper the lower the ranks. Raises ValueError if the dimensions differ.
    """
    check_features(a.mean.size, b.mean.size)
    import scipy.linalg

    f, g = _factor(a.covariance), _factor(b.covariance)
    root = np.sum(scipy.linalg.svdvals(f.T @ g)) if f.size and g.size else 0.0
    # Squares of the factors for the traces: what rounding or clipping took from a covariance is then taken everywhere.
    return float(np.square(a.mean - b.mean).sum() + np.square(f).sum() + np.square(g).sum() - 2 * root)


def _factor(covariance: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n rank"]:
    """F with `F F^T` the covariance, without the parts of its eigenvalues that are negative."""
    import scipy.linalg

    n, largest = len(covariance), covariance.diagonal().max()
    # Cholesky with pivoting ends where no pivot is above the rounding n eps of the largest variance: at the rank.
    (pivoted_cholesky,) = scipy.linalg.get_lapack_funcs(("pstrf",), (covariance,))
    lower, order, rank, _ = pivoted_cholesky(covariance, lower=1)
    factor = np.empty((n, rank))
    factor[order - 1] = np.tril(lower[:, :rank])
    if abs(covariance.trace() - np.square(factor).sum()) <= n**2 * np.finfo(np.float64).eps * largest:
        return factor
    # Indefinite beyond rounding in float64, as a covariance once stored in float32 is.
    values, vectors = scipy.linalg.eigh(covariance)
    return vectors[:, values > 0] * np.sqrt(values[values > 0])
