"""Progressive distillation as an objective."""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import losses, times
from ..guidance import guided
from ..models.field import NetworkField
from ..ranges import NotNegative, Positive, Several
from ..types import Batch, Field, Number
from ._base import AtStep, Loss, Networks, Objective, OnField, Term


@dataclasses.dataclass(frozen=True)
class ProgressiveDistillation(OnField, Objective):
    """Progressive distillation (Salimans and Ho 2022): half as many steps in each stage, down to one."""

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
        """`log2(steps)`."""
        return times.log2_steps(self.steps)

    @property
    def teacher_step(self) -> float:
        """`1/steps`."""
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
        """The average of the weights, or the weights."""
        return networks.ema if self.teacher_ema else networks.online

    def check(self, batch: int) -> None:
        """Any batch will do; `steps` must be a power of two."""
        times.log2_steps(self.steps)

    def sampling(self, network: Any) -> Field:
        """The network at `d`, no finer than `2/steps`, the finest it was trained at."""
        return AtStep(NetworkField(network), 2 / self.steps)

    def guides(self, steps: int) -> bool:
        """Never: no label is hidden in training, so the unlabelled velocity is not known."""
        return False
