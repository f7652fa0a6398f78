"""The Frechet distance of one-step samples to the data as a loss, by moments that stream (FD-Loss): post-training.

What trains must not judge: a distance in features that a network was trained in says nothing of its samples.
"""

import functools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..types import Batch, Field, Loss, Number
from ._sets import Features, features_of_both


class Stream(eqx.Module):
    """Mean and mean of products of vectors so far, later ones weighing more."""

    count: Number
    """Sum of the weights, the last batch having 1."""
    mean: Float[Array, " f"]
    products: Float[Array, "f f"]

    @classmethod
    def of(cls, size: int) -> "Stream":
        """Of nothing yet."""
        return cls(jnp.zeros(()), jnp.zeros(size), jnp.zeros((size, size)))

    def updated(self, vectors: Float[Array, "n f"], decay: float) -> "Stream":
        """With another batch; earlier ones weigh `decay` times what they did, and the first one all."""
        count = decay * self.count + 1
        share = (1 / count).astype(vectors.dtype)
        products = _product(vectors.T, vectors) / vectors.shape[0]
        mean = self.mean + share * (jnp.mean(vectors, axis=0) - self.mean)
        return Stream(count, mean, self.products + share * (products - self.products))

    @property
    def covariance(self) -> Float[Array, "f f"]:
        """`E x x' - E x E x'`."""
        return self.products - jnp.outer(self.mean, self.mean)


class Streams(eqx.Module):
    """Moments of samples and of data in one space."""

    samples: Stream
    data: Stream


Memory = list[Streams]
"""One for each space of the features."""


def frechet(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    memory: Memory,
    features: Features | None = None,
    decay: float = 0.999,
    eps: float = 0.01,
) -> tuple[Loss, Memory]:
    """`sum_k FD_k / sg(FD_k + eps)` over the spaces of `features`, and the `memory` with this batch in it.

    `FD` is `frechet_distance` between the moments of one-step samples, where earlier batches weigh `decay` times less each
    step and pass no gradient, and those of all data so far. Metrics: `frechet`, the sum of the distances. Raises ValueError
    where the features are of another size than the memory's. FD-Loss (2026).
    """
    phis, targets = features_of_both(field, batch, key, groups=1, copies=1, features=features)
    new = []
    for streams, phi, data in zip(memory, phis, targets, strict=True):
        if (size := streams.data.mean.size) != phi.shape[1]:
            raise ValueError(f"features of {phi.shape[1]} numbers for moments of {size}: give the memory of these features")
        new.append(Streams(streams.samples.updated(phi, decay), streams.data.updated(data, 1.0)))
    distances = jnp.stack([frechet_distance(streams.samples, streams.data) for streams in new])
    # Between equal moments rounding leaves less than 0, whose gradient would change its sign.
    loss = jnp.sum(distances / jax.lax.stop_gradient(jnp.maximum(distances, 0) + eps))
    return (loss, {"loss": loss, "frechet": jnp.sum(distances)}), jax.lax.stop_gradient(new)


def frechet_distance(samples: Stream, data: Stream) -> Number:
    """`|a - b|^2 + tr(A + B - 2 (A^(1/2) B A^(1/2))^(1/2))` of the means `a`, `b` and covariances, differentiable in the first.

    Directions of less than 1e-6 of the largest variance, which rounding decides, pass no gradient: that of singular covariances
    would be infinite.
    """
    # Singular values of a product of roots: eigenvalues of `A^(1/2) B A^(1/2)`, their squares, have half of the digits.
    root, own = (_root(jax.lax.stop_gradient(stream.covariance)) for stream in (data, samples))
    vectors, sizes, _ = jnp.linalg.svd(_product(root.T, own))
    along = _product(root, vectors)
    squares = jnp.sum(along * _product(samples.covariance, along), axis=0)
    kept = sizes > 1e-6 * jnp.max(sizes)
    slopes = (squares - jax.lax.stop_gradient(squares)) / (2 * jnp.where(kept, sizes, 1))
    crossed = jnp.sum(sizes + jnp.where(kept, slopes, 0))
    shift = jnp.sum((samples.mean - data.mean) ** 2)
    return shift + jnp.trace(samples.covariance) + jnp.trace(data.covariance) - 2 * crossed


def _root(covariance: Float[Array, "f f"]) -> Float[Array, "f f"]:
    """A root `R` of it, `R R' = covariance`."""
    values, vectors = jnp.linalg.eigh(covariance)
    return vectors * jnp.sqrt(jnp.maximum(values, 0))[None]


_product = functools.partial(jnp.matmul, precision="highest")
