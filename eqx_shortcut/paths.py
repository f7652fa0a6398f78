"""Paths between noise and data: the point at time `t`, and its velocity."""

from jaxtyping import Array, Float

from .rows import rows


def linear(
    noise: Float[Array, "batch *shape"], x: Float[Array, "batch *shape"], t: Float[Array, " batch"], *, floor: float = 1e-5
) -> tuple[Float[Array, "batch *shape"], Float[Array, "batch *shape"]]:
    """Point `(1 - (1 - floor) t) noise + t x` and velocity `x - (1 - floor) noise` of the straight line to the data.

    `floor` is the share of noise left at `t = 1`: 1e-5 in Frans et al. (2024), 0 in the MeanFlow family.
    """
    s = rows(t, x)
    return (1 - (1 - floor) * s) * noise + s * x, x - (1 - floor) * noise
