"""Snapshots of power-function averages during a run, and averages of any relative width made of them afterwards."""

import os
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from . import ema, storage
from .checkpoint import CheckpointError, Checkpoints
from .train import TrainState

FOLDER = "averages"
"""Where they lie in a run folder."""
LARGEST_ERROR = 0.1
"""An average whose profile is further from the wanted one, over the wanted one's norm, is refused."""
NEGLIGIBLE = 1e-8
"""Averages that count less than that in a combination are not read."""


def open_snapshots(run: str | os.PathLike[str], config: dict[str, Any]) -> Checkpoints:
    """The snapshots of a run, which are all kept: each average in float16, with its number of updates."""
    return Checkpoints(storage.as_path(run) / FOLDER, milestones=1, config=config, items=_items)


def reconstructed(
    run: str | os.PathLike[str], like: PyTree, sigma_rel: float, kept: Sequence[float], step: int | None = None
) -> tuple[PyTree, int]:
    """The average of relative width `sigma_rel` at snapshot `step`, or the newest, in the structure of `like`; and its step.

    It is made of the snapshots of averages `kept` up to there (see ema.combination), read one after another. Raises
    CheckpointError if there is no such snapshot or one is damaged, ValueError if they cannot make the average to 10 %.
    """
    gamma = ema.gamma_of(sigma_rel)
    snapshots = open_snapshots(run, {})
    steps = snapshots.steps()
    if not (kept and steps):
        raise CheckpointError(
            f"no snapshots of averages in {snapshots.folder}: train with --averages.sigma-rel 0.05 0.1, or use the weights ema"
        )
    step = steps[-1] if step is None else step
    if step not in steps:
        raise CheckpointError(f"no snapshot {step} in {snapshots.folder}: there are {', '.join(map(str, steps))}")
    used = [(s, width) for s in steps if s <= step for width in kept]
    updates = {s: _updates(snapshots, s) for s in steps if s <= step}
    times = np.array([updates[s] for s, _ in used], np.float64)
    profiles = ema.Profile(times, np.array([ema.gamma_of(width) for _, width in used]))
    coefficients, error = ema.combination(profiles, float(updates[step]), gamma)
    if error > LARGEST_ERROR:
        raise ValueError(
            f"sigma_rel {sigma_rel:g} cannot be made of {len(updates)} snapshots of {', '.join(f'{w:g}' for w in kept)} up to "
            f"step {step}: the nearest profile is {error:.0%} off; choose a width nearer to theirs, or train with more "
            "snapshots (--averages.every)"
        )
    chosen = [(c, *which) for c, which in zip(coefficients.tolist(), used, strict=True) if abs(c) > NEGLIGIBLE]
    averages = (snapshots.restore_network(like, _name(width), s)[0] for _, s, width in chosen)
    return ema.combined(averages, [c for c, *_ in chosen]), step


def _updates(snapshots: Checkpoints, step: int) -> int:
    loop, _ = snapshots.restore_network({"updates": jnp.int32(0)}, "loop", step)
    return int(loop["updates"])


def _name(sigma_rel: float) -> str:
    return f"{sigma_rel:g}"


def _items(state: TrainState) -> dict[str, PyTree]:
    def half(average):
        arrays = eqx.filter(average, eqx.is_array)
        return jax.tree.map(lambda a: a.astype(jnp.float16) if eqx.is_inexact_array(a) else a, arrays)

    averages = {_name(average.sigma_rel): half(average.network) for average in state.averages}
    return {"loop": {"updates": state.updates}, **averages}
