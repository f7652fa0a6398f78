"""The cost of a run for `--dry-run`: settings, parameters, FLOPs and memory, computed from shapes alone."""

import json
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import data, settings, sharding
from ..data import Rows, Source, blank
from ..flops import flops
from ..models import DiTConfig, check_network
from ..train import TrainState
from .checks import check
from .config import Config
from .devices import abstract_state, bytes_a_device, chosen_mesh, in_words, is_shape, laid_out, shapes
from .examples import Data
from .run import Run


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
    return rows, "; ".join(getattr(rows, "notes", ())) or "as the data have them"


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
