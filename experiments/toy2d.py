"""Any objective on points in the plane: trains a small network in half a minute, and draws what it learnt.

    python experiments/toy2d.py                                       # a shortcut model of eight Gaussians
    python experiments/toy2d.py objective:flow-matching --data moons

Writes RUNS/toy2d/NAME/: map.png (the map of one step, the way of many, samples in 1, 2, 4 and 128 steps), their sliced
Wasserstein distances in quality.json, metrics.jsonl, loss.png. An objective that distils has its teacher trained first, by flow
matching with the same settings. `toy2d_table.py` compares all objectives; `eqx-shortcut plot runs/toy2d/*` runs of it.
"""

import dataclasses
import functools
import json
import operator
import pathlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from jaxtyping import Float

from eqx_shortcut.cli import Place, command
from eqx_shortcut.experiment.config import AnyObjective, named
from eqx_shortcut.models import MLPConfig
from eqx_shortcut.objectives import (
    OBJECTIVES,
    ConsistencyDistillation,
    ContinuousConsistency,
    FlowMatching,
    LiveReflow,
    Objective,
    Shortcut,
)
from eqx_shortcut.optimizer import AdamW

if TYPE_CHECKING:
    from jaxtyping import PRNGKeyArray

    from eqx_shortcut.data.points import Points
    from eqx_shortcut.models import MLP
    from eqx_shortcut.trained import Trained
    from eqx_shortcut.types import Metrics

Data = Literal["moons", "checkerboard", "spirals", "eight-gaussians"]
STEPS = (1, 2, 4, 128)
DIRECTIONS = 64
SEED = 1000
LOG_EVERY = 20
OPTIMIZER = AdamW(lr=2e-3, schedule="cosine", warmup=100, weight_decay=0.0, clip=1.0)
NETWORK = MLPConfig(hidden=64)

SHOWN, PATHS, REACH = 3000, 150, 2.6
"""Points and ways drawn, and half the side of each picture."""
RINGS = np.sqrt(-2 * np.log(1 - np.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])))
"""Radii within which those shares of the noise lie."""
RAYS = 2 * np.pi * np.arange(24) / 24

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
    # What is known at t = 1 reaches t = 0 in so many hops, each through the average of the weights: 128 are too many here.
    ConsistencyDistillation: {"steps": 32},
    # Asked at all times at d = 1, it learns a second velocity beside the one of many steps, which has to share a small network.
    LiveReflow: {"bootstrap_every": 32},
    # The standard deviation of these points.
    ContinuousConsistency: {"std": 1.0},
}
"""What an objective is set to by itself."""


def in_the_plane(kind: type[Objective]) -> Any:
    """An objective with the settings for points in the plane."""
    fields = {field.name for field in dataclasses.fields(kind)}  # pyright: ignore[reportArgumentType]
    return kind(**{name: value for name, value in PLANE.items() if name in fields} | ALONE.get(kind, {}))


if TYPE_CHECKING:
    InThePlane = AnyObjective
else:
    choices = (Annotated[kind, tyro.conf.subcommand(name, default=in_the_plane(kind))] for name, kind in OBJECTIVES.items())
    InThePlane = functools.reduce(operator.or_, choices)


@dataclasses.dataclass(frozen=True)
class Config:
    """Train, sample, judge and draw."""

    objective: InThePlane = dataclasses.field(default_factory=lambda: in_the_plane(Shortcut))
    """What is trained."""
    network: MLPConfig = NETWORK
    """Size and options of the network."""
    optimizer: AdamW = OPTIMIZER
    """How it is trained."""
    data: Data = "eight-gaussians"
    """Distribution of the points; each step draws new ones."""
    steps: int = 2000
    """Training steps."""
    batch: int = 256
    """Points a step."""
    ema_decay: float = 0.95
    """Decay a step of the average of the weights."""
    count: int = 10_000
    """Samples for each distance; the points that they are compared with are ten times as many."""
    seed: int = 0
    """Seed of initialisation and training; the points and the noise of the distances are the same for all."""
    name: str | None = None
    """Name of the run; by default DATA-OBJECTIVE-SEED."""
    runs: Place = pathlib.Path("runs")
    """Folder of all runs: this one lies in RUNS/toy2d/NAME."""

    def __post_init__(self):
        for field, lowest in (("steps", 1), ("batch", 1), ("count", 2), ("seed", 0)):
            if getattr(self, field) < lowest:
                raise ValueError(f"--{field} {getattr(self, field)}: use {lowest} or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay {self.ema_decay}: use a number from 0 to below 1")

    @property
    def folder(self) -> pathlib.Path:
        """Where the run lies."""
        return self.runs / "toy2d" / (self.name or f"{self.data}-{named(self.objective)}-{self.seed}")


def main(config: Config) -> None:
    """Trains, judges and draws, and prints the table."""
    from eqx_shortcut.experiment.judging import table

    quality = run(config)
    print(table(quality))
    print(f"pictures and numbers: {config.folder}/map.png, quality.json, loss.png")


