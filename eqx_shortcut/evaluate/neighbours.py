"""What nearest neighbours say of two sets of vectors."""

import numpy as np
from jaxtyping import Float, Shaped

from .features import pixels


def nearest_distances(
    queries: Shaped[np.ndarray, "queries *shape"], references: Shaped[np.ndarray, "references *shape"]
) -> Float[np.ndarray, " queries"]:
    """Euclidean distance of each query to its nearest reference, over all elements."""
    from scipy.spatial import KDTree

    return KDTree(pixels(references)).query(pixels(queries), workers=-1)[0]
