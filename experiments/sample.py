"""Samples of a trained run as one picture, one row a number of sampling steps.

python experiments/sample.py runs/digits/shortcut --steps 1 4 128 --count 40 --out grid.png

python experiments/sample.py runs/digits/shortcut --class 3 8
"""

import dataclasses
import pathlib
import sys
from collections.abc import Callable
from typing import Annotated, Any, Literal

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Samples of a trained run."""

    run: Annotated[pathlib.Path, tyro.conf.Positional]
    """Run folder."""
    steps: tuple[int, ...] = (1, 4, 128)
    """Numbers of sampling steps, one block of rows each; the same noise for all."""
    guidance: float = 1.0
    """Guidance scale; 1 is none."""
    guide_always: bool = False
    """Apply it also at step sizes where the network contains the guidance it was trained with."""
    count: int = 20
    """Samples for each number of steps."""
    columns: int = 20
    """Samples side by side."""
    labels: tuple[int, ...] = ()
    """Labels, repeated to COUNT; by default all in turn."""
    classes: Annotated[tuple[str, ...], tyro.conf.arg(name="class")] = ()
    """Classes by name instead of LABELS, repeated to COUNT: "golden retriever" of ImageNet, "ankle boot" of Fashion-MNIST."""
    weights: Literal["ema", "online"] = "ema"
    """The average of the weights, or the last ones."""
    step: int | None = None
    """Training step of the checkpoint; by default the newest."""
    seed: int = 0
    """Seed of the noise."""
    vae: pathlib.Path | None = None
    """Folder or file of the autoencoder of a run on latents; by default where it was during training."""
    out: pathlib.Path = pathlib.Path("samples.png")
    """Picture to write."""


def main(config: Config) -> None:
    """Loads the run, samples, writes the picture and says what it did."""
    import jax
    import numpy as np

    import eqx_shortcut
    from eqx_shortcut import figures
    from eqx_shortcut.data.names import find

    if config.columns < 1 or not config.steps:
        raise ValueError(f"--columns {config.columns} --steps {' '.join(map(str, config.steps))}: use 1 or more of both")
    if config.labels and config.classes:
        raise ValueError(
            f"--labels {' '.join(map(str, config.labels))} and --class {' '.join(map(repr, config.classes))} both say what to "
            "sample: give one of the two"
        )
    if not config.out.absolute().parent.is_dir():
        raise ValueError(f"no folder {config.out.absolute().parent}: make it, or name another with --out")
    model = eqx_shortcut.load(config.run, weights=config.weights, step=config.step)
    decode = decoder(config)
    if decode is None and model.shape[-1] not in (1, 3):
        raise ValueError(
            f"samples of {config.run} have {model.shape[-1]} channels and are no pictures: name their autoencoder with "
            "--vae, or use eqx_shortcut.sample from Python"
        )
    wanted, title = config.labels, ""
    if config.classes:
        names = class_names(config.run)
        wanted = tuple(find(names, name) for name in config.classes)
        title = f", {names[wanted[0]]}" if len(wanted) == 1 else ""
        print(f"labels {', '.join(f'{label} ({names[label]})' for label in wanted)}")
    labels = jax.numpy.asarray(np.resize(wanted, config.count)) if wanted else None
    columns, rows = min(config.columns, config.count), []
    for steps in config.steps:
        key = jax.random.key(config.seed)
        images = eqx_shortcut.sample(
            model,
            key,
            config.count,
            steps=steps,
            labels=labels,
            guidance=config.guidance,
            guide_always=config.guide_always,
        )
        rows.append(folded(np.asarray(images if decode is None else decode(images)), columns))
        refused = config.guidance != 1 and not (config.guide_always or model.objective.guides(steps))
        note = " (not applied: not what the network was trained for at this step size)" if refused else ""
        print(f"{row_names(steps, 1, title)[0]}: {config.count} samples, guidance {config.guidance}{note}")
    beside = [name for steps, block in zip(config.steps, rows, strict=True) for name in row_names(steps, len(block), title)]
    figures.grid(np.concatenate(rows), config.out, labels=beside)
    print(f"{config.out}: weights {config.weights} of training step {model.step}, seed {config.seed}")


def decoder(config: Config) -> Callable[[Any], Any] | None:
    """From samples to pictures, for a run on latents. Raises ValueError if its autoencoder is missing or another one."""
    from encoding import identity
    from eqx_shortcut import settings
    from eqx_shortcut.models.autoencoder import decode_batch, from_training
    from eqx_shortcut.models.pretrained import load_autoencoder

    record = settings.read(config.run / "config.json")
    path = config.vae or pathlib.Path(record.get("vae", ""))
    if config.vae is None and "vae" not in record:
        return None
    if not path.exists():
        raise ValueError(f"{config.run} draws latents, and no autoencoder is at {path.absolute()}: name its place with --vae")
    autoencoder = load_autoencoder(path)
    found = identity(autoencoder)
    if different := settings.differences(record.get("autoencoder", found), found):
        why = settings.named(different)
        raise ValueError(f"{path} is not the autoencoder of {config.run} ({why}): name that one with --vae")
    return lambda latents: decode_batch(autoencoder, from_training(autoencoder, latents))


def class_names(run: pathlib.Path) -> tuple[str, ...]:
    """Names of the run's classes: those of its data, or ImageNet's for 1,000. Raises ValueError if neither is as many."""
    from eqx_shortcut import settings
    from eqx_shortcut.data.names import imagenet

    record = settings.read(run / "config.json")
    source = settings.find_class(record["data"]["kind"]) if record.get("data") else None
    for names in (getattr(source, "names", ()), imagenet()):
        if len(names) == record["classes"]:
            return names
    raise ValueError(f"the {record['classes']} classes of {run} have no names: choose them by number with --labels")


def row_names(steps: int, rows: int, title: str) -> list[str]:
    """The number of steps and a title beside the first of so many rows, nothing beside the others."""
    return [f"{steps} step{'s'[: steps > 1]}{title}", *[""] * (rows - 1)]


def folded(images, columns: int):
    """Images in rows of so many, the last row filled up with blank ones."""
    import numpy as np

    blank = np.ones((-len(images) % columns, *images.shape[1:]), images.dtype)
    return np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])


if __name__ == "__main__":
    from eqx_shortcut.checkpoint import CheckpointError

    try:
        main(tyro.cli(Config, description=__doc__))
    except (ValueError, OSError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
