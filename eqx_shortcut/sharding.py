"""Where arrays live: meshes of devices, and the layout of batches and states on them."""

import math
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
from jax.core import Tracer
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
    everywhere = NamedSharding(mesh, PartitionSpec())
    return jax.tree.map(lambda leaf: _place(leaf, everywhere) if eqx.is_array(leaf) else leaf, tree)


def _place(array: Any, where: NamedSharding) -> Any:
    # A constraint cannot move what is committed to other devices.
    return jax.lax.with_sharding_constraint(array, where) if isinstance(array, Tracer) else jax.device_put(array, where)


def check_batch(batch: int, mesh: jax.sharding.Mesh) -> None:
    """Raise ValueError, with the nearest batches that do, unless the devices divide the batch."""
    n = mesh.shape["data"]
    if batch % n:
        below = batch // n * n
        choices = f"{below} or {below + n}" if below else f"{n}"
        raise ValueError(f"batch {batch} does not divide over {n} devices: use {choices}")


def fsdp_spec(shape: Sequence[int], devices: int, *, itemsize: int = 4, whole: int = 4 * 2**20) -> PartitionSpec:
    """The largest axis that `devices` divides is split over them, the last of equals; up to `whole` bytes, none is.

    The reference's rule for parameters, averages and moments. Raises ValueError if no axis of a larger array is divisible.
    """
    if math.prod(shape) * itemsize <= whole:
        return PartitionSpec()
    divisible = [axis for axis, size in enumerate(shape) if size % devices == 0]
    if not divisible:
        raise ValueError(
            f"no axis of an array of shape {tuple(shape)} is a multiple of {devices} devices: choose a width that is"
        )
    axis = max(divisible, key=lambda axis: (shape[axis], axis))
    return PartitionSpec(*("data" if i == axis else None for i in range(len(shape))))
