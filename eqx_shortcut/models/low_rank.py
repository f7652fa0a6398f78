"""Corrections of low rank to dense layers that are kept (Hu et al. 2022, LoRA)."""

import math
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .layers import Dense

Tree = TypeVar("Tree")


class LowRank(eqx.Module):
    """Layers, stacked, of kernels `kept + left @ right`: no gradient reaches `kept`, and `right` is 0 at first."""

    kept: Dense
    left: Float[Array, "depth inputs rank"]
    right: Float[Array, "depth rank *outputs"]

    def __init__(self, kept: Dense, rank: int, *, key: PRNGKeyArray):
        depth, inputs, *outputs = kept.kernel.shape
        self.kept = kept
        self.left = jax.random.normal(key, (depth, inputs, rank)) / math.sqrt(inputs)
        self.right = jnp.zeros((depth, rank, *outputs))

    @property
    def merged(self) -> Dense:
        """The same layers, dense."""
        kept = jax.tree.map(jax.lax.stop_gradient, self.kept)
        flat = self.right.reshape(*self.right.shape[:2], -1)
        correction = jnp.matmul(self.left, flat, precision="highest").reshape(kept.kernel.shape)
        return eqx.tree_at(lambda dense: dense.kernel, kept, kept.kernel + correction)


def _is(kind: type) -> Any:
    return lambda node: isinstance(node, kind)


def corrected(layers: Tree, rank: int, *, key: PRNGKeyArray) -> Tree:
    """The same stacked layers, each dense one with a correction of this rank; the same function at first."""
    nodes, structure = jax.tree.flatten(layers, is_leaf=_is(Dense))
    keys = jax.random.split(key, len(nodes))
    replaced = [LowRank(n, rank, key=k) if isinstance(n, Dense) else n for n, k in zip(nodes, keys, strict=True)]
    return jax.tree.unflatten(structure, replaced)


def merged(layers: Tree) -> Tree:
    """Layers of the same function without corrections."""
    return jax.tree.map(lambda node: node.merged if isinstance(node, LowRank) else node, layers, is_leaf=_is(LowRank))


def plain(layers: Tree) -> Tree:
    """The layers that are kept, without their corrections."""
    return jax.tree.map(lambda node: node.kept if isinstance(node, LowRank) else node, layers, is_leaf=_is(LowRank))


def kept_in(corrections: Tree, layers: Any) -> Tree:
    """The corrections, with the plain layers for those that they keep."""
    return jax.tree.map(
        lambda node, layer: eqx.tree_at(lambda n: n.kept, node, layer) if isinstance(node, LowRank) else layer,
        corrections,
        layers,
        is_leaf=_is(LowRank),
    )
