"""Weights of a run as a safetensors file, for other frameworks, and a run from such a file.

python experiments/weights.py export runs/digits/shortcut digits.safetensors
python experiments/weights.py import digits.safetensors runs/digits/copy

Tensors have the names of kvfrans/shortcut-models; dense kernels are [in, out], so PyTorch's Linear takes the transpose.
"""

import dataclasses
import pathlib
import sys
from typing import Annotated

import tyro

from eqx_shortcut.optimizer import AdamW
from opening import Weights
from places import Place


@dataclasses.dataclass(frozen=True)
class Export:
    """Write the weights of a run to a file."""

    run: Annotated[Place, tyro.conf.Positional]
    """Run folder."""
    file: Annotated[pathlib.Path, tyro.conf.Positional]
    """File to write."""
    weights: Weights = "ema"
    """The average of the weights, the last ones, or by a number the average of that relative width (see --averages)."""
    step: int | None = None
    """Training step of the checkpoint; by default the newest."""


@dataclasses.dataclass(frozen=True)
class Import:
    """Make a run from a file: both sets of weights are the file's, and the optimizer starts afresh."""

    file: Annotated[pathlib.Path, tyro.conf.Positional]
    """File that `export` wrote."""
    run: Annotated[Place, tyro.conf.Positional]
    """Run folder to make."""
    optimizer: AdamW = dataclasses.field(default_factory=AdamW)
    """How training will go on."""
    seed: int = 0
    """Seed of every draw when training goes on."""


Command = Annotated[Export, tyro.conf.subcommand("export")] | Annotated[Import, tyro.conf.subcommand("import")]


def main(command: Export | Import) -> None:
    """Does what is asked and says what it did."""
    export_weights(command) if isinstance(command, Export) else import_weights(command)


def export_weights(command: Export) -> None:
    """Writes the file."""
    import eqx_shortcut
    from eqx_shortcut import safetensors

    model = eqx_shortcut.load(command.run, weights=command.weights, step=command.step)
    metadata = {"objective": model.objective, "step": model.step, "weights": command.weights}
    safetensors.save(command.file, model.network, metadata)
    print(f"{command.file}: weights {command.weights} of {command.run} after step {model.step}")


def import_weights(command: Import) -> None:
    """Makes the run folder."""
    import equinox as eqx
    import jax
    import jax.numpy as jnp

    from eqx_shortcut import safetensors, settings
    from eqx_shortcut.objectives import Networks, Objective
    from eqx_shortcut.train import TrainState
    from import_reference import check_free, make_run

    check_free(command.run)
    network, metadata = safetensors.load(command.file)
    objective, step = settings.parse(metadata.get("objective")), metadata.get("step")
    if not (isinstance(objective, Objective) and isinstance(step, int)):
        raise ValueError(f"{command.file} does not tell objective and step: export it with this command")
    key, zero = jax.random.key(command.seed), jnp.zeros((), jnp.int32)
    networks = Networks(network, network, extra=objective.extra(jax.random.fold_in(key, 2)))
    opt_state = command.optimizer.build(1).init(eqx.filter(networks.trained, eqx.is_inexact_array))
    state = TrainState(jnp.asarray(step, jnp.int32), key, networks, opt_state, zero, zero)
    make_run(command.run, state, network.config, network.shape, network.classes, objective, command.optimizer)
    print(f"{command.run}: weights of {command.file} after step {step}")
    print(f"sample from it: python experiments/sample.py {command.run}")


if __name__ == "__main__":
    from common import quieten
    from eqx_shortcut.checkpoint import CheckpointError

    try:
        command = tyro.cli(Command, description=__doc__, config=(tyro.conf.CascadeSubcommandArgs,))
        quieten()
        main(command)
    except (ValueError, OSError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
