"""The settings of an experiment: everything its command line offers."""

import dataclasses
import functools
import operator
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Generic, TypeVar

import numpy as np
import tyro

from .. import ema, ranges, storage
from ..cli import Place
from ..data import Source
from ..models.network import NetworkConfig
from ..objectives import OBJECTIVES, Objective, named
from ..optimizer import AdamW, Muon
from ..ranges import BelowOne, Count, Finite, MoreThanOne, Natural, Positive, Several

if TYPE_CHECKING:
    AnyObjective = Objective
else:
    AnyObjective = functools.reduce(
        operator.or_, (Annotated[kind, tyro.conf.subcommand(name)] for name, kind in OBJECTIVES.items())
    )

AnyOptimizer = Annotated[AdamW, tyro.conf.subcommand("adamw")] | Annotated[Muon, tyro.conf.subcommand("muon")]


@dataclasses.dataclass(frozen=True)
class Quality(ranges.Checked):
    """How samples are judged at the end of a run."""

    steps: tuple[Count, ...] = (1, 2, 4, 8, 32, 128)
    """Numbers of sampling steps; none: samples are not judged (1 or more)."""
    count: Several = 10_000
    """Samples for each; their labels are those of the first `count` training images (2 or more)."""
    guidance: Finite = 1.0
    """Guidance scale of the samples."""
    batch: Count = 512
    """Samples computed at once (1 or more)."""
    seed: Natural = 0
    """Seed of the noise (0 or more)."""
    features: str | None = None
    """Features to judge in beside pixels, with KID, precision and recall: the --features of eqx-shortcut evaluate."""


@dataclasses.dataclass(frozen=True)
class Figures:
    """Measurements and pictures during a run; they do not change it."""

    every: Count | None = None
    """Steps between validation losses, errors by time, denoising and distances; by default --sample-every (1 or more)."""
    batches: Natural = 4
    """Held-out batches for all of these but distances; 0: none of these (0 or more)."""
    times: Count = 8
    """Times at which the squared error of each step size is measured, at most (1 or more)."""
    guidance: Finite = 1.0
    """Guidance scale of a second picture of samples, and of one more distance; 1: neither."""
    count: Natural = 0
    """Samples for each distance to the training images; 0: none is measured (0 or more)."""
    steps: tuple[Count, ...] = (1, 4, 32, 128)
    """Numbers of sampling steps of these distances (1 or more)."""

    def __post_init__(self):
        ranges.check(self)
        if self.count == 1:
            raise ValueError(f"--figures.count {self.count}: a distance needs 2 samples or more; 0 measures none")
        if self.count and not self.steps:
            raise ValueError("--figures.steps without a number: name numbers of sampling steps")


@dataclasses.dataclass(frozen=True)
class Checkpointing(ranges.Checked):
    """When the state is written, and how long it is kept."""

    every: Count = 1000
    """Steps between checkpoints (1 or more)."""
    minutes: Positive | None = 10.0
    """Minutes without a checkpoint after which one is written all the same; None: by steps alone (more than 0)."""
    keep: Count = 3
    """Checkpoints kept, the newest (1 or more)."""
    milestones: Count | None = None
    """Steps between checkpoints that are kept for ever, beside the newest (1 or more)."""


@dataclasses.dataclass(frozen=True)
class Averages:
    """Averages of the weights by a power of the step, from which averages of any width can be made after the run."""

    sigma_rel: tuple[Positive, ...] = ()
    """Widths: standard deviations over the length of training so far, such as 0.05 0.1; none: keep none (more than 0)."""
    every: Count | None = None
    """Steps between snapshots in half precision, all of which are kept; by default a 32nd of the run (1 or more)."""

    def __post_init__(self):
        ranges.check(self)
        for width in self.sigma_rel:
            ema.gamma_of(width)
        if len({f"{width:g}" for width in self.sigma_rel}) < len(self.sigma_rel):
            raise ValueError(f"--averages.sigma-rel {' '.join(map(str, self.sigma_rel))}: name each width once")


@dataclasses.dataclass(frozen=True)
class Health(ranges.Checked):
    """Norms and spikes that are watched during a run; they do not change it."""

    norms: Count | None = None
    """Steps between records of norms by layer, each of which doubles its step's time; None: no records (1 or more)."""
    spike: MoreThanOne | None = None
    """End when loss or gradient norm exceeds this many medians for --health.patience steps; None: never (more than 1)."""
    patience: Count = 5
    """Steps in a row that make a spike (1 or more)."""


