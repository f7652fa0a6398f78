"""Consistency mid-training as an objective."""

import dataclasses
from typing import ClassVar

from jaxtyping import PRNGKeyArray

from .. import losses
from ..ranges import Count, NotNegative
from ..rows import check_divides
from ..types import Batch, Field, Number
from ._base import Loss, Networks
from ._consistency import _Consistency


@dataclasses.dataclass(frozen=True)
class MidTraining(_Consistency):
    """Consistency mid-training (CMT, 2025): every point of a teacher's path learns its end. For --init-from."""

    continuous: ClassVar[bool] = True
    autoguides: ClassVar[bool] = True
    rollout: Count = 16
    """Steps of the teacher's path, of Heun's method; must divide the batch (1 or more)."""
    guidance: NotNegative = 1.0
    """Guidance scale of the teacher; 1 is none (0 or more)."""
    renoise: bool = False
    """Sample with new noise between the steps; False: by Euler steps."""

    @property
    def teacher_step(self) -> float:
        """0."""
        return 0.0

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.mid_training(field, batch, key, teacher=networks.teaching(self.guidance), rollout=self.rollout)

    def check(self, batch: int) -> None:
        """Raises ValueError unless the batch consists of whole paths."""
        check_divides(batch, self.rollout, "rollout")
