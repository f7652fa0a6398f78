"""What a row's error counts in a loss."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def adaptive(
    error: Float[Array, " batch"], *, power: float = 1.0, eps: float | Float[Array, " batch"] = 0.01
) -> Float[Array, " batch"]:
    """`1 / stop_gradient(error + eps)^power`: with `power` 1 every row pulls alike, with 0 each as hard as it errs.

    Geng et al. (2025). It biases the mean wherever an error is not symmetric about the exact value.
    """
    return jax.lax.stop_gradient((error + eps) ** -power)


def learned(error: Float[Array, " batch"], log_variance: Float[Array, " batch"]) -> Float[Array, " batch"]:
    """`exp(-w) error + w`, least at `w = log error`, where its gradient is that of `log error` (Kendall et al. 2018)."""
    return jnp.exp(-log_variance) * error + log_variance
