"""A trained run opened for use: its networks, and samples from them."""

import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from . import settings
from .checkpoint import Checkpoints, Weights
from .guidance import guided
from .objectives import Objective
from .types import Field


class Trained(eqx.Module):
    """One set of weights of a run; `field` is the view of it that samplers call (see Objective.sampling)."""

    network: Any
    objective: Objective = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    step: int = eqx.field(static=True)
    labelled: bool = eqx.field(static=True, default=True)

    @property
    def field(self) -> Field:
        """The field `(x, t, d, labels) -> average velocity` over a batch."""
        return self.objective.sampling(self.network)


def load(run: str | pathlib.Path, *, weights: Weights = "ema", step: int | None = None) -> Trained:
    """The trained network of a run folder, reading one set of weights and nothing else of the checkpoint.

    `weights` are the average ("ema") or the last ones ("online"); `step` chooses a checkpoint, the newest if None.
    Raises ValueError if the folder is no run, CheckpointError if the checkpoint is missing or damaged.
    """
    run = pathlib.Path(run)
    if not (run / "config.json").exists():
        raise ValueError(f"{run.absolute()} is not a run folder: it holds no config.json")
    config = settings.read(run / "config.json")
    network, objective = settings.parse(config["network"]), settings.parse(config["objective"])
    shape, classes = tuple(config["shape"]), config["classes"]
    like = eqx.filter_eval_shape(lambda key: network.build(shape, classes, key=key), jax.random.key(0))
    restored, found = Checkpoints(run / "checkpoints").restore_network(like, weights, step)
    return Trained(restored, objective, shape, classes, found, labelled=not config.get("unconditional", False))


def sample(
    model: Trained,
    key: PRNGKeyArray,
    count: int,
    *,
    steps: int = 1,
    first: int = 0,
    labels: Int[Array | np.ndarray, " labels"] | int | None = None,
    guidance: float = 1.0,
    guide_always: bool = False,
    batch: int = 256,
) -> Float[Array, "count *shape"]:
    """Samples number `first` to `first + count - 1` in `steps` steps, in [-1, 1] up to overshoot. Units are the data's.

    `labels` is one label each, one for all, or None for labels in turn (for no label, if the run was trained so).
    `guidance` other than 1 extrapolates from unlabelled to labelled velocity, except where the objective does not allow it
    (`model.objective.guides(steps)` is False), unless `guide_always`.

    Sample `i` depends on the key and `i` alone, not on `count` or `batch`.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: a sample takes at least 1 step")
    if count < 1:
        raise ValueError(f"count={count}: ask for at least 1 sample")
    if batch < 1:
        raise ValueError(f"batch={batch}: compute at least 1 sample at once")
    labels = _labels(model, labels, first, count)
    scale = guidance if guide_always or model.objective.guides(steps) else 1.0
    parts = []
    for start in range(0, count, batch):
        places = jnp.arange(start, start + min(batch, count))
        chosen = labels[jnp.minimum(places, count - 1)]
        images = _sample_batch(model, key, first + places, chosen, jnp.int32(steps), jnp.float32(scale), guide=scale != 1)
        parts.append(images[: count - start])
    return jnp.concatenate(parts)


def _labels(
    model: Trained, labels: Int[Array | np.ndarray, " labels"] | int | None, first: int, count: int
) -> Int[Array, " count"]:
    if labels is None:
        return (first + jnp.arange(count)) % model.classes if model.labelled else jnp.full((count,), model.classes)
    given = jnp.asarray(labels)
    if given.shape not in ((), (count,)):
        raise ValueError(f"{len(given)} labels for {count} samples: give one for each, one for all, or none")
    chosen = jnp.broadcast_to(given, (count,))
    lowest, highest = int(chosen.min()), int(chosen.max())
    if lowest < 0 or highest > model.classes:
        wrong = lowest if lowest < 0 else highest
        raise ValueError(f"label {wrong} is not in 0 to {model.classes - 1} (or {model.classes} for none): choose one of those")
    return chosen


def noise(model: Trained, key: PRNGKeyArray, places: Int[Array, " batch"]) -> Float[Array, "batch *shape"]:
    """The noise from which `sample` makes its samples number `places`."""
    return _normal(key, places, model.shape)


@eqx.filter_jit
def _sample_batch(model, key, places, labels, steps, scale, *, guide):
    field = guided(model.field, scale, model.network.null) if guide else model.field

    def renoise(i):
        # Beyond the numbers of samples, so that no key serves twice.
        return _normal(jax.random.fold_in(key, jnp.uint32(2**31) + i.astype(jnp.uint32)), places, model.shape)

    return model.objective.sample(field, _normal(key, places, model.shape), labels, steps=steps, renoise=renoise)


def _normal(key, places, shape):
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(places)
