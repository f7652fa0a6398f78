"""The settings of an experiment: everything its command line offers."""

import dataclasses
import functools
import operator
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import numpy as np
import tyro

from .. import ema, objectives, storage
from ..cli import Place
from ..data import Source
from ..models.network import NetworkConfig
from ..objectives import OBJECTIVES, Objective
from ..optimizer import AdamW, Muon

if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective = functools.reduce(
        operator.or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in OBJECTIVES.items())
    )

AnyOptimizer = Annotated[AdamW, tyro.conf.subcommand("adamw")] | Annotated[Muon, tyro.conf.subcommand("muon")]


def named(objective: Objective) -> str:
    """The name of its subcommand, by which its runs are called."""
    return objectives.named(type(objective))


@dataclasses.dataclass(frozen=True)
class Quality:
    """How samples are judged at the end of a run."""

    steps: tuple[int, ...] = (1, 2, 4, 8, 32, 128)
    """Numbers of sampling steps; none: samples are not judged."""
    count: int = 10_000
    """Samples for each; their labels are those of the first so many training images."""
    guidance: float = 1.0
    """Guidance scale of the samples."""
    batch: int = 512
    """Samples computed at once."""
    seed: int = 0
    """Seed of the noise."""
    features: str | None = None
    """Features in which they are judged too, beside pixels, with KID, precision and recall: what eqx-shortcut evaluate takes as
    --features."""

    def __post_init__(self):
        if min(self.steps, default=1) < 1:
            raise ValueError(f"--quality.steps {' '.join(map(str, self.steps))}: use 1 or more, or none to judge nothing")
        if self.count < 2:
            raise ValueError(f"--quality.count {self.count}: a distance needs 2 samples or more")
        if self.batch < 1:
            raise ValueError(f"--quality.batch {self.batch}: use 1 or more")


@dataclasses.dataclass(frozen=True)
class Figures:
    """What is measured and drawn during a run, without changing it."""

    every: int | None = None
    """Steps between validation losses, squared errors, pictures of denoising and distances; by default --sample-every."""
    batches: int = 4
    """Held-out batches for all of these but distances; 0: none of these."""
    times: int = 8
    """Times at which the squared error of each step size is measured, at most."""
    guidance: float = 1.0
    """Guidance scale of a second picture of samples, and of one more distance; 1: neither."""
    count: int = 0
    """Samples for each distance to the training images; 0: none is measured."""
    steps: tuple[int, ...] = (1, 4, 32, 128)
    """Numbers of sampling steps of these distances."""

    def __post_init__(self):
        for field, lowest in (("every", 1), ("batches", 0), ("times", 1)):
            value = getattr(self, field)
            if value is not None and value < lowest:
                raise ValueError(f"--figures.{field} {value}: use {lowest} or more")
        if self.count < 0 or self.count == 1:
            raise ValueError(f"--figures.count {self.count}: a distance needs 2 samples or more; 0 measures none")
        if self.count and min(self.steps, default=0) < 1:
            raise ValueError(f"--figures.steps {' '.join(map(str, self.steps))}: name numbers of 1 or more")


@dataclasses.dataclass(frozen=True)
class Checkpointing:
    """When the state is written, and how long it is kept."""

    every: int = 1000
    """Steps between checkpoints."""
    minutes: float | None = 10.0
    """Minutes after which one is written in between: what a machine that dies costs, at most; None: by steps alone."""
    keep: int = 3
    """Checkpoints kept, the newest."""
    milestones: int | None = None
    """Steps between checkpoints that are kept for ever, beside the newest."""

    def __post_init__(self):
        for field in ("every", "keep", "milestones"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"--checkpoint.{field} {value}: use 1 or more")
        if self.minutes is not None and not self.minutes > 0:
            raise ValueError(f"--checkpoint.minutes {self.minutes:g}: use more than 0, or None to go by steps alone")


