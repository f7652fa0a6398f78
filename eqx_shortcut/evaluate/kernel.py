"""Maximum mean discrepancies between two sets of vectors: KID where they are Inception's features, CMMD where CLIP's."""

from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Float64

from .moments import check_features, check_finite
from .pairwise import blocks, centre_of, squared_distances

Kernel = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""A function of two blocks of vectors: the kernel of all their pairs."""


def kernel_distance(
    samples: Float[np.ndarray, "samples features"],
    references: Float[np.ndarray, "references _"],
    rng: np.random.Generator | np.random.RandomState,
    *,
    subsets: int = 100,
    size: int = 1000,
) -> tuple[float, float]:
    """Mean and standard deviation over subsets of the unbiased squared discrepancy under `(x y / features + 1)^3`.

    Binkowski et al. (2018), where the features are Inception's (KID). `rng` draws `size` rows without
    replacement from the samples, then from the references, for one subset after another; `numpy.random.RandomState(2020)`
    draws what torch-fidelity does. Raises ValueError if the features differ, if a value is not finite, or if a set has
    fewer rows than a subset.
    """
    check_features(samples.shape[1], references.shape[1])
    if subsets < 1 or not 2 <= size <= min(len(samples), len(references)):
        raise ValueError(
            f"{subsets} subsets of {size} cannot be drawn from {len(samples)} samples and {len(references)} references: "
            "use 1 subset or more, of 2 vectors up to the smaller set"
        )
    for vectors in (samples, references):
        check_finite(vectors)
    discrepancies = [
        _unbiased(
            samples[rng.choice(len(samples), size, replace=False)],
            references[rng.choice(len(references), size, replace=False)],
        )
        for _ in range(subsets)
    ]
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
    centre = centre_of(samples, references)

    def gaussian(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return np.exp(squared_distances(x - centre, y - centre) / (-2 * sigma**2))

    within = _mean_within(gaussian, samples) + _mean_within(gaussian, references)
    return scale * (within - 2 * _mean_across(gaussian, samples, references))


def _unbiased(x: Float[np.ndarray, "count features"], y: Float[np.ndarray, "count features"]) -> float:
    """Squared discrepancy that leaves out pairs of a vector with itself: 0 in the mean for sets of one distribution."""
    n = len(x)
    within = sum(_mean_within(_cubic, z) * n - np.mean(_cubic_norms(z)) for z in (x, y)) / (n - 1)
    return float(within - 2 * _mean_across(_cubic, x, y))


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    base = x @ y.T / x.shape[1] + 1
    return base * base * base  # numpy's power of 3 takes far longer


def _cubic_norms(x: Float[np.ndarray, "count features"]) -> Float64[np.ndarray, " count"]:
    """Kernel of each vector with itself."""
    squares = np.concatenate([np.einsum("if,if->i", rows, rows) for _, rows in blocks(x)])
    return (squares / x.shape[1] + 1) ** 3


def _mean_across(kernel: Kernel, x: Float[np.ndarray, "count_x features"], y: Float[np.ndarray, "count_y features"]) -> float:
    """Mean of the kernel over all pairs of a vector of x and one of y."""
    total = sum(float(kernel(a, b).sum()) for _, a in blocks(x) for _, b in blocks(y))
    return total / (len(x) * len(y))


def _mean_within(kernel: Kernel, x: Float[np.ndarray, "count features"]) -> float:
    """Mean of the kernel, which is symmetric, over all pairs of x, those of a vector with itself included."""
    total = 0.0
    for rows, a in blocks(x):
        total += float(kernel(a, a).sum())
        total += 2 * sum(float(kernel(a, b).sum()) for _, b in blocks(x, start=rows.stop))
    return total / len(x) ** 2
