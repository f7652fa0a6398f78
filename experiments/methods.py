"""The methods that `compare.py` puts side by side, and their options on each data set.

Equal are data, width and depth, batch, schedule and number of training steps or time. What a method needs beside its own
training is trained within its budget: where there is a teacher, or pairs are made, both phases have half of it each. Making
pairs counts in a budget of time, and not in one of steps. `shortcut-original` has the original's steps, share of bootstrap
rows, embedding and average; learning rate and schedule are those of all.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import toy2d
from eqx_shortcut.experiment.config import Config
from eqx_shortcut.objectives import OBJECTIVES
from fashion_mnist import DRIFTING, OF_SETS

EXPERIMENTS = pathlib.Path(__file__).parent
TEACHER = "flow-matching"
ALIKE = "--objective.bootstrap-weight 1"
ORIGINAL = f"--objective.steps 128 --objective.bootstrap-every 8 {ALIKE} --network.embed-scale 1 --ema-decay 0.999"


SUCCESSORS = (
    "mean-flow improved-mean-flow esc alpha-flow so-flow split-mean-flow lagrangian terminal-velocity eulerian progressive-map "
    "inductive-moment-matching"
).split()


TAUGHT = "mean-flow alpha-flow lagrangian eulerian".split()
"""Those that take a velocity from a teacher as well as from the data."""
ON_DATA = "flow-matching shortcut mean-flow improved-mean-flow".split()
"""Those that are trained once more with a network that answers data."""
AFTER = "frechet reward".split()
"""Those that go on from another method."""
SETS = "sinkhorn-flow drifting".split()
"""Those of one step alone."""
ON_SETS = (
    f"--objective.groups {OF_SETS.groups} --batch {DRIFTING.batch} --optimizer.lr {DRIFTING.optimizer.lr:g} "
    f"--optimizer.warmup {DRIFTING.optimizer.warmup} --quality.steps 1"
)
"""What these are told: ten sets of images, one of each class, at the small rate of a model that goes on."""


class Method(NamedTuple):
    """A row of the table."""

    arguments: str
    """Options of the experiment."""
    teacher: bool = False
    """Whether it distils a flow-matching model."""
    pairs: bool = False
    """Whether it starts from a flow-matching model and trains on pairs of noise and that model's samples."""
    goes_on: str | None = None
    """Options of the flow-matching model that it starts from, on the same data; None: it starts from scratch."""
    last: float = 0.5
    """The last phase's share of the budget, where there are two."""

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of the budget of its trainings, one after another."""
        return (1 - self.last, self.last) if self.teacher or self.pairs or self.goes_on is not None else (1.0,)


@dataclasses.dataclass(frozen=True)
class Setting:
    """A data set and its options."""

    script: str
    """The experiment."""
    words: tuple[str, ...]
    """The options that choose its preset."""
    methods: dict[str, Method]
    """The methods by name, in the order of the table."""
    pairs: int
    """Pairs that reflow trains on."""
    grid: int
    """Steps on the finest grid: of the methods that have one, and of the sampler that makes pairs."""
    features: str = ""
    """Features in which samples are judged beside pixels (--quality.features)."""
    pictures: bool = True
    """Samples are images."""
    measure: str = "frechet"
    """The measure in the figure and in the first table."""
    whole: bool = False
    """Each phase of a method has the budget of one."""


def steady(name: str, limit: float | None = None) -> str:
    """The network options of a method at continuous step sizes: sinusoids no faster than it tolerates, or than `limit`."""
    limit = limit or OBJECTIVES[name].embed_scale_limit
    return "--network.step linear" + ("" if limit is None else f" --network.embed-scale {limit:g}")


def taught(name: str) -> Method:
    """A method that distils a flow-matching model with the same network."""
    # By MeanFlow's weight the rows of d = 0, where nothing is left to learn, outweigh those with a step (docs/weights.md).
    alike = "--objective.power 0 " * (name == "mean-flow")
    return Method(f"objective:{name} --objective.distil {alike}{steady(name)}", teacher=True, goes_on=steady(name))


def of_data(name: str, grid: int) -> str:
    """Options of a method whose network answers data."""
    own = {"flow-matching": f"--objective.steps {grid}", "shortcut": ""}
    return f"--network.predict data {own[name] if name in own else steady(name)}"


def usual(grid: int, std: float, *, flow: str = "", scratch: str = "", fine_tuning: str = "") -> dict[str, Method]:
    """All methods on a data set whose preset is tuned for shortcut models, with `grid` steps on the finest grid.

    `std` is the standard deviation of the data, `flow` what else flow matching and diffusion are told, `scratch` and
    `fine_tuning` what continuous-time consistency is from scratch and from a flow model.
    """
    discrete, consistency = f"--objective.steps {grid}", "continuous-consistency"
    # Its tangent comes in over all of training: once it is in, training undoes itself at these rates.
    told_of_data = f"objective:{consistency} --objective.std {std:g} --objective.warmup-share 1"
    faster = steady(consistency, 10.0)
    return {
        TEACHER: Method(f"objective:flow-matching {discrete} {flow}"),
        "diffusion": Method(f"objective:diffusion --objective.clip 1 {flow}"),
        "shortcut": Method("objective:shortcut"),
        "shortcut-original": Method(f"objective:shortcut {ORIGINAL}"),
        "progressive-distillation": Method(f"objective:progressive-distillation {discrete}", teacher=True),
        "consistency-distillation": Method(f"objective:consistency-distillation {discrete}", teacher=True),
        "consistency-training": Method(f"objective:consistency-training {discrete}"),
        "live-reflow": Method(f"objective:live-reflow {discrete} --objective.bootstrap-every 2"),
        "reflow": Method(f"objective:flow-matching {discrete} {flow}", pairs=True),
        **{name: Method(f"objective:{name} {steady(name)}") for name in SUCCESSORS},
        **{f"{name}-teacher": taught(name) for name in TAUGHT},
        "mid-training": Method("objective:mid-training --network.step linear", teacher=True, goes_on="--network.step linear"),
        **{f"{name}-x": Method(f"objective:{name} {of_data(name, grid)}") for name in ON_DATA},
        consistency: Method(f"{told_of_data} {steady(consistency)} {scratch}"),
        # Its authors' way; at a small rate it tolerates more.
        f"{consistency}-from-flow": Method(f"{told_of_data} {faster} {fine_tuning}", goes_on=faster, last=4 / 15),
        **{name: Method(f"objective:{name} {ON_SETS}", goes_on="") for name in SETS},
    }


def control(grid: int) -> dict[str, Method]:
    """Methods for policies; the continuous ones send a share of their steps to the data, since control lives at one step."""
    seen = "--objective.label-dropout 0"
    discrete = f"--objective.steps {grid}"
    to_data = "mean-flow improved-mean-flow alpha-flow terminal-velocity lagrangian".split()
    return {
        TEACHER: Method(f"objective:flow-matching {discrete} {seen}"),
        "diffusion": Method(f"objective:diffusion --objective.clip 1 --network.predict velocity {seen}"),
        "shortcut": Method("objective:shortcut"),
        # At the preset's rate, 3e-3, both diverge.
        "consistency-distillation": Method(f"objective:consistency-distillation {discrete} --optimizer.lr 1e-3", teacher=True),
        "consistency-training": Method(f"objective:consistency-training {discrete} --optimizer.lr 1e-3"),
        **{name: Method(f"objective:{name} --objective.to-data 0.25 {seen}") for name in to_data},
    }


ABLATIONS = {
    "shortcut": "",
    "shortcut-original": ORIGINAL,
    "shortcut-original-online-targets": f"{ORIGINAL} --objective.no-bootstrap-ema",
    "online-targets": "--objective.no-bootstrap-ema",
    "weight-decay-0.1": "--optimizer.weight-decay 0.1",
    "bootstrap-weight-4": "--objective.bootstrap-weight 4",
    "bootstrap-every-4": "--objective.bootstrap-every 4",
    "bootstrap-every-8": "--objective.bootstrap-every 8",
    "strata-3": "--objective.steps 8",
    "strata-4": "--objective.steps 16",
    "strata-6": "--objective.steps 64",
    "strata-7": "--objective.steps 128",
    "embed-scale-1": "--network.embed-scale 1",
    "embed-scale-10": "--network.embed-scale 10",
    "ema-decay-0.99": "--ema-decay 0.99",
    "ema-decay-0.999": "--ema-decay 0.999",
    "ema-decay-0.999-online-targets": "--ema-decay 0.999 --objective.no-bootstrap-ema",
    "guidance-finest": "--objective.guidance 1.5 --quality.guidance 1.5",
    "guidance-all": "--objective.guidance 1.5 --objective.guide-all --quality.guidance 1.5",
}
"""Shortcut models as the digits' preset has them, but for what is said and that all rows count alike: averages of the weights
as targets, no weight decay, every 2nd row a bootstrap row, 5 step sizes of them (32 steps), inputs times 100, a decay of 0.95
and no guidance."""


def in_the_plane(distribution: str) -> Setting:
    """All objectives on points in the plane, as toy2d.py sets them; those that distil have a teacher of as many steps."""
    also = f"--data.distribution {distribution}"
    methods = {
        name: Method(f"{name} {also}", teacher=config.objective.stages > 0)
        for name, (_, config) in toy2d.PRESETS.items()
        if name not in AFTER
    }
    methods |= {f"{name}-teacher": Method(f"{name} {also} --objective.distil", teacher=True) for name in TAUGHT}
    methods |= {f"{name}-x": Method(f"{name} {also} --network.predict data") for name in ON_DATA}
    # Its teacher has steps of the size at which it asks.
    distilled = methods["consistency-distillation"]
    methods["consistency-distillation"] = distilled._replace(goes_on="--objective.steps 32")
    return Setting("toy2d", (), methods, 0, 128, measure="sliced_wasserstein", whole=True, pictures=False)


SETTINGS = {
    "toy2d": in_the_plane("eight-gaussians"),
    "toy2d-moons": in_the_plane("moons"),
    "digits": Setting(
        "digits",
        (),
        usual(32, 0.752, flow="--optimizer.lr 4e-3", fine_tuning="--optimizer.lr 1e-3"),
        pairs=4000,
        grid=32,
    ),
    "digits-ablations": Setting(
        "digits",
        (),
        {name: Method(f"objective:shortcut {ALIKE} {words}") for name, words in ABLATIONS.items()},
        pairs=4000,
        grid=32,
    ),
    "fashion-mnist": Setting(
        "fashion_mnist",
        ("quick",),
        # At the preset's rate continuous-time consistency draws noise, and loses what a flow model has learnt.
        usual(32, 0.706, scratch="--optimizer.lr 2e-3", fine_tuning="--optimizer.lr 1e-3"),
        pairs=4000,
        grid=32,
        features="experiments/features/fashion_mnist.safetensors",
        measure="classifier Frechet distance",
    ),
    "push-t": Setting("push_t", (), control(32), pairs=0, grid=32, pictures=False, measure="score"),
    # Not yet run: there was no GPU.
    "cifar10": Setting(
        "cifar10",
        ("compare",),
        usual(128, 0.5),
        pairs=20_000,
        grid=128,
        features="efficientnet",
        measure="FD-EffNetLite0",
    ),
}


def parsed(setting: Setting, method: Method) -> Config:
    """The settings that a method is trained with, as its experiment reads them."""
    return settings_of(setting.script, [*setting.words, *method.arguments.split()])


def settings_of(experiment: str, words: Sequence[str]) -> Config:
    """The settings that an experiment reads from the words of its command line."""
    return importlib.import_module(experiment).EXPERIMENT.parse(words)
