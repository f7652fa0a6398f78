"""Attention of one example: the product itself, and what may be done to queries and keys before it."""

import math
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float

from .layers import Dense, axis_angles, rms_norm

Heads = Float[Array, "heads tokens dim"]
Attention = Literal["xla", "cudnn"]


def attend(q: Heads, k: Heads, v: Heads) -> Heads:
    """`softmax(q . k) v` for each head, the softmax in float32."""
    # Heads first, so that both products are batched over leading axes: on CPU other orders take half as long again.
    logits = jnp.einsum("hqc,hkc->hqk", q, k)
    weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(v.dtype)
    return jnp.einsum("hqk,hkc->hqc", weights, v)


class QKNormed(eqx.Module):
    """Queries, keys and values by `dense`; queries and keys of each head over their root mean square, times learned scales.

    The scales, one a dimension, are 1 at first. Queries are multiplied by `sqrt(dim)` too: what attention divides by `dim` is
    then divided by the usual `sqrt(dim)`. Dehghani et al. (2023), with the norm of Zhang and Sennrich (2019).
    """

    dense: Dense
    query: Float[Array, " dim"]
    key: Float[Array, " dim"]

    def __init__(self, dense: Dense, dim: int):
        self.dense, self.query, self.key = dense, jnp.ones(dim), jnp.ones(dim)

    def __call__(self, x: Float[Array, "tokens size"], dtype: DTypeLike) -> Float[Array, "tokens 3 heads dim"]:
        return jnp.stack(self._normed(*jnp.unstack(self.dense(x, dtype), axis=1)), axis=1)

    def apart(self, x: Float[Array, "tokens size"], dtype: DTypeLike) -> list[Float[Array, "tokens heads dim"]]:
        """Queries, keys and values, of a product each."""
        return self._normed(*self.dense.apart(x, dtype))

    def _normed(self, q, k, v):
        query = (math.sqrt(q.shape[-1]) * self.query).astype(q.dtype)[None, None]
        return [rms_norm(q) * query, rms_norm(k) * self.key.astype(q.dtype)[None, None], v]


def rotary_table(dim: int, rows: int, columns: int) -> Float[np.ndarray, "2 tokens half"]:
    """Cosines and sines of the angles by which `rotate` turns each pair of dimensions of a token, row by row of patches.

    Half of the `dim / 2` pairs turn with the column, half with the row, at rates that fall geometrically from 1 to 1e-4 rad a
    patch: rotary positions (Su et al. 2021) along each axis (Lu et al. 2024).
    """
    angles = np.concatenate(axis_angles(dim // 4, rows, columns), axis=1)
    return np.stack([np.cos(angles), np.sin(angles)]).astype(np.float32)


def rotate(x: Heads, table: Float[np.ndarray, "2 tokens half"]) -> Heads:
    """Each pair `(x_i, x_{i + dim/2})` turned by its angle, in float32, so that `q . k` depends on relative positions alone."""
    cos, sin = table[:, None]
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)