@dataclasses.dataclass(frozen=True)
class Averages:
    """Averages of the weights by a power of the step, of which averages of any width are made afterwards."""

    sigma_rel: tuple[float, ...] = ()
    """Their widths: standard deviations over the length of the training so far, 0.05 0.1 as a rule; none: none is kept."""
    every: int | None = None
    """Steps between snapshots of them in half precision, all of which stay; by default a 32nd of the run."""

    def __post_init__(self):
        for width in self.sigma_rel:
            ema.gamma_of(width)
        if len({f"{width:g}" for width in self.sigma_rel}) < len(self.sigma_rel):
            raise ValueError(f"--averages.sigma-rel {' '.join(map(str, self.sigma_rel))}: name each width once")
        if self.every is not None and self.every < 1:
            raise ValueError(f"--averages.every {self.every}: use 1 or more")


@dataclasses.dataclass(frozen=True)
class Health:
    """What of a run's numbers is watched, without changing them."""

    norms: int | None = None
    """Steps between records of the norms of weights, gradient and update by layer; None: none. Such a step takes twice its
    time."""
    spike: float | None = None
    """The run ends when loss or norm of the gradient exceed so many times their median, or are not finite, for PATIENCE steps
    in a row; None: never."""
    patience: int = 5
    """Steps in a row that make a spike."""

    def __post_init__(self):
        for field in ("norms", "patience"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ValueError(f"--health.{field} {value}: use 1 or more")
        if self.spike is not None and not self.spike > 1:
            raise ValueError(f"--health.spike {self.spike:g}: use more than 1, which is the median itself")


@dataclasses.dataclass(frozen=True)
class Mesh:
    """How the devices share the work."""

    data: int | None = None
    """Groups of devices that see different images; by default as many as the other two leave."""
    fsdp: int | None = None
    """Devices that share weights, average and moments, a part on each, and see different images too; by default 1, or all of
    a host where the state would take more than half of a device."""
    tensor: int = 1
    """Devices that share the heads of attention and the width of the MLPs of the same images."""

    def __post_init__(self):
        for field in ("data", "fsdp", "tensor"):
            size = getattr(self, field)
            if size is not None and size < 1:
                raise ValueError(f"--mesh.{field} {size}: use 1 or more")


@dataclasses.dataclass(frozen=True)
class Processes:
    """Where the processes of one run find each other; srun, mpirun (Open MPI) and TPU pods need none of it."""

    coordinator: str | None = None
    """HOST:PORT of the first process; the others reach it there. Like JAX_COORDINATOR_ADDRESS."""
    count: int = 1
    """Number of processes, over all hosts. Like JAX_NUM_PROCESSES."""
    number: int = 0
    """Number of this one, from 0. Like JAX_PROCESS_ID."""

    def __post_init__(self):
        if self.coordinator is None and (self.count, self.number) != (1, 0):
            raise ValueError(
                f"--processes.count {self.count} --processes.number {self.number}: name the first process by "
                "--processes.coordinator HOST:PORT"
            )
        if not 0 <= self.number < self.count:
            raise ValueError(f"--processes.number {self.number}: use 0 to {self.count - 1}, one for each process")

    @property
    def environment(self) -> dict[str, str]:
        """The same as JAX's environment variables; empty if no process is named."""
        if self.coordinator is None:
            return {}
        names = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
        return dict(zip(names, (self.coordinator, str(self.count), str(self.number)), strict=True))


@dataclasses.dataclass(frozen=True)
class WandB:
    """Weights & Biases."""

    enabled: bool = False
    """Log there too (needs the extra `wandb`)."""
    project: str = "eqx_shortcut"
    """Project of the run."""
    offline: bool = False
    """Keep the record in the run folder instead of sending it."""


Data = TypeVar("Data", bound=Source | None)
Network = TypeVar("Network", bound=NetworkConfig)
Method = TypeVar("Method", bound=Objective)


@dataclasses.dataclass(frozen=True)
class Config(Generic[Data, Network, Method]):
    """Train, sample and judge. The same command again continues the run where it stopped."""

    data: Data
    """Where the data come from."""
    network: Network
    """Size and options of the network."""
    objective: Method
    """What is trained."""
    optimizer: AnyOptimizer
    """How it is trained."""
    steps: int = 10_000
    """Training steps."""
    batch: int = 128
    """Images a step, over all devices."""
    accumulate: int = 1
    """Parts in which a batch goes through the network, one after another: the same loss and gradient in less memory."""
    ema_decay: float = 0.999
    """Decay a step of the average of the weights."""
    averages: Averages = Averages()
    """More averages of the weights, for after the run."""
    unconditional: bool = False
    """Hide all labels."""
    teacher: Place | None = None
    """Run folder of the network to distil; the new network starts from its weights, unless --init-from names others."""
    init_from: Place | None = None
    """Run folder whose weights the network starts from."""
    pairs: Place | None = None
    """Folder of (noise, sample) pairs, made by eqx-shortcut pairs, to train on instead of the images: reflow."""
    overfit: int | None = None
    """Train on the first N examples only: a network that cannot learn them by heart has a defect."""
    mesh: Mesh = Mesh()
    """How the devices share the work."""
    processes: Processes = Processes()
    """Where the processes of one run find each other."""
    workers: int = 0
    """Processes that read the data; 0 is a thread."""
    seed: int = 0
    """Seed of initialisation, data order and every draw."""
    name: str | None = None
    """Name of the run; by default that of the objective."""
    runs: Place = pathlib.Path("runs")
    """Folder of all runs: this one lies in RUNS/EXPERIMENT/NAME."""
    log_every: int = 10
    """Steps between records of metrics."""
    sample_every: int = 1000
    """Steps between pictures of samples."""
    checkpoint: Checkpointing = Checkpointing()
    """When the state is written, and how long it is kept."""
    health: Health = Health()
    """What of the run's numbers is watched."""
    figures: Figures = Figures()
    """What is measured and drawn during the run."""
    quality: Quality = Quality()
    """How samples are judged at the end."""
    tensorboard: bool = False
    """Log to TensorBoard too (needs the extra `tensorboard`)."""
    wandb: WandB = WandB()
    """Log to Weights & Biases too."""
    profile: str | None = None
    """A:B writes a trace of steps A to B into the run folder, for TensorBoard's profiler or XProf."""
    dry_run: bool = False
    """Print the settings and what they cost, and do nothing."""
    replay: int | None = None
    """Compute this step of the run again from the checkpoint before it, print its layers, and write nothing."""

    def __post_init__(self):
        for field in ("steps", "batch", "accumulate", "log_every", "sample_every", "replay"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ValueError(f"--{field.replace('_', '-')} {value}: use 1 or more")
        for field in ("seed", "workers"):
            if getattr(self, field) < 0:
                raise ValueError(f"--{field} {getattr(self, field)}: use 0 or more")
        if self.overfit is not None and self.overfit < 1:
            raise ValueError(f"--overfit {self.overfit}: use 1 or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay {self.ema_decay}: use a number from 0 to below 1")
        if self.profile is not None:
            profiled(self.profile)

    def folder(self, experiment: str) -> storage.Path:
        """RUNS/EXPERIMENT/NAME."""
        return self.runs / experiment / (self.name or named(self.objective))


def profiled(steps: str) -> tuple[int, int]:
    """First and last step of `A:B`; raises ValueError unless they are numbers with 1 <= A <= B."""
    first, _, last = steps.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile {steps}: name the first and the last step, from 1 on, as in 10:12")
    return int(first), int(last)


UNRECORDED = ("kind", "runs", "name", "processes", "dry_run", "replay", "profile")
"""What a run's config.json does not keep of its settings."""

Judge = Callable[[Any, np.ndarray, np.ndarray], dict[str, float]]
"""More measures of images in [-1, 1]: (training images as their source builds them, images, their labels) -> named numbers."""
