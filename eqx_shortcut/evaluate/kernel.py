"""Maximum mean discrepancies between two sets of vectors: KID where they are Inception's features, CMMD where CLIP's."""

import numpy as np
from jaxtyping import Float, Float64

from .moments import check_features, check_finite
from .pairwise import blocks, centre_of


def kernel_distance(
    samples: Float[np.ndarray, "samples features"],
    references: Float[np.ndarray, "references _"],
    rng: np.random.Generator | np.random.RandomState,
    *,
    subsets: int = 100,
    size: int = 1000,
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the unbiased squared discrepancy under `(x y / features + 1)^3`.

    Binkowski et al. (2018), where the features are Inception's (KID). `rng` draws `size` rows without replacement from the
    samples, then from the references, for one subset after another; `numpy.random.RandomState(2020)` draws what torch-fidelity
    does. Raises ValueError if the features differ, if a value is not finite, or if a set has fewer rows than a subset.
    """
    check_features(samples.shape[1], references.shape[1])
    if subsets < 1 or not 2 <= size <= min(len(samples), len(references)):
        raise ValueError(
            f"{subsets} subsets of {size} cannot be drawn from {len(samples)} samples and {len(references)} references: "
            "use 1 subset or more, of 2 vectors up to the smaller set"
        )
    for vectors in (samples, references):
        check_finite(vectors)
    drawn = (
        [vectors[rng.choice(len(vectors), size, replace=False)].astype(np.float64) for vectors in (samples, references)]
        for _ in range(subsets)
    )
    discrepancies = [_unbiased(x, y) for x, y in drawn]
    return float(np.mean(discrepancies)), float(np.std(discrepancies))


def maximum_mean_discrepancy(
    samples: Float[np.ndarray, "samples features"],
    references: Float[np.ndarray, "references _"],
    *,
    sigma: float = 10.0,
    scale: float = 1000.0,
) -> float:
    """`scale (mean k(x, x') + mean k(y, y') - 2 mean k(x, y))` with `k = exp(-|x - y|^2 / (2 sigma^2))`, over all pairs.

    Jayasumana et al. (2024), where the features are CLIP's at unit length (CMMD); a vector is paired with itself
    too (the biased form), as there. Raises ValueError if the features differ or a value is not finite.
    """
    from sklearn.metrics.pairwise import rbf_kernel

    centre = centre_of(samples, references)

    def mean(x: np.ndarray, y: np.ndarray) -> float:
        total = sum(float(rbf_kernel(rows, y - centre, gamma=1 / (2 * sigma**2)).sum()) for _, rows in blocks(x, centre))
        return total / (len(x) * len(y))

    return scale * (mean(samples, samples) + mean(references, references) - 2 * mean(samples, references))


def _unbiased(x: Float64[np.ndarray, "count features"], y: Float64[np.ndarray, "count features"]) -> float:
    """Squared discrepancy that leaves out pairs of a vector with itself: 0 in the mean for sets of one distribution."""
    from sklearn.metrics.pairwise import polynomial_kernel

    within = sum(kernel.sum() - kernel.trace() for kernel in (polynomial_kernel(z, coef0=1) for z in (x, y)))
    return float(within / (len(x) * (len(x) - 1)) - 2 * polynomial_kernel(x, y, coef0=1).mean())
