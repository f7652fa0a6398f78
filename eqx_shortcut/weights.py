"""What a row's error counts in a loss."""

import equinox as eqx
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


class LogVariance(eqx.Module):
    """A learned `w(t, d) = sum_jk c_jk cos(pi j t) cos(pi k d) / sqrt(1 + |c|^2)`, the `log_variance` of losses that take one.

    Its root mean square over uniform `t` and `d` is below 1 and `|w|` below `orders`, whatever the coefficients: an unbounded
    one grows without limit where a field agrees with itself, right or wrong. 0 at first. Karras et al. (2024) bound theirs
    alike, sinusoids of the noise level times a vector of norm 1; the cosines of `t` and `d` are ours.
    """

    coefficients: Float[Array, "orders orders"]

    def __init__(self, orders: int = 8):
        self.coefficients = jnp.zeros((orders, orders))

    def __call__(self, t: Float[Array, " batch"], d: Float[Array, " batch"]) -> Float[Array, " batch"]:
        frequencies = jnp.pi * jnp.arange(self.coefficients.shape[0], dtype=t.dtype)[None]
        of_t, of_d = (jnp.cos(frequencies * values[:, None]) for values in (t, d))
        weights = self.coefficients / jnp.sqrt(1 + jnp.sum(jnp.square(self.coefficients)))
        return jnp.sum((of_t @ weights.astype(t.dtype)) * of_d, axis=1)
