"""Makes pairs of noise and sample with a trained run, for reflow: flow matching on straight lines between the two.

    eqx-shortcut pairs runs/digits/flow-matching --out runs/digits/pairs --count 4000 --steps 128
    python experiments/digits.py objective:flow-matching --name reflow --pairs runs/digits/pairs \\
        --init-from runs/digits/flow-matching

Writes compressed files of half-precision arrays. The same command again goes on where it stopped.
"""

import dataclasses
from typing import Annotated

import tyro

from .. import ranges
from ..cli import Place
from ..ranges import Count, Finite, Natural
from ._opening import Weights, finite


@dataclasses.dataclass(frozen=True)
class Config(ranges.Checked):
    """Pairs of a trained run."""

    run: Annotated[Place, tyro.conf.Positional]
    """Run folder."""
    out: Place
    """Folder to write."""
    count: Count = 50_000
    """Number of pairs, labels in turn (1 or more)."""
    steps: Count = 128
    """Sampling steps (1 or more)."""
    guidance: Finite = 1.0
    """Guidance scale; 1 is none."""
    weights: Weights = "ema"
    """ema (the average of the weights), online (the last ones), or the relative width of an average (see --averages)."""
    seed: Natural = 1
    """Seed of the noise (0 or more)."""
    batch: Count = 256
    """Samples computed at once (1 or more)."""
    shard: Count = 1024
    """Pairs in a file (1 or more)."""


def main(config: Config) -> None:
    """Writes the files that are missing and says what it did."""
    import jax.numpy as jnp
    import numpy as np

    from .. import rng, settings
    from ..data.pairs import MANIFEST, Pairs, shard_path, shards, write_shard
    from ..progress import bar
    from ..sampling import Sampling
    from ..trained import load, noise, sample

    model = load(config.run, weights=config.weights)
    if len(model.shape) != 3 or not model.classes:
        what = f"of shape {model.shape} " + f"with {model.classes} classes" * (model.null is None)
        raise ValueError(f"samples of {config.run} are {what.strip()}, and pairs are of images or latents with labels")
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
    key, how = rng.key(config.seed), Sampling(config.steps, config.guidance)
    missing = [(i, part) for i, part in enumerate(shards(manifest)) if not shard_path(config.out, i).exists()]
    for index, numbers in bar(missing, desc="pairs", unit="file"):
        indices = jnp.asarray(numbers)
        labels = indices % model.classes if model.labelled else jnp.full_like(indices, model.classes)
        x = sample(model, key, len(numbers), how, first=numbers.start, labels=labels, batch=config.batch)
        with np.errstate(over="ignore"):
            half = finite(np.asarray(x).astype(np.float16), config.run)  # as they are stored
        pairs = Pairs(np.asarray(noise(model, key, indices)), half, np.asarray(labels), model.classes)
        write_shard(shard_path(config.out, index), pairs)
    print(f"{config.out}: {config.count} pairs of {config.run} in {config.steps} steps, weights {config.weights}")
