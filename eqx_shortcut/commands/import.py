"""Makes a run folder from weights that others trained, to sample from and to train on.

    eqx-shortcut import SiT-XL-2-256x256.pt --from sit --out runs/imagenet/sit --vae sd-vae-ft-mse
    eqx-shortcut import facebook/DiT-XL-2-256 --out runs/imagenet/dit
    eqx-shortcut import checkpoint.pkl --from original --out runs/celeba/shortcut
    eqx-shortcut sample runs/imagenet/sit --steps 128 --guidance 4

Reads arrays alone and runs nothing of a file. SiT, DiT and ESC come as .pt, .safetensors or a folder of diffusers, MeanFlow
and improved MeanFlow (imf) as the folder of a checkpoint, kvfrans/shortcut-models (original) as its pickle or the folder of
it. If that was trained on another objective than shortcut models, name it, as in `objective:flow-matching`.
"""

import dataclasses
import pathlib
from typing import Annotated, Literal

import tyro

from .. import ranges, rng
from ..cli import Place
from ..experiment.config import AnyObjective
from ..objectives import ESC, FlowMatching, ImprovedMeanFlow, LiveReflow, MeanFlow, Shortcut
from ..optimizer import AdamW
from ..ranges import Count, Natural
from ._making import check_free, described, fresh_state, make_run

SEES_STEP = (Shortcut, LiveReflow)
"""The objectives whose networks the reference tells the step size; all others are always told 0."""
OBJECTIVES = {
    "meanflow": MeanFlow(),
    "esc": ESC(),
    "imf": ImprovedMeanFlow(max_scale=8.0, intervals=True, velocity_head=True),
}
"""What the others were trained on, where it is not flow matching."""
PICKLE = b"\x80"
"""What a pickle begins with; torch's begin with more (see torchfile.is_torch)."""


@dataclasses.dataclass(frozen=True)
class Config(ranges.Checked):
    """A run folder from weights that others trained."""

    file: Annotated[pathlib.Path, tyro.conf.Positional]
    """File or folder."""
    out: Place
    """Run folder to make."""
    origin: Annotated[Literal["sit", "dit", "meanflow", "esc", "imf", "original"] | None, tyro.conf.arg(name="from")] = None
    """Whose weights they are; by default recognised by the arrays' names, which SiT and DiT have in common."""
    objective: Annotated[None, tyro.conf.subcommand("own")] | AnyObjective = None  # pyright: ignore[reportInvalidTypeForm]
    """What they were trained on: by default flow matching, (improved) MeanFlow, ESC, or, of the original, shortcut models."""
    optimizer: AdamW = dataclasses.field(default_factory=AdamW)
    """How training will go on; of the original, how it was trained, which is not saved."""
    weights: Literal["ema", "online"] = "ema"
    """Of all but the original, the average of the weights, or the last ones, where a file holds both."""
    size: Count | None = None
    """Side of their images, or latents, where the arrays do not tell it; by default 32, for images of 256 (1 or more)."""
    heads: Count | None = None
    """Attention heads, which the arrays do not tell; by default those of the published size of that width (1 or more)."""
    vae: pathlib.Path | None = None
    """Folder or file of their autoencoder, which the run records."""
    seed: Natural = 0
    """Seed of every draw when training goes on (0 or more)."""


def main(config: Config) -> None:
    """Makes the run folder and says what it read and what to do next."""
    check_free(config.out)
    import_original(config) if config.origin == "original" or is_original(config.file) else import_published(config)
    print(f"sample from it: eqx-shortcut sample {config.out}")


def is_original(path: pathlib.Path) -> bool:
    """Whether this is a pickle, or the folder that the reference's saver makes of one."""
    from ..pretrained.torchfile import is_torch

    path = path / f"{path.absolute().name}.tmp" if path.is_dir() else path
    if not path.is_file() or is_torch(path):
        return False
    with path.open("rb") as file:
        return file.read(1) == PICKLE


def import_published(config: Config) -> None:
    """A run of any of the others, whose average of the weights and last ones are the same."""
    from ..pretrained.transformer_files import kind_of, network_of, read_published

    assert config.origin != "original"
    found = read_published(config.file, config.weights)
    kind = kind_of(found, config.origin)
    network = network_of(found, kind, key=rng.key(config.seed), size=config.size, heads=config.heads)
    objective = config.objective or OBJECTIVES.get(kind, FlowMatching())
    # Trained for long, and nobody knows how long: a run of no step is one of random weights.
    state = fresh_state(network, objective, config.optimizer, step=1, seed=config.seed)
    make_run(config.out, state, objective, config.optimizer, vae=config.vae)
    print(f"{config.file}: {kind}{f', {found.note}' if found.note else ''}; {described(network, found.tensors)}")


def import_original(config: Config) -> None:
    """A run of the reference, which continues as it would there."""
    from .. import reference

    stored, objective = reference.read(config.file), config.objective or Shortcut()
    step = "log2" if isinstance(objective, SEES_STEP) else "none"
    network, channels, classes = reference.architecture(stored.parameters, heads=config.heads, step=step)
    size = config.size or 32
    shape, tx, key = (size, size, channels), config.optimizer.build(1), rng.key(config.seed)
    state = reference.train_state(stored, network, shape, classes, tx, key=key)
    make_run(config.out, state, objective, config.optimizer, vae=config.vae)
    print(f"{config.file}: {described(state.networks.online, stored.parameters)} after step {int(state.step)}")
    if objective.stages:
        print("the teacher is not in the checkpoint: to go on, train a new run with --init-from this one and --teacher")
