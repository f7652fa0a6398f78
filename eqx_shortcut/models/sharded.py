"""Weights that are split over devices, made whole where they are used."""

from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, PyTree


def is_split() -> bool:
    """Whether the mesh in use (`jax.set_mesh`) splits weights over its axis `fsdp`."""
    return _size("fsdp") > 1


def keeps(weights: PyTree[Array]) -> Callable[..., bool]:
    """A policy of `jax.checkpoint`: everything is kept for the backward pass but gathered weights, which are gathered again.

    `weights` are those of all blocks, stacked. Their casts are not kept either: the partitioner would keep a cast laid out as
    what is made of it, whole on each device.
    """
    shapes = {leaf.shape[1:] for leaf in jax.tree.leaves(weights)}

    def policy(primitive: Any, *given: Any, **_: Any) -> bool:
        cast = primitive.name == "convert_element_type" and given[0].shape in shapes
        return not cast and primitive.name != "sharding_constraint"

    return policy


def gathered(kernel: Float[Array, "*axes"], split: int | None) -> Float[Array, "*axes"]:
    """A kernel whole on each device of the mesh in use, but for its axis `split`, divided over the mesh's axis `tensor`.

    Without a mesh that splits weights, the kernel itself. Said where it is used: left to choose, the partitioner moves
    activations instead, which are larger. Cast before: what is sent is the compute dtype.
    """
    tensor = _size("tensor") > 1
    if not (is_split() or tensor):
        return kernel
    axes = ("tensor" if tensor and axis == split else None for axis in range(kernel.ndim))
    return jax.lax.with_sharding_constraint(kernel, PartitionSpec(*axes))


def _size(axis: str) -> int:
    return jax.sharding.get_abstract_mesh().shape.get(axis, 1)
