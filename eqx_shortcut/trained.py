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

from . import settings, sharding, snapshots, storage
from .checkpoint import Checkpoints, Weights
from .guidance import guided, told
from .objectives import Objective
from .samplers import Part, Sampler, consistency
from .steps import step
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


def load(run: str | os.PathLike[str], *, weights: Weights | float = "ema", step: int | None = None) -> Trained:
    """The trained network of a run folder, reading one set of weights and nothing else of the checkpoint.

    `weights` are the average ("ema"), the last ones ("online"), or, as a number, the average of that relative width (see
    snapshots.reconstructed); `step` chooses a checkpoint or snapshot, the newest if None. Raises ValueError if the folder is no
    run or such an average cannot be made, CheckpointError if what is to be read is missing or damaged.
    """
    run = storage.as_path(run)
    if not storage.exists(run / "config.json"):
        raise ValueError(f"{storage.absolute(run)} is not a run folder: it holds no config.json")
    config = settings.read(run / "config.json")
    network, objective = settings.parse(config["network"]), settings.parse(config["objective"])
    shape, classes = tuple(config["shape"]), config["classes"]
    like = eqx.filter_eval_shape(lambda key: network.build(shape, classes, key=key), jax.random.key(0))
    if isinstance(weights, str):
        restored, found = Checkpoints(run / "checkpoints").restore_network(like, weights, step)
    else:
        kept = config.get("averages", {}).get("sigma_rel", ())
        restored, found = snapshots.reconstructed(run, like, weights, kept, step)
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
    guidance_interval: tuple[float, float] | None = None,
    guide_always: bool = False,
    sampler: Sampler | None = None,
    batch: int = 256,
) -> Float[Array, "count *shape"]:
    """Samples number `first` to `first + count - 1` in `steps` steps, in [-1, 1] up to overshoot. Units are the data's.

    `labels` is one label each, one for all, or None for labels in turn (for no label, if the run was trained so).
    `guidance` other than 1 extrapolates from unlabelled to labelled velocity, except where the objective does not allow it
    (`model.objective.guides(steps)` is False), unless `guide_always`, and at steps that start at a time outside of
    `guidance_interval`, two times of [0, 1] (Kynkaanniemi et al. 2024). A network that is told its scale
    (`model.objective.told`) is told `guidance` and, if it learnt others than one, the interval, which costs no second
    evaluation; both must be among those of its training. `sampler` takes the place of the objective's own.

    Sample `i` depends on the key and `i` alone, not on `count` or `batch`.
    """
    if count < 1:
        raise ValueError(f"count={count}: ask for at least 1 sample")
    if batch < 1:
        raise ValueError(f"batch={batch}: compute at least 1 sample at once")
    labels = _labels(model, labels, first + jnp.arange(count))
    parts = []
    for start in range(0, count, batch):
        places = jnp.arange(start, start + min(batch, count))
        images = sample_from(
            model,
            key,
            noise(model, key, first + places),
            steps=steps,
            places=first + places,
            labels=labels[jnp.minimum(places, count - 1)],
            guidance=guidance,
            guidance_interval=guidance_interval,
            guide_always=guide_always,
            sampler=sampler,
        )
        parts.append(images[: count - start])
    return jnp.concatenate(parts)


def noise(model: Trained, key: PRNGKeyArray, places: Int[Array, " batch"]) -> Float[Array, "batch *shape"]:
    """The noise from which `sample` makes its samples number `places`."""
    return _normal(key, places, model.shape)


def sample_from(
    model: Trained,
    key: PRNGKeyArray,
    noise: Float[Array, "batch *shape"],
    *,
    steps: int = 1,
    places: Int[Array, " batch"] | None = None,
    labels: Int[Array | np.ndarray, " labels"] | int | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    guide_always: bool = False,
    sampler: Sampler | None = None,
) -> Float[Array, "batch *shape"]:
    """What `sample` makes of this noise as its samples number `places` (0, 1, ... if None), all at once.

    Key and numbers matter only where labels come in turn, and to samplers that add new noise between their steps. Under
    `jax.jit` labels are taken as they are, in range or not.
    """
    places = jnp.arange(noise.shape[0]) if places is None else places
    check_sampler(model.objective, sampler)
    labels, guiding = _settled(model, places, labels, steps, guidance, guidance_interval, guide_always, sampler)
    return _advanced(model, key, noise, places, labels, _part(steps, 0, steps), guiding, sampler)


class Trajectory(NamedTuple):
    """Points `x` of samples on their way at times `t` in [0, 1], and the `data` where one step from each to time 1 ends."""

    t: Float[Array, " points"]
    x: Float[Array, "points batch *shape"]
    data: Float[Array, "points batch *shape"]


def trajectory(
    model: Trained,
    key: PRNGKeyArray,
    noise: Float[Array, "batch *shape"],
    *,
    steps: int,
    points: Sequence[int],
    places: Int[Array, " batch"] | None = None,
    labels: Int[Array | np.ndarray, " labels"] | int | None = None,
    guidance: float = 1.0,
    guidance_interval: tuple[float, float] | None = None,
    guide_always: bool = False,
) -> Trajectory:
    """The way of the samples of `sample_from`: where they are after so many of their `steps`, `points` in rising order.

    Point 0 is the noise, point `steps` the sample, to the bit. Raises ValueError for other points.
    """
    if sorted(points) != list(points) or not points or points[0] < 0 or points[-1] > steps:
        raise ValueError(f"points={points}: name one or more of 0 to {steps} in rising order")
    places = jnp.arange(noise.shape[0]) if places is None else places
    labels, guiding = _settled(model, places, labels, steps, guidance, guidance_interval, guide_always)
    x, done, found, data = noise, 0, [], []
    for point in points:
        x, done = _advanced(model, key, x, places, labels, _part(steps, done, point), guiding), point
        found.append(x)
        data.append(x if point == steps else _ahead(model, x, jnp.full(x.shape[0], point / steps), labels, guiding))
    return Trajectory(jnp.asarray(points, jnp.float32) / steps, jnp.stack(found), jnp.stack(data))


