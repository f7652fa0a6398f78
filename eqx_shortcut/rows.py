"""Per-example algebra: broadcasting a scalar a row, and splitting a batch without moving rows between devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PyTree, Shaped

from .types import Numbers, Points

BATCH = ("data", "fsdp")
"""The axes of a mesh whose devices see different rows of a batch."""


def expand(t: Numbers, like: Points) -> Float[Array, "batch *ones"]:
    """`t` with unit axes appended, in the dtype of `like`, so that `expand(t, x) * x` scales each example by its own `t`."""
    return t.astype(like.dtype).reshape(t.shape + (1,) * (like.ndim - 1))


def split_rows(tree: PyTree, every: int) -> tuple[PyTree, PyTree]:
    """Rows `0, every, 2 every, ...` of each leaf, and the others in order.

    Strided and not sliced: on a batch sharded over devices each device then splits its own rows and nothing is sent.
    Raises ValueError if `every` does not divide the rows.
    """
    folded = _folded(tree, every, "every")
    return jax.tree.map(lambda a: a[:, 0], folded), jax.tree.map(lambda a: a[:, 1:].reshape(-1, *a.shape[2:]), folded)


def merge_rows(first: PyTree, rest: PyTree, every: int) -> PyTree:
    """The inverse of `split_rows`: `merge_rows(*split_rows(tree, every), every) == tree`."""

    def merge(a, b):
        folded = b.reshape(a.shape[0], every - 1, *a.shape[1:])
        return jnp.concatenate([a[:, None], folded], axis=1).reshape(-1, *a.shape[1:])

    return jax.tree.map(merge, first, rest)


def split_microbatches(tree: PyTree, count: int) -> PyTree:
    """Each leaf as `count` parts on a new leading axis: part `j` is rows `j, j + count, j + 2 count, ...`.

    Strided as in `split_rows`: each part has rows of every device. Raises ValueError if `count` does not divide the rows.
    """
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1), _folded(tree, count, "microbatches"))


def _folded(tree, every, name):
    def fold(a):
        check_divides(a.shape[0], every, name)
        return a.reshape(a.shape[0] // every, every, *a.shape[1:])

    return jax.tree.map(fold, tree)


def merge_microbatches(parts: PyTree) -> PyTree:
    """The inverse of `split_microbatches`."""
    return jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(a.shape[0] * a.shape[1], *a.shape[2:]), parts)


def where_rows(mask: Shaped[Array, " batch"], yes: PyTree, no: PyTree) -> PyTree:
    """Row `i` of `yes` where `mask[i]`, else row `i` of `no`."""

    def select(a, b):
        return jnp.where(mask.reshape(mask.shape + (1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(select, yes, no)


def interleaved(values: Shaped[np.ndarray, " batch"], groups: int) -> Shaped[np.ndarray, " batch"]:
    """`values` dealt like cards over `groups` equal parts, concatenated: value `i` goes to part `i % groups`.

    Each part, and so each device of a batch sharded over devices, gets its share of what stands first in `values`.
    """
    return values.reshape(-1, groups).T.reshape(-1)


def parts(n: int, groups: int) -> int:
    """The least multiple of `groups` such that no part of `n` rows lies on two devices of the mesh in use (`jax.set_mesh`).

    It is `groups` without a mesh, or where the rows do not divide so.
    """
    whole = math.lcm(groups, shares())
    return groups if n % whole else whole


def shares() -> int:
    """How many shares of a batch the devices of the mesh in use (`jax.set_mesh`) see; 1 without a mesh."""
    sizes = jax.sharding.get_abstract_mesh().shape
    return math.prod(sizes.get(axis, 1) for axis in BATCH)


def check_divides(batch: int, every: int, name: str = "every", *, shares: int = 1) -> None:
    """Raise ValueError, with the nearest batches and divisors that work, unless `every` divides `batch`.

    What works leaves `shares` rows or more of `batch / every`; `name` is what the sentence calls `every`.
    """
    if every < 1:
        raise ValueError(f"{name}={every} divides no batch: use 1 or more")
    if batch % every == 0:
        return
    below = batch // every * every
    batches = dict.fromkeys(str(max(n, shares * every)) for n in (below, below + every))
    divisors = [k for k in range(2, batch // shares + 1) if batch % k == 0]
    near = [str(k) for part in ([k for k in divisors if k < every][-1:], [k for k in divisors if k > every][:1]) for k in part]
    other = f", or {name}={' or '.join(near)}" if near else ""
    raise ValueError(f"batch {batch} is not a multiple of {name}={every}: use a batch of {' or '.join(batches)}{other}")


def check_share(batch: int, every: int, *, shares: int = 1) -> None:
    """Raise ValueError, with the remedy, unless one row in `every` can be set apart, `shares` or more, and others are left."""
    if every < 2:
        raise ValueError(f"bootstrap_every={every} leaves no row for flow matching: use 2 or more")
    check_divides(batch, every, "bootstrap_every", shares=shares)


def check_groups(batch: int, groups: int) -> None:
    """Raise ValueError, with the remedy, unless a batch is `groups` equal sets of two rows or more."""
    check_divides(batch, groups, "groups")
    if batch < 2 * groups:
        raise ValueError(
            f"groups={groups} of a batch of {batch} are sets of one row, which tell nothing: use a batch of {2 * groups} or "
            "more"
        )