def run(config: Config, *, pictures: bool = True) -> dict[str, Any]:
    """Trains, judges and, if asked for, draws; returns what quality.json holds."""
    from eqx_shortcut import figures, storage
    from eqx_shortcut.compilation import use_compilation_cache
    from eqx_shortcut.experiment import log

    if unkept := use_compilation_cache():
        print(unkept, file=sys.stderr)
    config.objective.check(config.batch)
    settle(config)
    model = train(config)
    quality, seen = judge(config, model)
    if pictures:
        title = f"{type(config.objective).__name__}, {config.data}, {config.steps:,} training steps of {config.batch} points"
        draw(model, seen, config.folder / "map.png", title=title)
        figures.loss_plot(log.read_lines(config.folder / "metrics.jsonl"), config.folder / "loss.png")
    storage.write(config.folder / "quality.json", json.dumps(quality, indent=1))
    return quality


def settle(config: Config) -> None:
    """Writes config.json, or makes sure that the folder is that of these settings; raises ValueError naming what differs."""
    from eqx_shortcut import settings

    record = {key: value for key, value in settings.dump(config).items() if key not in ("kind", "runs", "name")}
    path, remedy = config.folder / "config.json", "Start a new one with --name"
    settings.match_or_write(path, {"experiment": "toy2d", **record}, "another run", remedy)


def sampler(data: Data) -> "Callable[[PRNGKeyArray, int], Points]":
    """The distribution of that name."""
    from eqx_shortcut.data import points

    return getattr(points, data.replace("-", "_"))


def train(config: Config) -> "Trained":
    """The average of the weights at the end; an objective that distils starts from its teacher, as the other runs do."""
    from eqx_shortcut.experiment.log import JsonLines

    teacher = None
    if config.objective.stages:
        teacher = fitted(config, FlowMatching(), None, lambda number, metrics: None).network.held_at(FlowMatching().only_step)
    logger = JsonLines(config.folder / "metrics.jsonl", start=0)

    def note(number: int, metrics: "Metrics") -> None:
        logger.write(number, {name: float(value) for name, value in metrics.items()})

    try:
        return fitted(config, config.objective, teacher, note)
    finally:
        logger.close()


def fitted(config: Config, objective: Objective, teacher: "MLP | None", note: "Callable[[int, Metrics], None]") -> "Trained":
    """An objective trained on the points of these settings, from the weights of its teacher if it has one."""
    from eqx_shortcut import rng
    from eqx_shortcut.progress import bar
    from eqx_shortcut.train import Diverged, check_finite, init_state, make_update
    from eqx_shortcut.trained import Trained
    from eqx_shortcut.types import Batch

    tx, points = config.optimizer.build(config.steps), sampler(config.data)

    def prepare(raw: None, key: "PRNGKeyArray") -> Batch:
        return Batch(points(key, config.batch))

    key = rng.key(config.seed)
    build = lambda key: config.network.build((2,), 0, key=key)  # noqa: E731
    state = init_state(build, tx, key, teacher=teacher is not None, extra=objective.extra)
    if teacher is not None:
        networks = dataclasses.replace(state.networks, online=teacher, ema=teacher, teacher=teacher)
        state = dataclasses.replace(state, networks=networks)
    update = make_update(objective, tx, ema_decay=config.ema_decay, steps=config.steps)
    steps = several(lambda state: update((None, prepare), state))
    with bar(total=config.steps, desc=type(objective).__name__, unit="step") as shown:
        for done in range(0, config.steps, LOG_EVERY):
            number = min(done + LOG_EVERY, config.steps)
            state, metrics = steps(state, number - done)
            note(number, metrics)
            shown.update(number - done)
            try:
                check_finite(number, metrics)
            except Diverged as error:
                raise ValueError(str(error)) from error
    return Trained(state.networks.ema, objective, (2,), 0, config.steps, labelled=False)


def several(update: "Callable[[Any], tuple[Any, Metrics]]") -> "Callable[[Any, int], tuple[Any, Metrics]]":
    """So many updates in one call, and the metrics of the last: each is shorter than a call."""
    import jax

    def run(state: Any, count: int) -> "tuple[Any, Metrics]":
        state, metrics = jax.lax.scan(lambda state, _: update(state), state, length=count)
        return state, jax.tree.map(lambda values: values[-1], metrics)

    return jax.jit(run, static_argnums=1)


