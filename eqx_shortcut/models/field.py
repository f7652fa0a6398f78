"""From a network of one example to a field of a batch."""

from typing import Any

import equinox as eqx
import jax
from jaxtyping import Array, Float, PRNGKeyArray

from ..types import Cond


class NetworkField(eqx.Module):
    """The field `vmap(network)(x, t, d, cond)`; with a key, each row gets its own dropout mask."""

    network: Any
    key: PRNGKeyArray | None = None

    def __call__(
        self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"], d: Float[Array, " batch"], cond: Cond
    ) -> Float[Array, "batch *shape"]:
        if self.key is None:
            return jax.vmap(self.network)(x, t, d, cond)
        keys = jax.random.split(self.key, x.shape[0])
        return jax.vmap(lambda x, t, d, c, k: self.network(x, t, d, c, key=k))(x, t, d, cond, keys)
