"""Draws samples between two samples of a trained run, by interpolating their noise.

    eqx-shortcut interpolate runs/digits/shortcut --class 3 8 --out between.png --gif between.gif

At angle a the noise is cos(a) one + sin(a) other, which is as standard normal as the two draws. The picture has a row for each
pair of draws, from a = 0 to a = 90 degrees in equal angles; the GIF goes there and back. The ends of the first row are samples
number 0 and 1 of that seed, as `eqx-shortcut sample` draws them for that label, those of the second row number 2 and 3, and so
on; noise that a sampler adds between its steps is along a row that of the first.
"""

import dataclasses
import pathlib
from typing import Any

from ..cli import check_out
from ..ranges import Count, Natural, Several
from ._opening import Drawing, chosen_labels, evenly, open_run


@dataclasses.dataclass(frozen=True)
class Config(Drawing):
    """Samples between samples."""

    steps: Count = 1
    """Sampling steps (1 or more)."""
    rows: Count = 4
    """Pairs of draws, each of one label (1 or more)."""
    points: Several = 33
    """Points from one draw to the other, which are the frames of the GIF (2 or more)."""
    columns: Several = 9
    """Points in a row of the picture, spread evenly (2 or more)."""
    seed: Natural = 0
    """Seed of the noise (0 or more)."""
    out: pathlib.Path = pathlib.Path("interpolation.png")
    """Picture to write."""
    gif: pathlib.Path | None = None
    """GIF to write."""

    def __post_init__(self):
        super().__post_init__()
        if self.columns > self.points:
            raise ValueError(f"--columns {self.columns} --points {self.points}: use as many points as columns, or more")


def main(config: Config) -> None:
    """Loads the run, samples along each arc and writes the pictures."""
    import jax.numpy as jnp
    import numpy as np

    from .. import figures, rng
    from ..progress import bar
    from ..trained import noise, sample_from

    check_out(config.out, ".png")
    if config.gif:
        check_out(config.gif, ".gif")
    model, pictures, _ = open_run(config)
    labels, names = chosen_labels(config, model)
    how = config.sampling(config.steps, config.guidance)
    key = rng.key(config.seed)
    rows = []
    for row in bar(range(config.rows), unit="row", delay=1):
        x = sample_from(
            model,
            key,
            arc(noise(model, key, 2 * row + jnp.arange(2)), config.points),
            how,
            # One number for all, so that noise that a sampler adds between its steps stays the same along the arc.
            indices=jnp.full(config.points, 2 * row),
            labels=labels[row % len(labels)],
        )
        rows.append(pictures(x))
    images = np.stack(rows)
    beside = [names[row % len(names)] for row in range(config.rows)]
    figures.grid(images[:, evenly(config.points, config.columns)], config.out, labels=beside)
    if config.gif:
        figures.animation(np.concatenate([images, images[:, -2:0:-1]], axis=1).swapaxes(0, 1)[:, None], config.gif)
    written = f"{config.out} and {config.gif}" if config.gif else config.out
    step = f"{config.steps} step{'s'[: config.steps > 1]}, {how.note(model.objective)}"
    print(f"{written}: {step}, weights {config.weights} of training step {model.step}, seed {config.seed}")


def arc(ends: Any, points: int) -> Any:
    """`cos(a) one + sin(a) other` of the two `ends` at equal angles from 0 to 90 degrees: as standard normal as they are."""
    import numpy as np

    angles = np.linspace(0, np.pi / 2, points, dtype=np.float32).reshape(-1, *[1] * (ends.ndim - 1))
    return np.cos(angles) * ends[:1] + np.sin(angles) * ends[1:]