@dataclasses.dataclass(frozen=True)
class Mesh(ranges.Checked):
    """How the devices share the work."""

    data: Count | None = None
    """Groups of devices that see different images; by default all that the other two leave (1 or more)."""
    fsdp: Count | None = None
    """Devices over which the state is sharded; default: 1, or a host's if it takes over half a device (1 or more)."""
    tensor: Count = 1
    """Devices that share the heads of attention and the width of the MLPs of the same images (1 or more)."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """Where the processes of one run find each other; srun, mpirun (Open MPI) and TPU pods need none of it."""

    coordinator: str | None = None
    """HOST:PORT of the first process; the others reach it there. Like JAX_COORDINATOR_ADDRESS."""
    count: Count = 1
    """Number of processes, over all hosts. Like JAX_NUM_PROCESSES (1 or more)."""
    number: Natural = 0
    """Number of this one, from 0. Like JAX_PROCESS_ID (0 or more)."""

    def __post_init__(self):
        ranges.check(self)
        if self.coordinator is None and (self.count, self.number) != (1, 0):
            raise ValueError(
                f"--processes.count {self.count} --processes.number {self.number}: name the first process by "
                "--processes.coordinator HOST:PORT"
            )
        if self.number >= self.count:
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
    steps: Count = 10_000
    """Training steps (1 or more)."""
    batch: Count = 128
    """Images a step, over all devices (1 or more)."""
    accumulate: Count = 1
    """Parts in which a batch goes through the network in turn: same loss and gradient, less memory (1 or more)."""
    ema_decay: BelowOne = 0.999
    """Decay per step of the average of the weights (0 to below 1)."""
    averages: Averages = Averages()
    """More averages of the weights, for after the run."""
    unconditional: bool = False
    """Hide all labels."""
    noise_scale: Positive = 1.0
    """Standard deviation of the noise in training and sampling: 1, or 2 to 4 for pixels of 512 x 512 (more than 0)."""
    teacher: Place | None = None
    """Run folder of the network to distil; the new network starts from its weights, unless --init-from names others."""
    weak_teacher: Place | None = None
    """Run folder of a worse network of the same kind, which guides the teacher in place of its unconditional field."""
    init_from: Place | None = None
    """Run folder whose weights the network starts from."""
    pairs: Place | None = None
    """Folder of (noise, sample) pairs, made by eqx-shortcut pairs, to train on instead of the images: reflow."""
    overfit: Count | None = None
    """Train on the first N examples only; a network that cannot learn them by heart has a defect (1 or more)."""
    mesh: Mesh = Mesh()
    """How the devices share the work."""
    processes: Processes = Processes()
    """Where the processes of one run find each other."""
    workers: Natural = 0
    """Processes that read the data; 0 is a thread (0 or more)."""
    seed: Natural = 0
    """Seed of initialisation, data order and every draw (0 or more)."""
    name: str | None = None
    """Name of the run; by default that of the objective."""
    runs: Place = pathlib.Path("runs")
    """Folder of all runs: this one lies in RUNS/EXPERIMENT/NAME."""
    log_every: Count = 10
    """Steps between records of metrics (1 or more)."""
    sample_every: Count = 1000
    """Steps between pictures of samples (1 or more)."""
    checkpoint: Checkpointing = Checkpointing()
    """When the state is written, and how long it is kept."""
    health: Health = Health()
    """Norms and spikes that are watched."""
    figures: Figures = Figures()
    """Measurements and pictures during the run."""
    quality: Quality = Quality()
    """How samples are judged at the end."""
    tensorboard: bool = False
    """Log to TensorBoard too (needs the extra `tensorboard`)."""
    wandb: WandB = WandB()
    """Log to Weights & Biases too."""
    profile: str | None = None
    """A:B writes a trace of steps A to B into the run folder, for TensorBoard's profiler or XProf."""
    dry_run: bool = False
    """Print the settings and their cost in memory and work; train nothing."""
    replay: Count | None = None
    """Compute this step of the run again from the checkpoint before it, print its layers, and write nothing (1 or more)."""

    def __post_init__(self):
        ranges.check(self)
        if self.profile is not None:
            profiled(self.profile)

    def folder(self, experiment: str) -> storage.Path:
        """RUNS/EXPERIMENT/NAME."""
        return self.runs / experiment / (self.name or named(type(self.objective)))


def profiled(steps: str) -> tuple[int, int]:
    """First and last step of `A:B`; raises ValueError unless they are numbers with 1 <= A <= B."""
    first, _, last = steps.partition(":")
    if not (first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise ValueError(f"--profile {steps}: name the first and the last step, from 1 on, as in 10:12")
    return int(first), int(last)


UNRECORDED = ("kind", "runs", "name", "processes", "dry_run", "replay", "profile")
"""Settings that config.json leaves out."""

Judge = Callable[[Any, np.ndarray, np.ndarray], dict[str, float]]
"""More measures of images in [-1, 1]: (training images as their source builds them, images, their labels) -> named numbers."""
