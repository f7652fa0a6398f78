"""The settings of an experiment: everything its command line offers."""

import dataclasses
import pathlib
from collections.abc import Callable
from typing import Annotated

import numpy as np
import tyro

from eqx_shortcut.data import CIFAR10, Digits, FashionMNIST, Images
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import (
    ConsistencyDistillation,
    ConsistencyTraining,
    Diffusion,
    FlowMatching,
    LiveReflow,
    ProgressiveDistillation,
    Shortcut,
)
from eqx_shortcut.optimizer import AdamW

AnyObjective = (
    Annotated[Shortcut, tyro.conf.subcommand("shortcut")]
    | Annotated[FlowMatching, tyro.conf.subcommand("flow-matching")]
    | Annotated[ProgressiveDistillation, tyro.conf.subcommand("progressive-distillation")]
    | Annotated[ConsistencyDistillation, tyro.conf.subcommand("consistency-distillation")]
    | Annotated[ConsistencyTraining, tyro.conf.subcommand("consistency-training")]
    | Annotated[LiveReflow, tyro.conf.subcommand("live-reflow")]
    | Annotated[Diffusion, tyro.conf.subcommand("diffusion")]
)
# Each experiment has its own source, so the command line offers that one's options and no choice between them.
AnySource = tyro.conf.AvoidSubcommands[Digits | FashionMNIST | CIFAR10]


@dataclasses.dataclass(frozen=True)
class Quality:
    """How samples are judged at the end of a run."""

    steps: tuple[int, ...] = (1, 2, 4, 8, 32, 128)
    """Numbers of sampling steps."""
    count: int = 10_000
    """Samples for each; their labels are those of the first so many training images."""
    guidance: float = 1.0
    """Guidance scale of the samples."""
    batch: int = 512
    """Samples computed at once."""
    seed: int = 0
    """Seed of the noise."""

    def __post_init__(self):
        if not self.steps or min(self.steps) < 1:
            raise ValueError(f"--quality.steps {' '.join(map(str, self.steps))}: give at least one number, each 1 or more")
        if self.count < 2:
            raise ValueError(f"--quality.count {self.count}: a distance needs 2 samples or more")
        if self.batch < 1:
            raise ValueError(f"--quality.batch {self.batch}: use 1 or more")


@dataclasses.dataclass(frozen=True)
class WandB:
    """Weights & Biases."""

    enabled: bool = False
    """Log there too (needs the extra `wandb`)."""
    project: str = "eqx_shortcut"
    """Project of the run."""
    offline: bool = False
    """Keep the record in the run folder instead of sending it."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Train, sample and judge. The same command again continues the run where it stopped."""

    data: AnySource
    """Where the images come from."""
    network: DiTConfig
    """Size and options of the network."""
    objective: AnyObjective
    """What is trained."""
    optimizer: AdamW
    """How it is trained."""
    steps: int = 10_000
    """Training steps."""
    batch: int = 128
    """Images a step, over all devices."""
    ema_decay: float = 0.999
    """Decay a step of the average of the weights."""
    unconditional: bool = False
    """Hide all labels."""
    teacher: pathlib.Path | None = None
    """Run folder of the network to distil; the new network starts from its weights, unless --init-from names others."""
    init_from: pathlib.Path | None = None
    """Run folder whose weights the network starts from."""
    pairs: pathlib.Path | None = None
    """Folder of (noise, sample) pairs, made by make_pairs.py, to train on instead of the images: reflow."""
    seed: int = 0
    """Seed of initialisation, data order and every draw."""
    name: str | None = None
    """Name of the run; by default that of the objective."""
    runs: pathlib.Path = pathlib.Path("runs")
    """Folder of all runs: this one lies in RUNS/EXPERIMENT/NAME."""
    log_every: int = 10
    """Steps between records of metrics."""
    sample_every: int = 1000
    """Steps between pictures of samples."""
    checkpoint_every: int = 1000
    """Steps between checkpoints."""
    keep: int = 3
    """Checkpoints kept, the newest."""
    quality: Quality = Quality()
    """How samples are judged at the end."""
    tensorboard: bool = False
    """Log to TensorBoard too (needs the extra `tensorboard`)."""
    wandb: WandB = WandB()
    """Log to Weights & Biases too."""

    def __post_init__(self):
        for field in ("steps", "batch", "log_every", "sample_every", "checkpoint_every", "keep"):
            if getattr(self, field) < 1:
                raise ValueError(f"--{field.replace('_', '-')} {getattr(self, field)}: use 1 or more")
        if self.seed < 0:
            raise ValueError(f"--seed {self.seed}: use 0 or more")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"--ema-decay {self.ema_decay}: use a number from 0 to below 1")


Judge = Callable[[Images, np.ndarray, np.ndarray], dict[str, float]]
"""More measures of images in [-1, 1]: (training images, images, their labels) -> named numbers."""