def judge(config: Config, model: "Trained") -> "tuple[dict[str, Any], Seen]":
    """Distances of samples to points of the distribution, beside that of other points of it, with their protocol."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from tqdm import tqdm

    from eqx_shortcut.evaluate import half_circle, sliced_wasserstein
    from eqx_shortcut.trained import noise, sample_from

    k_data, k_other, k_noise = jax.random.split(jax.random.key(SEED), 3)
    points = sampler(config.data)
    data, other = np.asarray(points(k_data, 10 * config.count)), np.asarray(points(k_other, config.count))
    start = noise(model, k_noise, jnp.arange(config.count))

    def distance(samples: np.ndarray) -> float:
        return sliced_wasserstein(samples, data, half_circle(DIRECTIONS)) if np.isfinite(samples).all() else float("nan")

    found = {}
    for steps in tqdm(STEPS, desc="sampling", unit="sampler", leave=False):
        found[steps] = np.asarray(sample_from(model, k_noise, start, steps=steps))
    distances = {steps: distance(samples) for steps, samples in found.items()}
    quality = {
        "protocol": {
            "sliced_wasserstein": f"of order 2 over {DIRECTIONS} directions, to points of {config.data}",
            "samples": config.count,
            "points": len(data),
            "held-out points": len(other),
            "weights": "ema",
            "training step": config.steps,
            "seed of points and noise": SEED,
        },
        "held_out": {"sliced_wasserstein": distance(other)},
        "results": [{"steps": steps, "sliced_wasserstein": value} for steps, value in distances.items()],
    }
    return quality, Seen(data, np.asarray(start), found, distances)


class Seen(NamedTuple):
    """What the distances were taken of: points of the distribution, noise, and the samples from it by number of steps."""

    data: np.ndarray
    noise: np.ndarray
    samples: dict[int, np.ndarray]
    distances: dict[int, float]


def draw(model: "Trained", seen: Seen, path: pathlib.Path, *, title: str) -> None:
    """Writes the picture: above the noise, the map of one step, the way of the finest sampler and the data; below samples."""
    import jax
    import jax.numpy as jnp
    from matplotlib.figure import Figure

    from eqx_shortcut import figures
    from eqx_shortcut.trained import sample_from, trajectory

    steps, key, net = max(seen.samples), jax.random.key(0), lines()
    mapped = np.asarray(sample_from(model, key, jnp.asarray(net.reshape(-1, 2)), steps=1)).reshape(net.shape)
    moments = sorted({round(i * steps / 32) for i in range(33)})
    way = np.asarray(trajectory(model, key, jnp.asarray(seen.noise[:PATHS]), steps=steps, points=moments).x)
    figure = Figure(figsize=(12, 6.6), layout="constrained", dpi=130)
    figure.suptitle(title)
    (noise, one, paths, data), below = figure.subplots(2, 4)
    curves(noise, net, net)
    curves(one, mapped, net)
    curves(paths, way.swapaxes(0, 1), np.broadcast_to(way[:1], way.shape).swapaxes(0, 1), alpha=0.6)
    paths.scatter(*way[-1].T, s=7, c=colours(way[0]), linewidths=0, zorder=3)
    data.scatter(*seen.data[:SHOWN].T, s=3, c="0.35", linewidths=0, rasterized=True)
    titles = ["noise, 5 to 95 %", "its map in one step", f"the way in {steps} steps", "data"]
    for axes, (n, samples) in zip(below, seen.samples.items(), strict=True):
        axes.scatter(*samples[:SHOWN].T, s=3, c=colours(seen.noise[:SHOWN]), linewidths=0, rasterized=True)
        titles.append(f"{n} step{'s'[: n > 1]}: {seen.distances[n]:.3f}")
    for axes, text in zip(figure.axes, titles, strict=True):
        axes.set_title(text, fontsize=11)
        axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_color("0.85")
    figures.write_figure(path, figure)


def lines() -> Float[np.ndarray, "lines points 2"]:
    """Circles and rays in the plane of the noise."""
    turn, outward = np.linspace(0, 2 * np.pi, 121), np.linspace(RINGS[0], RINGS[-1], 121)
    rings = [radius * np.stack([np.cos(turn), np.sin(turn)], axis=1) for radius in RINGS]
    rays = [outward[:, None] * np.array([[np.cos(angle), np.sin(angle)]]) for angle in RAYS]
    return np.stack([*rings, *rays]).astype(np.float32)


def curves(
    axes: Any, at: Float[np.ndarray, "lines points 2"], noise: Float[np.ndarray, "lines points 2"], **options: Any
) -> None:
    """Lines through the points `at`, each piece in the colour of the noise at its beginning."""
    from matplotlib.collections import LineCollection

    pieces = np.stack([at[:, :-1], at[:, 1:]], axis=2).reshape(-1, 2, 2)
    axes.add_collection(LineCollection(list(pieces), colors=colours(noise[:, :-1].reshape(-1, 2)), linewidths=0.8, **options))


def colours(noise: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """A hue for each direction from the middle."""
    angle = np.arctan2(noise[:, 1], noise[:, 0])
    return 0.5 + 0.38 * np.cos(angle[:, None] - 2 * np.pi * np.arange(3) / 3)


if __name__ == "__main__":
    command(main, Config, __doc__)
