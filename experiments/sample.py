"""Samples of a trained run as one picture, one row a number of sampling steps.

python experiments/sample.py runs/digits/shortcut --steps 1 4 128 --count 40 --out grid.png
"""

import dataclasses
import pathlib
import sys
from typing import Annotated, Literal

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
    weights: Literal["ema", "online"] = "ema"
    """The average of the weights, or the last ones."""
    step: int | None = None
    """Training step of the checkpoint; by default the newest."""
    seed: int = 0
    """Seed of the noise."""
    out: pathlib.Path = pathlib.Path("samples.png")
    """Picture to write."""


def main(config: Config) -> None:
    """Loads the run, samples, writes the picture and says what it did."""
    import jax
    import numpy as np

    import eqx_shortcut
    from eqx_shortcut import figures

    if config.columns < 1 or not config.steps:
        raise ValueError(f"--columns {config.columns} --steps {' '.join(map(str, config.steps))}: use 1 or more of both")
    if not config.out.absolute().parent.is_dir():
        raise ValueError(f"no folder {config.out.absolute().parent}: make it, or name another with --out")
    model = eqx_shortcut.load(config.run, weights=config.weights, step=config.step)
    labels = jax.numpy.asarray(np.resize(config.labels, config.count)) if config.labels else None
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
        rows.append(folded(np.asarray(images), columns))
        inside = config.guidance != 1 and not (config.guide_always or model.objective.guides(steps))
        note = " (not applied: the network contains the guidance it was trained with)" if inside else ""
        print(f"{row_names(steps, 1)[0]}: {config.count} samples, guidance {config.guidance}{note}")
    names = [name for steps, block in zip(config.steps, rows, strict=True) for name in row_names(steps, len(block))]
    figures.grid(np.concatenate(rows), config.out, labels=names)
    print(f"{config.out}: weights {config.weights} of training step {model.step}, seed {config.seed}")


def row_names(steps: int, rows: int) -> list[str]:
    """The number of steps beside the first of so many rows, nothing beside the others."""
    return [f"{steps} step{'s'[: steps > 1]}", *[""] * (rows - 1)]


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
