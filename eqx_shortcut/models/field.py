"""From a network of one example to a field of a batch."""

import contextlib
import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
from jaxtyping import PRNGKeyArray

from ..rows import merge_microbatches, split_microbatches
from ..types import Cond, Numbers, Points


class NetworkField(eqx.Module):
    """The field `vmap(network)(x, t, d, cond)`; with a key, each row gets its own dropout mask.

    The rows are taken in `microbatches` parts, one after another. The gradient is the same, and its activations take that
    many times less memory, for the time of one more forward pass: those of each part are computed again.
    """

    network: Any
    key: PRNGKeyArray | None = None
    microbatches: int = eqx.field(static=True, default=1)
    exact: bool = eqx.field(static=True, default=False)

    @property
    def precise(self) -> "NetworkField":
        """The field of the same network computing in float32, products included, under the same masks (see steps.precise)."""
        return dataclasses.replace(self, network=in_float32(self.network), exact=True)

    @property
    def velocity(self) -> "NetworkField":
        """The field of the network's head for the velocity, under the same masks (see DiT.velocity)."""
        return dataclasses.replace(self, network=self.network.velocity)

    def __call__(self, x: Points, t: Numbers, d: Numbers, cond: Cond) -> Points:
        keys = None if self.key is None else jax.random.split(self.key, x.shape[0])
        rows = (x, t, d, cond, keys)

        def answer(rows):
            return jax.vmap(lambda x, t, d, c, k: self.network(x, t, d, c, key=k))(*rows)

        # On GPU and TPU products of float32 are rounded to 11 or 8 bits unless told otherwise.
        with jax.default_matmul_precision("highest") if self.exact else contextlib.nullcontext():
            if self.microbatches == 1:  # also for a number of rows that is known later, as in an exported program
                return answer(rows)
            # A call on part of a batch may have fewer rows than microbatches.
            microbatches = math.gcd(self.microbatches, x.shape[0])
            return merge_microbatches(jax.lax.map(jax.checkpoint(answer), split_microbatches(rows, microbatches)))


def in_float32(network: Any) -> Any:
    """The network computing in float32: one that computes in less has this as a property of that name (see DiT)."""
    return getattr(network, "in_float32", network)
