"""Pairs of noise and the sample a trained run makes of it, for reflow: flow matching on straight lines between the two.

    eqx-shortcut pairs runs/digits/flow-matching --out runs/digits/pairs --count 4000 --steps 128
    python experiments/digits.py objective:flow-matching --name reflow --pairs runs/digits/pairs \\
        --init-from runs/digits/flow-matching

Writes compressed files of half-precision arrays. The same command again goes on where it stopped.
"""

import dataclasses
from typing import Annotated

import tyro

from ..cli import Place
from ._opening import Weights


@dataclasses.dataclass(frozen=True)
class Config:
    """Pairs of a trained run."""

    run: Annotated[Place, tyro.conf.Positional]
    """Run folder."""
    out: Place
    """Folder to write."""
    count: int = 50_000
    """Number of pairs, labels in turn."""
    steps: int = 128
    """Sampling steps."""
    guidance: float = 1.0
    """Guidance scale; 1 is none."""
    weights: Weights = "ema"
    """The average of the weights, the last ones, or by a number the average of that relative width (see --averages)."""
    seed: int = 1
    """Seed of the noise."""
    batch: int = 256
    """Samples computed at once."""
    shard: int = 1024
    """Pairs in a file."""

    def __post_init__(self):
        for field in ("count", "steps", "batch", "shard"):
            if getattr(self, field) < 1:
                raise ValueError(f"--{field} {getattr(self, field)}: use 1 or more")


def main(config: Config) -> None:
    """Writes the files that are missing and says what it did."""
    import jax.numpy as jnp
    import numpy as np
    from tqdm import tqdm

    from .. import rng, settings
    from ..data.pairs import MANIFEST, Pairs, shard_path, shards, write_shard
    from ..sampling import Sampling
    from ..trained import load, noise, sample

    model = load(config.run, weights=config.weights)
    if config.guidance != 1 and not model.objective.guides(config.steps):
        raise ValueError(f"--guidance {config.guidance} does not apply to {config.run} in {config.steps} steps: leave it at 1")
    manifest = {
        "run": str(config.run),
        "training step": model.step,
        "shape": list(model.shape),
        "classes": model.classes,
        **{name: getattr(config, name) for name in ("weights", "count", "steps", "guidance", "seed", "shard")},
    }
    settings.match_or_write(config.out / MANIFEST, manifest, "other pairs", "Repeat their settings, or name another --out")
    key = rng.key(config.seed)
    missing = [(i, part) for i, part in enumerate(shards(manifest)) if not shard_path(config.out, i).exists()]
    for index, numbers in tqdm(missing, desc="pairs", unit="file", dynamic_ncols=True):
        indices = jnp.asarray(numbers)
        labels = indices % model.classes if model.labelled else jnp.full_like(indices, model.classes)
        x = sample(
            model,
            key,
            len(numbers),
            Sampling(config.steps, config.guidance),
            first=numbers.start,
            labels=labels,
            batch=config.batch,
        )
        pairs = Pairs(np.asarray(noise(model, key, indices)), np.asarray(x), np.asarray(labels), model.classes)
        write_shard(shard_path(config.out, index), pairs)
    print(f"{config.out}: {config.count} pairs of {config.run} in {config.steps} steps, weights {config.weights}")
