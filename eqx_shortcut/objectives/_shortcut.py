"""Shortcut models and progressive distillation as objectives: one step equals two half steps."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import losses, times, weights
from ..guidance import Guidance, guided
from ..models.field import NetworkField
from ..ranges import NotNegative, Positive, Several, Share
from ..types import Batch, Field, Number
from ._base import AtStep, Loss, Networks, Objective, OnField, Term, stopped


@dataclasses.dataclass(frozen=True)
class Shortcut(OnField, Objective):
    """Shortcut models (Frans et al. 2024): flow matching, and one step equals two half steps."""

    steps: Several = 128
    """Finest number of steps, a power of two (2 or more)."""
    bootstrap_every: Several = 8
    """One row in this many is a bootstrap row; must divide the batch (2 or more)."""
    bootstrap_weight: Positive = 1.0
    """What a bootstrap row counts beside a flow row; more favours few steps (more than 0)."""
    bootstrap_ema: bool = True
    """Bootstrap targets from the average of the weights; False: from the weights themselves."""
    guidance: NotNegative = 1.0
    """Guidance scale inside the bootstrap targets of the finest step; 1 is none (0 or more)."""
    guide_all: bool = False
    """Guide those of every step size, which then add to what they inherit."""
    dt_bias: bool = False
    """Half of the bootstrap rows for d = 1 and d = 1/2."""
    label_dropout: Share = 0.1
    """Probability of hiding a flow row's label (0 to 1)."""
    clip: Positive | None = 4.0
    """Limit of bootstrap points and targets, in units of the data (more than 0)."""

    @property
    def velocity_step(self) -> float:
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.shortcut(
            field,
            batch,
            key,
            target=NetworkField(networks.ema if self.bootstrap_ema else stopped(networks.online)),
            steps=self.steps,
            bootstrap_every=self.bootstrap_every,
            guidance=Guidance(networks.null, self.label_dropout, self.guidance, all_steps=self.guide_all),
            dt_bias=self.dt_bias,
            clip=self.clip,
            weigh=() if self.bootstrap_weight == 1 else (weights.Steps(self.bootstrap_weight, least=1 / self.steps),),
        )

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """Flow matching, and two half steps at each larger step size; guidance applies to the smallest step size, or to all."""
        target = NetworkField(networks.ema if self.bootstrap_ema else networks.online)
        share, sections = 1 / self.bootstrap_every, 2 ** jnp.arange(times.log2_steps(self.steps))

        def bootstrap(sections, scale):
            guidance = Guidance(networks.null, scale=scale)
            return Term(
                "bootstrap", share, sections, partial(losses.bootstrap_target, target, guidance=guidance, clip=self.clip)
            )

        flow = Term("flow", 1 - share, jnp.array([self.steps]), losses.flow_target)
        if self.guidance == 1 or self.guide_all or len(sections) == 1:
            return flow, bootstrap(sections, self.guidance)
        return flow, bootstrap(sections[-1:], self.guidance), bootstrap(sections[:-1], 1.0)

    def check(self, batch: int) -> None:
        """Every step size needs a bootstrap row."""
        losses.check_strata(batch, self.steps, self.bootstrap_every, dt_bias=self.dt_bias)

    def sampling(self, network: Any) -> Field:
        """The network at `d`, but never finer than `1/steps`, which is the finest it was trained at."""
        return AtStep(NetworkField(network), 1 / self.steps)

    def guides(self, steps: int) -> bool:
        """At the finest step only, if trained with guidance, which larger steps then contain."""
        return self.guidance == 1 or steps >= self.steps


@dataclasses.dataclass(frozen=True)
class ProgressiveDistillation(OnField, Objective):
    """Progressive distillation (Salimans and Ho 2022): half as many steps in each stage, down to one."""

    hides_labels: ClassVar[bool] = False
    steps: Several = 128
    """Steps of the first teacher, a power of two; there are log2(steps) stages (2 or more)."""
    guidance: NotNegative = 1.0
    """Guidance scale of the first teacher, which all later ones contain; 1 is none (0 or more)."""
    teacher_ema: bool = True
    """Each stage's teacher is the average of the weights; False: the weights themselves."""
    clip: Positive | None = 4.0
    """Limit of the point between the teacher's two steps, in units of the data (more than 0)."""

    @property
    def stages(self) -> int:
        return times.log2_steps(self.steps)

    @property
    def teacher_step(self) -> float:
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        teacher, level = self._teacher(networks, progress), self._level(progress)
        return losses.progressive_distillation(field, batch, key, teacher=teacher, level=level, clip=self.clip)

    def _level(self, progress):
        return self.stages - 1 - times.stage(progress, self.stages)

    def _teacher(self, networks, progress):
        first = times.stage(progress, self.stages) == 0
        scale = 1.0 if self.guidance == 1 else jnp.where(first, self.guidance, 1.0)
        return guided(NetworkField(networks.teacher), scale, networks.null)

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """Two half steps of the teacher at the step size of the stage."""
        target = partial(losses.progressive_target, self._teacher(networks, progress), clip=self.clip)
        return (Term("distillation", 1.0, 2 ** self._level(progress)[None], target),)

    def snapshot(self, networks: Networks) -> Any:
        return networks.ema if self.teacher_ema else networks.online

    def check(self, batch: int) -> None:
        """Any batch will do; `steps` must be a power of two."""
        times.log2_steps(self.steps)

    def sampling(self, network: Any) -> Field:
        """The network at `d`, no finer than `2/steps`, the finest it was trained at."""
        return AtStep(NetworkField(network), 2 / self.steps)
