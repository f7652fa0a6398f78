"""A run folder from a checkpoint of kvfrans/shortcut-models, to sample from and to train on.

eqx-shortcut reference checkpoint.pkl runs/celeba/shortcut --size 32
eqx-shortcut sample runs/celeba/shortcut

Reads the checkpoint's arrays and runs none of its code. A checkpoint of another method than shortcut models is told by
its objective, as in `objective:flow-matching`.
"""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from .. import ranges
from ..cli import Place
from ..experiment.config import AnyObjective
from ..objectives import LiveReflow, Objective, Shortcut
from ..optimizer import AdamW
from ..ranges import Count, Natural

if TYPE_CHECKING:
    from ..models import DiTConfig
    from ..train import TrainState

SEES_STEP = (Shortcut, LiveReflow)
"""The objectives whose networks the reference tells the step size; all others are always told 0."""


@dataclasses.dataclass(frozen=True)
class Config(ranges.Checked):
    """A run folder from a checkpoint of the reference."""

    checkpoint: Annotated[pathlib.Path, tyro.conf.Positional]
    """The pickled file, or the folder that the reference's saver makes of it."""
    run: Annotated[Place, tyro.conf.Positional]
    """Run folder to make."""
    objective: AnyObjective = dataclasses.field(default_factory=Shortcut)
    """What it was trained on."""
    optimizer: AdamW = dataclasses.field(default_factory=AdamW)
    """How it was trained; the reference does not save it."""
    size: Count = 32
    """Side of its images, or of its latents: 32 for images of 256 (1 or more)."""
    heads: Count | None = None
    """Attention heads, which the parameters do not tell; by default those of the published size of that width (1 or more)."""
    seed: Natural = 0
    """Seed of every draw when training goes on (0 or more)."""


def main(config: Config) -> None:
    """Makes the run folder and says what it read and what to do next."""

    from .. import reference, rng

    check_free(config.run)
    stored = reference.read(config.checkpoint)
    step = "log2" if isinstance(config.objective, SEES_STEP) else "none"
    network, channels, classes = reference.architecture(stored.parameters, heads=config.heads, step=step)
    shape, tx, key = (config.size, config.size, channels), config.optimizer.build(1), rng.key(config.seed)
    state = reference.train_state(stored, network, shape, classes, tx, key=key)
    make_run(config.run, state, network, shape, classes, config.objective, config.optimizer)
    count = sum(value.size for value in stored.parameters.values())
    size = f"width {network.hidden}, depth {network.depth}, heads {network.heads}, patch {network.patch}"
    print(f"{config.checkpoint}: {count:,} parameters ({size}; {classes} classes) after step {int(state.step)}")
    print(f"sample from it: eqx-shortcut sample {config.run}")
    if config.objective.stages:
        print("the teacher is not in the checkpoint: to go on, train a new run with --init-from this one and --teacher")


def check_free(run: pathlib.Path) -> None:
    """Raises ValueError if there is something in the place of the new run."""
    from .. import storage

    if storage.exists(run):
        raise ValueError(f"{run} exists already: name another run folder, or remove that one")


def make_run(
    run: pathlib.Path,
    state: "TrainState",
    network: "DiTConfig",
    shape: tuple[int, int, int],
    classes: int,
    objective: Objective,
    optimizer: AdamW,
) -> None:
    """Writes a run folder of one checkpoint, whose settings are only those that are known."""
    import json

    from .. import __version__, settings, storage
    from ..checkpoint import Checkpoints

    record: dict[str, Any] = {
        "experiment": storage.absolute(run).parent.name,
        "version": __version__,
        "shape": list(shape),
        "classes": classes,
        **settings.dump({"network": network, "objective": objective, "optimizer": optimizer}),
    }
    checkpoints = Checkpoints(run / "checkpoints", config=record)
    checkpoints.save(state, {}, wait=True)
    checkpoints.close()
    # Last, so that a folder that cannot be used does not look like a run.
    storage.write(run / "config.json", json.dumps(record, indent=1))
