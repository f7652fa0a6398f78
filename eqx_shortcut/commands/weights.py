"""Writes the weights of a run for other frameworks (safetensors, torch, diffusers), and makes a run from a safetensors file.

    eqx-shortcut weights export runs/digits/shortcut digits.safetensors
    eqx-shortcut weights import digits.safetensors runs/digits/copy
    eqx-shortcut weights export runs/imagenet/flow-matching flow.pt --to torch
    eqx-shortcut weights export runs/imagenet/flow-matching FOLDER --to diffusers

Tensors have the names of kvfrans/shortcut-models; dense kernels are [in, out], so PyTorch's Linear takes the transpose. A flow
model goes to the code of SiT too, one that predicts noise to DiT's, both to diffusers' (eqx-shortcut import is the way back).
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from .. import ranges, settings
from ..cli import Place
from ..models import DiT
from ..objectives import Objective
from ..optimizer import AdamW
from ..ranges import Natural
from ._making import check_free, fresh_state, make_run
from ._opening import Weights

if TYPE_CHECKING:
    from ..trained import Trained


@dataclasses.dataclass(frozen=True)
class Export(ranges.Checked):
    """Write the weights of a run to a file."""

    run: Annotated[Place, tyro.conf.Positional]
    """Run folder."""
    file: Annotated[pathlib.Path, tyro.conf.Positional]
    """File to write; the folder of `--to diffusers`."""
    to: Literal["safetensors", "torch", "diffusers"] = "safetensors"
    """Whose code reads it: this library's, SiT's or DiT's (.pt, which needs torch, or .safetensors), or diffusers'."""
    weights: Weights = "ema"
    """ema (the average of the weights), online (the last ones), or the relative width of an average (see --averages)."""
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
    network = model.network
    if not isinstance(network, DiT):
        raise ValueError(f"{config.run} holds a {type(network).__name__}, whose tensors have no names elsewhere: keep its run")
    metadata = {"objective": model.objective, "step": model.step, "weights": config.weights}
    metadata |= {"noise_scale": model.noise_scale, "unconditional": not model.labelled}
    if config.to == "safetensors":
        safetensors.save(config.file, network.merged, metadata)
    else:
        from ..pretrained.transformer_files import write_diffusers, write_torch
        from ..pretrained.transformers import exported

        check_elsewhere(config.run, model)
        write = write_torch if config.to == "torch" else write_diffusers
        write(config.file, *exported(network, model.objective.only_step))
    print(f"{config.file}: weights {config.weights} of {config.run} after step {model.step}")


def check_elsewhere(run: Place, model: "Trained") -> None:
    """Raises ValueError for a network that is asked of another noise, or answers noise of another path, than elsewhere."""
    other = "answers noise of a path of its own" if model.objective.predicts_noise else ""
    other = other or f"begins at noise of standard deviation {model.noise_scale:g}" * (model.noise_scale != 1)
    if other:
        raise ValueError(f"{run} {other}, which the code of SiT, DiT and diffusers does not: write it with --to safetensors")


def import_weights(config: Import) -> None:
    """Makes the run folder."""
    from ..reference import safetensors

    check_free(config.run)
    network, metadata = safetensors.load(config.file)
    objective, step = settings.parse(metadata.get("objective")), metadata.get("step")
    if not (isinstance(objective, Objective) and isinstance(step, int)):
        raise ValueError(f"{config.file} does not tell objective and step: export it with this command")
    state = fresh_state(network, objective, config.optimizer, step=step, seed=config.seed)
    known = {name: metadata[name] for name in ("noise_scale", "unconditional") if name in metadata}
    make_run(config.run, state, objective, config.optimizer, known=known)
    print(f"{config.run}: weights of {config.file} after step {step}")
    print(f"sample from it: eqx-shortcut sample {config.run}")
