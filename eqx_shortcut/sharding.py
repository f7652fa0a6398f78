"""Where arrays live: meshes of devices, and the layout of batches and states on them."""

from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jaxtyping import PyTree


def data_mesh(devices: Sequence[Any] | None = None) -> jax.sharding.Mesh:
    """One axis, `data`, over all devices (or those given)."""
    devices = jax.devices() if devices is None else devices
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh: jax.sharding.Mesh) -> NamedSharding:
    """Leading axis split over the axis `data`."""
    return NamedSharding(mesh, PartitionSpec("data"))


def replicate(tree: PyTree, mesh: jax.sharding.Mesh) -> PyTree:
    """Every array of the tree whole on every device of the mesh; usable inside jit, where it is a constraint."""
    return eqx.filter_shard(tree, NamedSharding(mesh, PartitionSpec()))


def check_batch(batch: int, mesh: jax.sharding.Mesh) -> None:
    """Raise ValueError, with the nearest batches that do, unless the devices divide the batch."""
    n = mesh.shape["data"]
    if batch % n:
        below = batch // n * n
        choices = f"{below} or {below + n}" if below else f"{n}"
        raise ValueError(f"batch {batch} does not divide over {n} devices: use {choices}")
