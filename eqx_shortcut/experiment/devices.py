"""How the devices of a run share its work: the mesh that is asked for, or one that its state fits on."""

import math
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .. import sharding
from ..data import Images, Rows
from ..models import DiTConfig
from ..train import TrainState
from .config import Config
from .initial import fresh

SHARE = 0.5
"""Share of a device's memory that a state may take; the rest is for activations and gradients."""


def chosen_mesh(config: Config) -> jax.sharding.Mesh:
    """The mesh of a run; where `fsdp` is not said, 1, or as many devices as a host has if the state does not fit on one.

    Raises ValueError unless the devices divide the batch.
    """
    asked = config.mesh
    fsdp = asked.fsdp or (1 if fits(config, asked.tensor) else jax.local_device_count() // asked.tensor)
    mesh = sharding.make_mesh(data=asked.data, fsdp=max(1, fsdp), tensor=asked.tensor)
    sharding.check_batch(config.batch, mesh, config.accumulate)
    return mesh


def fits(config: Config, tensor: int) -> bool:
    """Whether each device has room for a whole state, divided over `tensor` devices at most; True if it does not say."""
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    if memory is None or not isinstance(config.network, DiTConfig):  # the rules of layout know no other network's arrays
        return True
    # Image size and classes hardly matter for the number of parameters.
    side = 4 * config.network.patch
    images = Images(np.zeros((1, side, side, 4), np.uint8), np.zeros(1, np.int32), 1000)
    state = abstract_state(config, images)
    return sum(size_of(leaf) for leaf in shapes(state)) / tensor <= SHARE * memory


def in_words(mesh: jax.sharding.Mesh) -> str:
    """The mesh in words: "8 x TPU v4 as data 4 x fsdp 2"."""
    count, kind = mesh.devices.size, mesh.devices.flat[0].device_kind
    if count == 1:
        return f"1 x {kind}"
    sizes = " x ".join(f"{name} {size}" for name, size in mesh.shape.items() if size > 1)
    return f"{count} x {kind} as {sizes}"


def abstract_state(config: Config, rows: Rows) -> TrainState:
    """Shapes and types of the training state of a network for these rows."""
    return eqx.filter_eval_shape(lambda: fresh(config, rows))


def laid_out(state: TrainState, mesh: jax.sharding.Mesh) -> TrainState:
    """The shapes of a state with their shardings on the mesh."""
    arrays, static = eqx.partition(state, is_shape)
    places = sharding.layout(arrays, mesh)
    placed = jax.tree.map(lambda a, place: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), arrays, places)
    return eqx.combine(placed, static)


def bytes_a_device(state: TrainState) -> dict[str, int]:
    """Bytes on one device of each part of a laid-out state."""
    networks = state.networks
    parts = {"weights": networks.trained, "average": networks.ema, "moments": state.opt_state, "teacher": networks.teacher}
    parts["weak teacher"] = networks.weak
    parts["more averages"] = state.averages or None
    return {name: sum(size_of(leaf) for leaf in shapes(part)) for name, part in parts.items() if part is not None}


def shapes(tree: Any) -> list[jax.ShapeDtypeStruct]:
    """The arrays of a tree of shapes."""
    return [leaf for leaf in jax.tree.leaves(tree) if is_shape(leaf)]


def is_shape(leaf: Any) -> bool:
    """Whether a leaf stands for an array."""
    return isinstance(leaf, jax.ShapeDtypeStruct)


def size_of(leaf: jax.ShapeDtypeStruct) -> int:
    """Bytes of an array on one device."""
    shape = leaf.shape if leaf.sharding is None else leaf.sharding.shard_shape(leaf.shape)
    return math.prod(shape) * leaf.dtype.itemsize
