"""Draws the trajectory of one sample from noise to data, for several numbers of steps.

    eqx-shortcut trajectory runs/digits/shortcut --steps 1 2 4 8 128 --class 7 --out trajectory.png

Two rows for each number of steps, all from the same noise: the points on the way, from the noise at the left to the sample at
the right, and below each point where one single step from there to the data ends. At a number of steps that the columns do not
hold, points are chosen evenly. Points of a run on latents are decoded, noise and all.
"""

import dataclasses
import pathlib

from ..cli import check_out
from ..ranges import Count, Natural, Several
from ._opening import Drawing, chosen_labels, evenly, open_run


@dataclasses.dataclass(frozen=True)
class Config(Drawing):
    """The trajectory of a sample."""

    steps: tuple[Count, ...] = (1, 2, 4, 8, 128)
    """Numbers of sampling steps, two rows each (1 or more)."""
    columns: Several = 9
    """Points of a row at most (2 or more)."""
    sample: Natural = 0
    """Number of the sample, as `eqx-shortcut sample` counts; the labels are those of `eqx-shortcut sample` too (0 or more)."""
    seed: Natural = 0
    """Seed of the noise (0 or more)."""
    out: pathlib.Path = pathlib.Path("trajectory.png")
    """Picture to write."""

    def __post_init__(self):
        super().__post_init__()
        if not self.steps:
            raise ValueError("--steps without a number: name one or more")


def main(config: Config) -> None:
    """Loads the run, samples at each number of steps and writes the picture."""
    import jax.numpy as jnp
    import numpy as np

    from .. import figures, rng
    from ..progress import bar
    from ..trained import noise, trajectory

    check_out(config.out, ".png")
    model, pictures, _ = open_run(config)
    labels, names = chosen_labels(config, model)
    key, place = rng.key(config.seed), jnp.array([config.sample])
    rows, beside = [], []
    for steps in bar(config.steps, unit="sampler", delay=1):
        way = trajectory(
            model,
            key,
            noise(model, key, place),
            config.sampling(steps, config.guidance),
            points=evenly(steps + 1, config.columns),
            indices=place,
            labels=labels[config.sample % len(labels)],
        )
        for points in (way.x, way.data):
            row = pictures(points[:, 0])
            # Each point at its time, with room left and right.
            blank = np.ones((config.columns, *row.shape[1:]), row.dtype)
            blank[np.round(np.asarray(way.t) * (config.columns - 1)).astype(int)] = row
            rows.append(blank)
        beside += [f"{steps} step{'s'[: steps > 1]}", "data seen from there"]
    figures.grid(np.stack(rows), config.out, labels=beside)
    for steps in config.steps:
        print(f"{steps} step{'s'[: steps > 1]}: {config.sampling(steps, config.guidance).note(model.objective)}")
    what = f"sample {config.sample}, {names[config.sample % len(names)]}, seed {config.seed}"
    print(f"{config.out}: {what}, weights {config.weights} of training step {model.step}")
