"""Keys of seeds."""

import jax
import numpy as np
from jaxtyping import PRNGKeyArray


def key(seed: int) -> PRNGKeyArray:
    """A key of its own for every integer from 0: `jax.random.key(seed)` below 2^32, with each further 32 bits folded in.

    `jax.random.key` alone knows a seed modulo 2^32, and nothing of 2^63 and above. Raises ValueError for a negative one.
    """
    if seed < 0:
        raise ValueError(f"seed {seed}: use an integer from 0")
    folded = jax.random.key(np.uint32(seed % 2**32))
    while seed := seed >> 32:
        folded = jax.random.fold_in(folded, np.uint32(seed % 2**32))
    return folded
