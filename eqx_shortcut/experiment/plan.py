"""The devices of a run and what it costs on them, computed from shapes alone: the mesh it is given, the plan of `--dry-run`."""

import json
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import data, settings, sharding
from ..data import Images, Rows, Source, blank
from ..flops import flops
from ..models import DiTConfig, check_network
from ..train import TrainState
from .checks import check
from .config import Config
from .initial import fresh
from .run import Data, Run


def plan(config: Config) -> None:
    """Prints settings, parameters, tokens, batch a device, work of a step and memory a device of the run."""
    mesh = chosen_mesh(config)
    check(config)
    rows, seen = example(config.data)
    check_network(config.network, config.objective, data.example(rows, labelled=not config.unconditional), rows.classes)
    run = Run("", config, Data(rows, rows, mirror=True), mesh)
    state = laid_out(abstract_state(config, rows), mesh)
    with jax.set_mesh(mesh):
        traced = trace(run, state)
        memory: Any = traced.lower().compile().memory_analysis()
    # Arguments, outputs in buffers of their own, and temporaries.
    size = memory.argument_size_in_bytes + memory.output_size_in_bytes - memory.alias_size_in_bytes + memory.temp_size_in_bytes
    parts = ", ".join(f"{name} {held / 2**30:.2f}" for name, held in bytes_a_device(state).items())
    groups = mesh.shape["data"] * mesh.shape["fsdp"]
    print(json.dumps(settings.dump(config), indent=1))
    print(f"data               {seen}: {' x '.join(map(str, rows.shape))}, {rows.classes} classes")
    print(f"parameters         {parameter_count(state):,}")
    if isinstance(config.network, DiTConfig):
        height, width = (side // config.network.patch for side in rows.shape[:2])
        print(f"tokens             {height * width} an example ({height} x {width} patches)")
    microbatches = f" in {config.accumulate} microbatches" * (config.accumulate > 1)
    print(f"batch a device     {config.batch // groups}{microbatches} ({config.batch} over {in_words(mesh)})")
    print(f"state a device     {parts} GiB")
    print(f"work a step        {flops(traced.jaxpr) / 1e9:,.1f} GFLOP in products and convolutions, over all devices")
    print(f"memory a device    {size / 2**30:.2f} GiB as compiled for {jax.default_backend()}")


def example(source: Source) -> tuple[Rows, str]:
    """One example of the kind that the run would train on, and how its size is known."""
    rows = blank(source)
    return rows, "; ".join(getattr(rows, "notes", ())) or "as read"


def trace(run: Run, state: TrainState) -> Any:
    """The training step, traced on shapes laid out as in training."""
    update, to_batch, batch = run.update(), run.prepare, run.config.batch
    split = sharding.batch_sharding(run.mesh)
    read = run.data.rows.rows(np.zeros(1, np.int64))
    raw = jax.tree.map(lambda a: jax.ShapeDtypeStruct((batch, *a.shape[1:]), a.dtype, sharding=split), read)
    arrays, static = eqx.partition(state, is_shape)

    def step(raw, arrays):
        new, metrics = update((raw, to_batch), eqx.combine(arrays, static))
        return eqx.filter(new, eqx.is_array), metrics

    return jax.jit(step, donate_argnums=1).trace(raw, arrays)


def parameter_count(state: TrainState) -> int:
    """Numbers in the network."""
    return sum(math.prod(leaf.shape) for leaf in shapes(state.networks.online) if jnp.issubdtype(leaf.dtype, jnp.inexact))


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