class _Guiding(NamedTuple):
    scale: Float[Array, ""]
    interval: tuple[Float[Array, ""], Float[Array, ""]] | None


def _settled(model, places, labels, steps, guidance, interval, guide_always, sampler=None):
    if steps < 1:
        raise ValueError(f"steps={steps}: a sample takes at least 1 step")
    check_guidance(model.objective, guidance, interval)
    if guidance == 1 or not (guide_always or model.objective.guides(steps)):
        return _labels(model, labels, places), None
    if interval is not None and model.objective.told is None:
        _check_reached(interval, steps, sampler)
    times = interval if interval is None else (jnp.float32(interval[0]), jnp.float32(interval[1]))
    return _labels(model, labels, places), _Guiding(jnp.float32(guidance), times)


def check_sampler(objective: Objective, sampler: Sampler | None) -> None:
    """Raises ValueError for a sampler that asks the network for what the objective does not teach it."""
    if sampler is None:
        return
    name = type(objective).__name__
    if sampler.asks_velocity and objective.velocity_step is None:
        raise ValueError(f"{sampler.run.__name__} asks for the velocity, which {name} does not teach: use euler or consistency")
    if sampler.run is consistency and objective.only_step is not None:
        raise ValueError(f"consistency asks for the whole way to the data, which {name} does not teach: use euler or heun")


def _check_reached(interval, steps, sampler):
    if sampler is not None and sampler.asks_velocity:
        return
    shares = np.arange(steps, dtype=np.float32) / np.float32(steps)
    times = None if sampler is None else sampler.times
    with jax.ensure_compile_time_eval():
        starts = shares if times is None else np.asarray(jax.vmap(times)(jnp.asarray(shares)))
    if not np.any((starts >= interval[0]) & (starts <= interval[1])):
        raise ValueError(
            f"guidance_interval={interval} holds the start of none of {steps} steps ({starts[0]:g} to {starts[-1]:g}), so that "
            "nothing would be guided: begin it at 0, or take more steps"
        )


def check_guidance(objective: Objective, guidance: float, interval: tuple[float, float] | None = None) -> None:
    """Raises ValueError for times that are none, and for what a network that is told its guidance has not learnt."""
    scales, (start, stop) = objective.told, interval or (0, 1)
    if not 0 <= start <= stop <= 1:
        raise ValueError(f"guidance_interval={interval}: name two times of 0 to 1, the first one first")
    if scales is not None and not scales.low <= guidance <= scales.high:
        raise ValueError(
            f"guidance {guidance:g} is not in {scales.low:g} to {scales.high:g}, the scales that the network is told in "
            "training: choose one of those"
        )
    if scales is None or interval is None:
        return
    if not scales.intervals and interval != scales.interval:
        raise ValueError(
            f"guidance_interval={interval}: the network learnt guidance at times {scales.interval} and is told no others: "
            "leave the interval out"
        )
    if scales.intervals and not start <= 0.5 <= stop:
        raise ValueError(
            f"guidance_interval={interval}: the network is told times before and after 0.5 in training: choose such an interval"
        )


def check_labels(model: Trained, labels: Int[np.ndarray, " labels"]) -> None:
    """Raises ValueError unless every label is one of the run's classes, or their number, which stands for none."""
    for label in (labels.min(), labels.max()):
        if not 0 <= label <= model.classes:
            raise ValueError(
                f"label {label} is not in 0 to {model.classes - 1} (or {model.classes} for none): choose one of those"
            )


def _labels(
    model: Trained, labels: Int[Array | np.ndarray, " labels"] | int | None, places: Int[Array, " count"]
) -> Int[Array, " count"]:
    if labels is None:
        return places % model.classes if model.labelled else jnp.full_like(places, model.classes)
    given = jnp.asarray(labels)
    if given.shape not in ((), places.shape):
        raise ValueError(f"{len(given)} labels for {len(places)} samples: give one for each, one for all, or none")
    chosen = jnp.broadcast_to(given, places.shape)
    if isinstance(chosen, Tracer):
        return chosen
    check_labels(model, np.asarray(chosen))
    return chosen


def _part(*numbers):
    return Part(*map(jnp.int32, numbers))


def _view(model, guiding):
    if guiding is None:
        return model.field
    scale, interval = guiding
    if (scales := model.objective.told) is not None:
        return told(model.field, scale, interval=scales.interval if interval is None else interval)
    return guided(model.field, scale, model.network.null, interval=interval)


@eqx.filter_jit
def _advanced(model, key, x, places, labels, part, guiding, sampler=None):
    def renoise(i):
        # Beyond the numbers of samples, so that no key serves twice.
        return _normal(jax.random.fold_in(key, jnp.uint32(2**31) + i.astype(jnp.uint32)), places, model.shape)

    x, labels = sharding.spread((x, labels))
    run = model.objective.sample if sampler is None else sampler
    return sharding.whole(run(_view(model, guiding), x, labels, steps=part, renoise=renoise))


@eqx.filter_jit
def _ahead(model, x, t, labels, guiding):
    x, t, labels = sharding.spread((x, t, labels))
    return sharding.whole(step(_view(model, guiding), x, t, 1 - t, labels))


@partial(jax.jit, static_argnums=2)
def _normal(key, places, shape):
    return jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), shape))(places)
