"""A trained run opened for use: its networks, and samples from them."""

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float, Int, PRNGKeyArray

from . import compilation, settings, sharding, snapshots, storage
from .checkpoint import Checkpoints, Weights
from .guidance import at_scale, guided
from .objectives import Objective
from .samplers import StepRange
from .sampling import Sampling
from .steps import step
from .types import Cond, Field, Points, shown


class Trained(eqx.Module):
    """One set of weights of a run; `field` is the view of it that samplers call (see Objective.sampling).

    Its conditions are labels below `classes`, or of the structure and shapes of `null`, or there are none.
    """

    network: Any
    objective: Objective = eqx.field(static=True)
    shape: tuple[int, ...] = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    step: int = eqx.field(static=True)
    labelled: bool = eqx.field(static=True, default=True)
    """Whether conditions were shown in training; else all were hidden."""
    null: Cond = None
    """The condition that stands for none, without its batch axis, where conditions are no labels."""
    noise_scale: float = eqx.field(static=True, default=1.0)
    """Standard deviation of the noise from which samples are made."""
    trained_in: tuple[str, ...] = eqx.field(static=True, default=())
    """The features in which samples were compared in training (see Objective.trained_in)."""

    @property
    def nothing(self) -> Cond:
        """The condition that stands for none: `null`, or the label `classes`; None in a run without conditions."""
        return (self.classes or None) if self.null is None else self.null

    @property
    def conditional(self) -> bool:
        """Whether it is sampled for labels, the one that stands for none among them, or for conditions."""
        return self.nothing is not None and (self.labelled or self.null is None)

    @property
    def field(self) -> Field:
        """The field `(x, t, d, conditions) -> average velocity` over a batch."""
        return self.objective.sampling(self.network)


def load(run: str | os.PathLike[str], *, weights: Weights | float = "ema", step: int | None = None) -> Trained:
    """The trained network of a run folder, reading one set of weights and nothing else of the checkpoint.

    `weights` are the average ("ema"), the last ones ("online"), or, as a number, the average of that relative width (see
    snapshots.reconstructed); `step` chooses a checkpoint or snapshot, the newest if None. Raises ValueError if the folder is no
    run, such an average cannot be made, or the classes of network and objective cannot be imported; CheckpointError if what is
    to be read is missing or damaged.
    """
    run = storage.as_path(run)
    if not storage.exists(run / "config.json"):
        raise ValueError(f"{storage.absolute(run)} is not a run folder: it holds no config.json; {_nearest_runs(run)}")
    config = settings.read(run / "config.json")
    if missing := {"network", "objective", "shape", "classes"} - config.keys():
        raise ValueError(f"{run / 'config.json'} is not that of a run: it says no {' and no '.join(sorted(missing))}")
    network, objective = settings.parse(config["network"]), settings.parse(config["objective"])
    shape, classes = tuple(config["shape"]), config["classes"]
    like = eqx.filter_eval_shape(lambda key: network.build(shape, classes, key=key), jax.random.key(0))
    if isinstance(weights, str):
        restored, at = Checkpoints(run / "checkpoints").restore_network(like, weights, step)
    else:
        kept = config.get("averages", {}).get("sigma_rel", ())
        restored, at = snapshots.reconstructed(run, like, weights, kept, step)
    labelled, null = not config.get("unconditional", False), settings.parse_arrays(config.get("null"))
    scale = config.get("noise_scale", 1.0)
    # Runs of earlier versions have no record of it; asked, an objective reads files.
    seen = tuple(config["trained_in"] if "trained_in" in config else objective.trained_in())
    return Trained(restored, objective, shape, classes, at, labelled=labelled, null=null, noise_scale=scale, trained_in=seen)


