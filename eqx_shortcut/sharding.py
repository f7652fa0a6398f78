"""Where arrays live: meshes of devices, and the layout of batches and states on them.

A mesh has three axes. Batches are split over `data` and `fsdp`; weights, averages and moments over `fsdp` (each device keeps a
share and they are gathered where they are used, block by block) and `tensor` (heads of attention and width of the MLPs).
"""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
from jax.core import Tracer
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from .rows import BATCH, shares

AXES = ("data", "fsdp", "tensor")

Rule = Callable[[tuple[int, ...], jax.sharding.Mesh], PartitionSpec]
"""From the shape of an array to its layout."""


def make_mesh(
    *, data: int | None = None, fsdp: int = 1, tensor: int = 1, devices: Sequence[Any] | None = None
) -> jax.sharding.Mesh:
    """The axes `data`, `fsdp`, `tensor` over all devices (or those given); `data` takes what the others leave.

    Devices of one host are neighbours along `tensor`, then `fsdp`: with as many of both as a host has, only `data` crosses
    hosts. Raises ValueError unless the product is the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // (fsdp * tensor) if data is None else data
    if data * fsdp * tensor != len(devices):
        raise ValueError(
            f"a mesh of data {data} x fsdp {fsdp} x tensor {tensor} is not one of {len(devices)} devices: choose numbers whose "
            "product is"
        )
    return jax.make_mesh((data, fsdp, tensor), AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Leading axis split over `data` and `fsdp`."""
    return NamedSharding(mesh, PartitionSpec(BATCH))


def replicate(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Every array of the tree whole on every device of the mesh; usable inside jit, where it is a constraint."""
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _place(leaf, everywhere) if eqx.is_array(leaf) else leaf, tree)


def sharded(tree: PyTree) -> PyTree:
    """Every array of the tree with its rows over the devices of the mesh in use (`jax.set_mesh`) that see different rows.

    Inside jit. Without a mesh, or where the devices do not divide the rows, it stays as it is.
    """
    n = shares()
    return _constrained(tree, PartitionSpec(BATCH), lambda array: n > 1 and array.ndim > 0 and array.shape[0] % n == 0)


def replicated(tree: PyTree) -> PyTree:
    """Every array of the tree whole on every device of the mesh in use (`jax.set_mesh`), so that any process can read it.

    Inside jit. Without a mesh it stays as it is.
    """
    several = math.prod(jax.sharding.get_abstract_mesh().shape.values()) > 1
    return _constrained(tree, PartitionSpec(), lambda array: several)


def _constrained(tree, spec, chosen):
    def constrain(leaf):
        return jax.lax.with_sharding_constraint(leaf, spec) if eqx.is_array(leaf) and chosen(leaf) else leaf

    return jax.tree.map(constrain, tree)


def _place(array: Any, where: NamedSharding) -> Any:
    # A constraint cannot move what is committed to other devices.
    return jax.lax.with_sharding_constraint(array, where) if isinstance(array, Tracer) else jax.device_put(array, where)


def split(*, fsdp: int | None = None, tensor: int | None = None) -> Rule:
    """The rule that splits these axes of an array over the mesh's; one that is missing or not divisible stays whole."""

    def rule(shape: tuple[int, ...], mesh: jax.sharding.Mesh) -> PartitionSpec:
        axes: list[str | None] = [None] * len(shape)
        for name, axis in (("fsdp", fsdp), ("tensor", tensor)):
            if axis is None or not -len(shape) <= axis < len(shape):
                continue
            if mesh.shape[name] > 1 and shape[axis] % mesh.shape[name] == 0:
                axes[axis] = name
        return PartitionSpec(*axes)

    return rule


RULES: tuple[tuple[str, Rule], ...] = (
    (r"blocks/qkv/(dense/)?(kept/)?kernel$", split(fsdp=1, tensor=3)),
    (r"blocks/qkv/(dense/)?(kept/)?bias$", split(tensor=2)),
    (r"blocks/up/(kept/)?kernel$", split(fsdp=1, tensor=-1)),
    (r"blocks/up/(kept/)?bias$", split(tensor=-1)),
    (r"blocks/(out|down)/(kept/)?kernel$", split(fsdp=2, tensor=1)),
    (r"blocks/.*kernel$", split(fsdp=1)),
    (r"kernel$", split(fsdp=0)),
    (r"", split()),
)
"""Layout of the diffusion transformer and of every tree that repeats its paths: pattern and rule; the first match wins.

Axis 0 of what lies in `blocks` is the depth, which is never split: each step of the scan over it would gather everything. Axes
that a kernel contracts are split by `fsdp`, so that casting and reshaping leave the layout as it is.
"""


def layout(tree: PyTree, mesh: jax.sharding.Mesh, rules: Sequence[tuple[str, Rule]] = RULES) -> PyTree:
    """The sharding of each array (or its shape) of a tree, None elsewhere. Raises ValueError if no rule matches its path."""

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        rule = next((rule for pattern, rule in rules if re.search(pattern, name)), None)
        if rule is None:
            raise ValueError(f"no rule for the layout of {name}, of shape {leaf.shape}: end the rules with one for r''")
        return NamedSharding(mesh, rule(leaf.shape, mesh))

    arrays = eqx.filter(tree, lambda leaf: eqx.is_array(leaf) or isinstance(leaf, jax.ShapeDtypeStruct))
    return jax.tree_util.tree_map_with_path(place, arrays)


def lay_out(tree: PyTree, mesh: jax.sharding.Mesh, rules: Sequence[tuple[str, Rule]] = RULES) -> PyTree:
    """The tree with each array where `layout` says; usable inside jit, where it is a constraint."""
    arrays, static = eqx.partition(tree, eqx.is_array)
    return eqx.combine(jax.tree.map(_place, arrays, layout(arrays, mesh, rules)), static)


def check_batch(batch: int, mesh: jax.sharding.Mesh, accumulate: int = 1) -> None:
    """Raise ValueError, with the nearest batches that do, unless the devices divide each of the batch's `accumulate` parts."""
    devices = math.prod(mesh.shape[axis] for axis in BATCH)
    n = devices * accumulate
    if batch % n:
        below = batch // n * n
        choices = f"{below} or {below + n}" if below else f"{n}"
        microbatches = f" in {accumulate} microbatches" * (accumulate > 1)
        raise ValueError(f"batch {batch} does not divide over {devices} devices{microbatches}: use {choices}")
