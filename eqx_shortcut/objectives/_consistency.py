"""Consistency models as objectives, and the mid-training that comes before one."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import losses, samplers, times
from ..guidance import Guidance, guided
from ..models.field import NetworkField
from ..ranges import Count, NotNegative, Positive, Several, Share
from ..rows import check_divides
from ..types import Batch, Cond, Field, Number, Points
from ._base import Loss, Networks, Objective, OnField, Term, ToData


class _Consistency(OnField, Objective):
    """A base of consistency models, which predict the data from any time and sample by jumps to it."""

    hides_labels: ClassVar[bool] = False
    steps: int
    renoise: bool

    def check(self, batch: int) -> None:
        """Raises ValueError unless `steps` is a power of two; any batch is fine."""
        times.log2_steps(self.steps)

    def sampling(self, network: Any) -> Field:
        """The network at `d = 1 - t`, no finer than the last step of a grid on which it was trained."""
        return ToData(NetworkField(network), 0.0 if self.continuous else 1 / self.steps)

    def sample(self, field: Field, noise: Points, cond: Cond, *, steps: samplers.Steps, renoise: samplers.Renoise) -> Points:
        """Jumps to the data with new noise between, or Euler steps."""
        if self.renoise:
            return samplers.consistency(field, noise, cond, steps=steps, renoise=renoise)
        return samplers.euler(field, noise, cond, steps=steps)


@dataclasses.dataclass(frozen=True)
class ConsistencyDistillation(_Consistency):
    """Consistency distillation (Song et al. 2023): the same data from both ends of each step of a teacher."""

    steps: Several = 128
    """Steps of the teacher, a power of two (2 or more)."""
    guidance: NotNegative = 1.0
    """Guidance scale of the teacher; 1 is none (0 or more)."""
    clip: Positive | None = 4.0
    """Limit of the teacher's point, in units of the data (more than 0)."""
    renoise: bool = True
    """Sample with new noise between the steps (the reference's inference); False: by Euler steps (its evaluation)."""

    @property
    def teacher_step(self) -> float:
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        target, teacher = NetworkField(networks.ema), self._teacher(networks)
        options = {"steps": self.steps, "clip": self.clip}
        return losses.consistency_distillation(field, batch, key, target=target, teacher=teacher, **options)

    def _teacher(self, networks):
        return guided(NetworkField(networks.teacher), self.guidance, networks.null)

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """Agreement over one step of the teacher."""
        field, teacher = NetworkField(networks.ema), self._teacher(networks)

        def target(draws):
            return losses.consistency_distillation_target(field, teacher, draws.to_data(), gap=1 / self.steps, clip=self.clip)

        return (Term("consistency", 1.0, jnp.array([self.steps]), target),)


@dataclasses.dataclass(frozen=True)
class ConsistencyTraining(_Consistency):
    """Consistency training (Song et al. 2023): the same data from both ends of a gap on each line, without a teacher."""

    steps: Several = 128
    """The gap falls from 1 to 2/steps over training, by halves at equal intervals; a power of two (2 or more)."""
    renoise: bool = True
    """Sample with new noise between the steps (the reference's inference); False: by Euler steps (its evaluation)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        target = NetworkField(networks.ema)
        return losses.consistency_training(field, batch, key, target=target, level=self._level(progress))

    def _level(self, progress):
        return times.stage(progress, times.log2_steps(self.steps))

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """Agreement over the gap of this share of training."""
        sections = 2 ** self._level(progress)

        def target(draws):
            return losses.consistency_training_target(NetworkField(networks.ema), draws.to_data(), gap=1 / sections)

        return (Term("consistency", 1.0, sections[None], target),)


@dataclasses.dataclass(frozen=True)
class ContinuousConsistency(_Consistency):
    """Continuous-time consistency (Lu and Song 2025), sCT or sCD: the predicted data stay the same along the path."""

    continuous: ClassVar[bool] = True
    embed_scale_limit: ClassVar[float | None] = 1.0
    finite_difference: ClassVar[None] = None
    std: Positive = 0.5
    """Standard deviation of the data (more than 0)."""
    warmup_share: Share = 0.1
    """Share of training over which the network's tangent is warmed up from 0 (0 to 1)."""
    normalise: Positive | None = 0.1
    """Tangents are divided by their root mean square plus this; None leaves them (more than 0)."""
    distil: bool = False
    """Take the path's velocity from a teacher (sCD); False: from the data (sCT)."""
    guidance: NotNegative = 1.0
    """Guidance scale of the teacher; 1 is none (0 or more)."""
    log_variance: bool = True
    """Learn a weight of each t."""
    renoise: bool = True
    """Sample with new noise between the steps; False: by Euler steps."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.continuous_consistency(
            field,
            batch,
            key,
            teacher=NetworkField(networks.teacher) if self.distil else None,
            warmup=jnp.minimum(progress / self.warmup_share, 1) if self.warmup_share else 1.0,
            std=self.std,
            guidance=Guidance(networks.null, scale=self.guidance),
            normalise=self.normalise,
            weigh=() if networks.extra is None else (networks.extra,),
        )

    def check(self, batch: int) -> None:
        """Raises ValueError for guidance without a teacher to guide; any batch is fine."""
        if self.guidance != 1 and not self.distil:
            raise ValueError(f"guidance={self.guidance} guides a teacher, and there is none: use distil, or leave it at 1")


@dataclasses.dataclass(frozen=True)
class MidTraining(_Consistency):
    """Consistency mid-training (CMT, 2025): every point of a teacher's path learns its end. For --init-from."""

    continuous: ClassVar[bool] = True
    autoguides: ClassVar[bool] = True
    distil: ClassVar[bool] = True
    rollout: Count = 16
    """Steps of the teacher's path, of Heun's method; must divide the batch (1 or more)."""
    guidance: NotNegative = 1.0
    """Guidance scale of the teacher; 1 is none (0 or more)."""
    renoise: bool = False
    """Sample with new noise between the steps; False: by Euler steps."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.mid_training(field, batch, key, teacher=networks.teaching(self.guidance), rollout=self.rollout)

    def check(self, batch: int) -> None:
        """Raises ValueError unless the batch consists of whole paths."""
        check_divides(batch, self.rollout, "rollout")
