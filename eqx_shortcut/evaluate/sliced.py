"""The sliced Wasserstein distance: transport along lines, where it is a matter of sorting."""

import numpy as np
from jaxtyping import Float, Float64

from .moments import check_features, check_finite


def sliced_wasserstein(
    samples: Float[np.ndarray, "samples features"],
    references: Float[np.ndarray, "references _"],
    directions: Float[np.ndarray, "directions _"],
    *,
    order: float = 2.0,
) -> float:
    """`(mean over directions of W_p^p)^(1/p)`, `W_p` the Wasserstein distance of order `p` between the projections of two sets.

    Exact for each direction, whatever the two counts: the distance between the quantile functions, in float64. Directions may
    be of any length but 0: `half_circle(count)` in the plane, rows of normal numbers elsewhere. In units of the vectors.
    Raises ValueError if the features differ, a value is not finite, or a set is empty. Bonneel et al. (2015).
    """
    check_features(samples.shape[1], references.shape[1])
    check_features(samples.shape[1], directions.shape[1])
    if not min(len(samples), len(references), len(directions)):
        raise ValueError(
            f"{len(samples)} samples, {len(references)} references and {len(directions)} directions: use at least one of each"
        )
    for vectors in (samples, references):
        check_finite(vectors)
    length = np.linalg.norm(directions.astype(np.float64), axis=1)
    if not (length > 0).all():
        raise ValueError("a direction of length 0 points nowhere: leave it out")
    unit = directions.T / length
    x, y = (np.sort(vectors.astype(np.float64) @ unit, axis=0) for vectors in (samples, references))
    # Between two of these shares, in units of 1/(n m), neither quantile function jumps.
    n, m = len(x), len(y)
    ends = np.union1d(np.arange(1, n + 1) * m, np.arange(1, m + 1) * n)
    apart = np.abs(x[(ends - 1) // m] - y[(ends - 1) // n])
    return float(np.mean(np.diff(ends, prepend=0) / (n * m) @ apart**order) ** (1 / order))


def half_circle(count: int) -> Float64[np.ndarray, "count 2"]:
    """Directions in the plane, evenly spread over half a circle; the other half would repeat them."""
    angle = np.pi * np.arange(count) / count
    return np.stack([np.cos(angle), np.sin(angle)], axis=1)
