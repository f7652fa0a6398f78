"""Run folders without training: a network whose weights are noise, which answers each label differently."""

import json
import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqx_shortcut import settings
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.data import FashionMNIST
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import FlowMatching, Networks
from eqx_shortcut.train import TrainState

NETWORK, SHAPE, CLASSES = DiTConfig(hidden=16, depth=1, heads=2, patch=2), (4, 4, 1), 10


def write_run(
    folder: pathlib.Path, shape: tuple[int, ...] = SHAPE, *, network: Any = NETWORK, classes: int = CLASSES, **more: Any
) -> pathlib.Path:
    """A run of flow matching on Fashion-MNIST, by its settings, with one checkpoint, of step 1; `more` goes to config.json."""
    rng = np.random.default_rng(0)
    parts = settings.dump({"network": network, "objective": FlowMatching(steps=4), "data": FashionMNIST()})
    record = {"shape": list(shape), "classes": classes, **parts, **more}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(record))
    built = eqx.filter_jit(lambda: network.build(shape, classes, key=jax.random.key(0)))()
    shaken = jax.tree.map(
        lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(a.dtype) if eqx.is_inexact_array(a) else a, built
    )
    checkpoints, zero = Checkpoints(folder / "checkpoints", config=record), jnp.zeros((), jnp.int32)
    checkpoints.save(TrainState(zero + 1, jax.random.key(0), Networks(shaken, shaken), {"count": zero}, zero, zero), {})
    checkpoints.close()
    return folder
