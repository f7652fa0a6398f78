"""Weights of a run as a safetensors file, for other frameworks, and a run from such a file.

eqx-shortcut weights export runs/digits/shortcut digits.safetensors
eqx-shortcut weights import digits.safetensors runs/digits/copy

Tensors have the names of kvfrans/shortcut-models; dense kernels are [in, out], so PyTorch's Linear takes the transpose.
"""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from .. import ranges
from ..cli import Place
from ..optimizer import AdamW
from ..ranges import Natural
from ._opening import Weights


@dataclasses.dataclass(frozen=True)
class Export(ranges.Checked):
    """Write the weights of a run to a file."""

    run: Annotated[Place, tyro.conf.Positional]
    """Run folder."""
    file: Annotated[pathlib.Path, tyro.conf.Positional]
    """File to write."""
    weights: Weights = "ema"
    """The average of the weights, the last ones, or by a number the average of that relative width (see --averages)."""
    step: Natural | None = None
    """Training step of the checkpoint; by default the newest (0 or more)."""


@dataclasses.dataclass(frozen=True)
class Import(ranges.Checked):
    """Make a run from a file: both sets of weights are the file's, and the optimizer starts afresh."""

    file: Annotated[pathlib.Path, tyro.conf.Positional]
    """File that `export` wrote."""
    run: Annotated[Place, tyro.conf.Positional]
    """Run folder to make."""
    optimizer: AdamW = dataclasses.field(default_factory=AdamW)
    """How training will go on."""
    seed: Natural = 0
    """Seed of every draw when training goes on (0 or more)."""


Config = Annotated[Export, tyro.conf.subcommand("export")] | Annotated[Import, tyro.conf.subcommand("import")]


def main(config: Export | Import) -> None:
    """Exports or imports, and prints what it did."""
    export_weights(config) if isinstance(config, Export) else import_weights(config)


def export_weights(config: Export) -> None:
    """Writes the file."""
    from ..reference import safetensors
    from ..trained import load

    model = load(config.run, weights=config.weights, step=config.step)
    metadata = {"objective": model.objective, "step": model.step, "weights": config.weights}
    safetensors.save(config.file, model.network, metadata)
    print(f"{config.file}: weights {config.weights} of {config.run} after step {model.step}")


def import_weights(config: Import) -> None:
    """Makes the run folder."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from .. import rng, settings
    from ..objectives import Networks, Objective
    from ..reference import safetensors
    from ..train import TrainState
    from .reference import check_free, make_run

    check_free(config.run)
    network, metadata = safetensors.load(config.file)
    objective, step = settings.parse(metadata.get("objective")), metadata.get("step")
    if not (isinstance(objective, Objective) and isinstance(step, int)):
        raise ValueError(f"{config.file} does not tell objective and step: export it with this command")
    key, zero = rng.key(config.seed), jnp.zeros((), jnp.int32)
    networks = Networks(network, network, extra=objective.extra(jax.random.fold_in(key, 2)))
    opt_state = config.optimizer.build(1).init(eqx.filter(networks.trained, eqx.is_inexact_array))
    state = TrainState(jnp.asarray(step, jnp.int32), key, networks, opt_state, zero, zero)
    make_run(config.run, state, network.config, network.shape, network.classes, objective, config.optimizer)
    print(f"{config.run}: weights of {config.file} after step {step}")
    print(f"sample from it: eqx-shortcut sample {config.run}")