def sample(
    model: Trained,
    key: PRNGKeyArray,
    count: int,
    steps: Sampling | int = 1,
    *,
    first: int = 0,
    labels: Int[Array | np.ndarray, " labels"] | int | None = None,
    conditions: Cond = None,
    batch: int = 256,
) -> Float[Array, "count *shape"]:
    """Samples number `first` to `first + count - 1` in `steps`, in [-1, 1] up to overshoot. Units are the data's.

    `steps` is a number of them, or a Sampling, which may say more: guidance, another sampler than the objective's.

    `labels` is one label each, one for all, or None for labels in turn (for no label, if the run was trained so). A run whose
    conditions are no labels takes `conditions`, one each with a leading axis, or one for all without; `model.null` is such a
    one.

    Sample `i` depends on the key and `i` alone, not on `count` or `batch`.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least 1 sample")
    if batch < 1:
        raise ValueError(f"batch={batch}: compute at least 1 sample at once")
    numbers = first + jnp.arange(count)
    sampling, cond, guiding = _settled(model, numbers, labels, conditions, steps)
    whole, parts = _part(sampling.steps, 0, sampling.steps), []
    for start in range(0, count, batch):
        # The last rows are computed again to fill the batch, which is compiled for one size.
        chosen = jnp.arange(start, start + min(batch, count))
        indices, given = first + chosen, jax.tree.map(lambda a, chosen=chosen: a[jnp.minimum(chosen, count - 1)], cond)
        x = _advanced(model, key, noise(model, key, indices), indices, given, whole, guiding, sampling.sampler)
        parts.append(x[: count - start])
    return jnp.concatenate(parts)


def noise(model: Trained, key: PRNGKeyArray, indices: Int[Array, " batch"]) -> Points:
    """The noise from which `sample` makes its samples number `indices`."""
    return model.noise_scale * _normal(key, indices, model.shape)


def sample_from(
    model: Trained,
    key: PRNGKeyArray,
    noise: Points,
    steps: Sampling | int = 1,
    *,
    indices: Int[Array, " batch"] | None = None,
    labels: Int[Array | np.ndarray, " labels"] | int | None = None,
    conditions: Cond = None,
    done: int = 0,
) -> Points:
    """Samples number `indices` (0, 1, ... if None) of `sample` from this noise, all at once.

    The first `done` steps are left out, `noise` being the points to which they would lead; ValueError unless some are left.

    Key and numbers matter only where labels come in turn, and to samplers that add new noise between their steps. Under
    `jax.jit` labels and conditions are taken as they are, in range or not.
    """
    indices = jnp.arange(noise.shape[0]) if indices is None else indices
    sampling, cond, guiding = _settled(model, indices, labels, conditions, steps)
    if not 0 <= done < sampling.steps:
        raise ValueError(f"done={done} of steps={sampling.steps}: leave out 0 or more, and fewer than there are")
    part = _part(sampling.steps, done, sampling.steps)
    return _advanced(model, key, noise, indices, cond, part, guiding, sampling.sampler)


class Trajectory(NamedTuple):
    """Points `x` of samples on their way at times `t` in [0, 1], and the `data` where one step from each to time 1 ends."""

    t: Float[Array, " points"]
    x: Float[Array, "points batch *shape"]
    data: Float[Array, "points batch *shape"]


def trajectory(
    model: Trained,
    key: PRNGKeyArray,
    noise: Points,
    steps: Sampling | int,
    *,
    points: Sequence[int],
    indices: Int[Array, " batch"] | None = None,
    labels: Int[Array | np.ndarray, " labels"] | int | None = None,
    conditions: Cond = None,
) -> Trajectory:
    """The samples of `sample_from` on their way: after each number of steps in `points`, which rise from 0 to `steps`.

    Point 0 is the noise, point `steps` the sample, to the bit. Raises ValueError for other points.
    """
    indices = jnp.arange(noise.shape[0]) if indices is None else indices
    sampling, cond, guiding = _settled(model, indices, labels, conditions, steps)
    count, sampler = sampling.steps, sampling.sampler
    if sorted(points) != list(points) or not points or points[0] < 0 or points[-1] > count:
        raise ValueError(f"points={points}: name one or more of 0 to {count} in rising order")
    t = np.asarray(points, np.float32) / np.float32(count)
    if sampler is not None and sampler.times is not None:
        t = np.asarray(jax.vmap(sampler.times)(jnp.asarray(t)))
    x, done, way, data = noise, 0, [], []
    for point, time in zip(points, t, strict=True):
        x, done = _advanced(model, key, x, indices, cond, _part(count, done, point), guiding, sampler), point
        way.append(x)
        data.append(x if point == count else _ahead(model, x, jnp.full(x.shape[0], time), cond, guiding))
    return Trajectory(jnp.asarray(t), jnp.stack(way), jnp.stack(data))


def _nearest_runs(folder: storage.Path) -> str:
    """What to name in place of a folder that is no run: the first of the runs in it, or their usual place."""
    inside = sorted(path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/config.json"))
    return f"name a run in it, such as {inside[0]}" if inside else "a run is at RUNS/EXPERIMENT/NAME, as runs/digits/shortcut"


def _settled(model, indices, labels, conditions, steps):
    """How samples are drawn, their conditions, and scale and times of the guidance, None where there is none."""
    sampling = steps if isinstance(steps, Sampling) else Sampling(steps)
    sampling.check(model.objective)
    guidance, interval = sampling.guidance, sampling.guidance_interval
    if guidance != 1 and model.objective.told is None and (not model.labelled or model.nothing is None):
        raise ValueError(f"guidance={guidance:g} goes from no condition to one, and the run was trained without: leave it at 1")
    cond = _conditions(model, labels, conditions, indices)
    times = interval if interval is None else (jnp.float32(interval[0]), jnp.float32(interval[1]))
    return sampling, cond, (jnp.float32(guidance), times) if sampling.guides(model.objective) else None


def check_labels(model: Trained, labels: Int[np.ndarray, " labels"]) -> None:
    """Raises ValueError unless every label is one of the run's classes, or their number, which stands for none.

    In a run that was trained without labels that one is left.
    """
    if not model.labelled and (labels != model.classes).any():
        label = labels[labels != model.classes][0]
        raise ValueError(f"label {label} for a run that was trained without labels: leave it out")
    for label in (labels.min(), labels.max()):
        if not 0 <= label <= model.classes:
            raise ValueError(
                f"label {label} is not in 0 to {model.classes - 1} (or {model.classes} for none): choose one of those"
            )


def _conditions(model, labels, conditions, indices):
    if labels is not None and conditions is not None:
        raise ValueError("labels and conditions both say what to sample: give one of the two")
    given, nothing, count = labels if conditions is None else conditions, model.nothing, indices.shape[0]
    if given is None and not (model.labelled and nothing is not None):
        return jax.tree.map(lambda c: jnp.full((count, *jnp.shape(c)), c, jnp.asarray(c).dtype), nothing)
    if given is not None and not model.conditional:
        raise ValueError("the run was trained without conditions: give neither labels nor conditions")
    if model.null is None:
        return indices % model.classes if given is None else _labels(model, given, count)
    if given is None or labels is not None:
        raise ValueError(f"conditions of the run are {shown(nothing)}, not labels: give conditions= of that kind")
    return _given(given, nothing, count)


def _labels(model, labels, count):
    given = jnp.asarray(labels)
    if given.shape not in ((), (count,)):
        raise ValueError(f"{len(given)} labels for {count} samples: give one for each, one for all, or none")
    chosen = jnp.broadcast_to(given, (count,))
    if not isinstance(chosen, Tracer):
        check_labels(model, np.asarray(chosen))
    return chosen


def _given(conditions, nothing, count):
    wanted = shown(nothing)
    if jax.tree.structure(conditions) != jax.tree.structure(nothing):
        raise ValueError(f"conditions {shown(conditions)} are not of the run's kind, {wanted}: name each part so")

    def one(given, null):
        given, null = jnp.asarray(given), jnp.asarray(null)
        if given.shape not in (null.shape, (count, *null.shape)):
            raise ValueError(
                f"a condition of shape {given.shape} for {count} samples, where one is of shape {null.shape} (of {wanted}): "
                f"give {count} with a leading axis, or one for all"
            )
        if not np.can_cast(given.dtype, null.dtype, "same_kind"):
            raise ValueError(f"a condition of {given.dtype}, where training had {null.dtype} (of {wanted}): scale it as there")
        return jnp.broadcast_to(given.astype(null.dtype), (count, *null.shape))

    return jax.tree.map(one, conditions, nothing)


def _part(*numbers):
    return StepRange(*map(jnp.int32, numbers))


def _view(model, guiding):
    if guiding is None:
        return model.field
    scale, interval = guiding
    if (scales := model.objective.told) is not None:
        return at_scale(model.field, scale, interval=scales.interval if interval is None else interval)
    return guided(model.field, scale, model.nothing, interval=interval)


@compilation.jit
def _advanced(model, key, x, indices, cond, part, guiding, sampler=None):
    def renoise(i):
        # Beyond the numbers of samples, so that no key serves twice.
        return noise(model, jax.random.fold_in(key, jnp.uint32(2**31) + i.astype(jnp.uint32)), indices)

    x, cond = sharding.sharded((x, cond))
    run = model.objective.sample if sampler is None else sampler
    return sharding.replicated(run(_view(model, guiding), x, cond, steps=part, renoise=renoise))


@compilation.jit
def _ahead(model, x, t, cond, guiding):
    x, t, cond = sharding.sharded((x, t, cond))
    return sharding.replicated(step(_view(model, guiding), x, t, 1 - t, cond))


@partial(jax.jit, static_argnums=2)
def _normal(key, indices, shape):
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(indices)
