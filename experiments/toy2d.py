"""Any objective on points in the plane: trains a small network in half a minute, and draws what it learnt.

    python experiments/toy2d.py                                       # a shortcut model of eight Gaussians
    python experiments/toy2d.py mean-flow --data.distribution moons

Writes runs/toy2d/NAME/: samples/*.png (the map of one step, the way of many, samples in 1, 2, 4 and 128 steps), their sliced
Wasserstein distance in evaluation.json, metrics.jsonl, loss.png. An objective that distils needs --teacher, a run of
flow-matching. `compare.py toy2d` compares all objectives.
"""

import dataclasses
from typing import Any

from eqx_shortcut.interrupts import interruptible

with interruptible():
    import numpy as np

    from eqx_shortcut.data import ArraySource
    from eqx_shortcut.data.points import PlanePoints
    from eqx_shortcut.experiment import Experiment
    from eqx_shortcut.experiment.config import Checkpointing, Config, Figures, Quality
    from eqx_shortcut.models import MLPConfig
    from eqx_shortcut.objectives import (
        OBJECTIVES,
        ConsistencyDistillation,
        ContinuousConsistency,
        FlowMatching,
        LiveReflow,
        Objective,
        Reward,
    )
    from eqx_shortcut.optimizer import AdamW

PLANE = {
    # An adaptive weight biases the mean wherever errors are not symmetric, as between two modes.
    "power": 0.0,
    # A learned weight grows without limit where a field agrees with itself, right or wrong: flow maps may diverge with it.
    "log_variance": False,
    # Nearly uniform steps, and as many velocities at late times, where the modes are narrow, as at early ones.
    "time_mean": 0.0,
    "time_std": 1.6,
    "end_mean": None,
    "uniform_velocity": True,
    # Many steps need the velocity alone, which the other rows learn; one step is learnt from few rows.
    "bootstrap_every": 16,
}
"""What all objectives that have such a field are set to; everything else are the hyper-parameters of their papers."""

ALONE: dict[type[Objective], dict[str, Any]] = {
    # Times on its grid.
    FlowMatching: {"time_mean": None, "time_std": 0.8},
    # Bootstrapping carries what is known at t = 1 to t = 0 in `steps` hops through averaged weights: 128 are too many.
    ConsistencyDistillation: {"steps": 32},
    # Asked at all times at d = 1, it learns a second velocity beside the one of many steps, which has to share a small network.
    LiveReflow: {"bootstrap_every": 32},
    # The standard deviation of these points.
    ContinuousConsistency: {"std": 1.0},
    # To be started with --init-from.
    Reward: {"score": "toy2d:first_mode"},
}
"""What an objective is set to by itself."""


def in_the_plane(kind: type[Objective]) -> Any:
    """An objective with the settings for points in the plane."""
    fields = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in PLANE.items() if name in fields} | ALONE.get(kind, {}))


def preset(kind: type[Objective]) -> Config:
    """All settings of a run."""
    return Config(
        data=PlanePoints(),
        network=MLPConfig(hidden=64),
        objective=in_the_plane(kind),
        optimizer=AdamW(lr=2e-3, schedule="cosine", warmup=100, weight_decay=0.0, clip=1.0),
        steps=2000,
        batch=256,
        ema_decay=0.95,
        log_every=20,
        sample_every=2000,
        checkpoint=Checkpointing(every=2000),
        figures=Figures(batches=0),
        quality=Quality(steps=(1, 2, 4, 128), batch=10_000),
    )


def first_mode(x: Any, cond: Any) -> Any:
    """A reward of eight Gaussians: how near a point is to the one on the right."""
    import jax.numpy as jnp

    return jnp.exp(-jnp.sum((x - jnp.array([[2**0.5, 0.0]])) ** 2, axis=1) / (2 * 0.14**2))


def judge(train: ArraySource, samples: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The sliced Wasserstein distance, over 64 directions, to the first 100,000 points."""
    from eqx_shortcut.evaluate import half_circle, sliced_wasserstein

    return {"sliced_wasserstein": sliced_wasserstein(samples, train.x[:100_000], half_circle(64))}


PRESETS = {name: (f"{kind.__name__}, half a minute on one core.", preset(kind)) for name, kind in OBJECTIVES.items()}
EXPERIMENT = Experiment("toy2d", PRESETS, doc=__doc__, judge=judge)

if __name__ == "__main__":
    EXPERIMENT.main()
