"""MeanFlow and what came of it as objectives."""

import dataclasses

from jaxtyping import PRNGKeyArray

from .. import losses, times
from ..guidance import Guidance, Scales
from ..models.field import NetworkField
from ..ranges import Count, MoreThanOne, Positive, PositiveShare, Several, Share
from ..rows import check_groups
from ..types import Batch, Cond, Field, Number
from ._base import Loss, Networks
from ._pairs import LogitNormalTimes, OnPairs, Taught, jvp


@dataclasses.dataclass(frozen=True)
class _AlongPath(LogitNormalTimes, Taught):
    """A base of objectives that learn by `losses.mean_flow`."""

    posterior_every: Count | None = None
    """One row in this many regresses the posterior-mean velocity over the batch; None: no row (1 or more)."""
    log_variance: bool = False
    """Learn a weight of each t and d."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.mean_flow(field, batch, key, **self.options(networks, progress))

    def drawn(self, progress: Number) -> losses.Intervals:
        """The intervals of OnPairs, with rows of the posterior mean."""
        return dataclasses.replace(super().drawn(progress), posterior_every=self.posterior_every)

    def check(self, batch: int) -> None:
        """Raises ValueError as OnPairs does, and for posterior means beside a teacher: both stand for the velocity."""
        super().check(batch)
        if self.distil and self.posterior_every is not None:
            raise ValueError(
                f"posterior_every={self.posterior_every} averages velocities of lines, and a teacher answers it: leave it None"
            )


@dataclasses.dataclass(frozen=True)
class MeanFlow(_AlongPath):
    """MeanFlow (Geng et al. 2025): the average velocity from the velocity and one tangent along the path."""


@dataclasses.dataclass(frozen=True)
class ESC(_AlongPath):
    """ESC (2025): MeanFlow with posterior means for half of the rows, steps to the data early, and a learned weight."""

    posterior_every: Count | None = 2
    to_data: Share = 0.5
    """Share of the steps that go all the way to the data at first (0 to 1)."""
    to_data_until: PositiveShare = 1.0
    """Share of training over which to_data falls to 0, as an arccosine; the paper: 0.03, from 1 (more than 0, at most 1)."""
    eps: Positive = 1e-3
    log_variance: bool = True
    groups: Count | None = None
    """Sets of one class each in a batch, over whose lines a mean is taken; must divide it; None: random (1 or more)."""

    def check(self, batch: int) -> None:
        """Raises ValueError as MeanFlow does, and for sets of fewer than two rows."""
        super().check(batch)
        check_groups(batch, self.groups or 1)

    def share_to_data(self, progress: Number) -> Number:
        """The share of steps to the data, which falls to 0 and stays there."""
        return self.to_data * times.arccos_fall(progress, until=self.to_data_until)


@dataclasses.dataclass(frozen=True)
class ImprovedMeanFlow(LogitNormalTimes, OnPairs):
    """Improved MeanFlow (Geng et al. 2025b): the velocity is regressed, the tangent is along the network's own."""

    bootstrap_every: Several = 2
    max_scale: MoreThanOne | None = None
    """Highest guidance scale, from 1 on, that the network learns and is told; None: it learns `guidance` (more than 1)."""
    intervals: bool = False
    """The times of guidance are drawn for each row and told, too; samples are told `interval`."""
    velocity_head: bool = False
    """The network's own velocity is that of its second head, trained beside the first in one more pass."""
    finite_difference: Positive | None = None
    """Step of central differences in place of the exact tangent; None: exact (more than 0)."""

    @property
    def told(self) -> Scales | None:
        """All scales from 1 to the highest, if there is one."""
        return None if self.max_scale is None else Scales(1.0, self.max_scale, self.intervals, self.interval)

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        assert isinstance(field, NetworkField)
        velocity, tangent = field.velocity if self.velocity_head else None, jvp(self.finite_difference)
        options = self.options(networks, progress)
        return losses.improved_mean_flow(field, batch, key, velocity=velocity, jvp=tangent, **options)

    def guided(self, null: Cond = None) -> Guidance:
        """The guidance of OnPairs, or by scales that the network is told."""
        guidance = super().guided(null)
        return guidance if self.told is None else guidance._replace(scale=self.told)

    def check(self, batch: int) -> None:
        """Raises ValueError as MeanFlow does, and for a single scale beside scales that the network is told."""
        super().check(batch)
        if self.max_scale is None:
            if self.intervals:
                raise ValueError("intervals of guidance are told beside its scale, and none is: name the highest as max_scale")
        elif super().guided().inside:
            raise ValueError(
                f"max_scale={self.max_scale}, guidance={self.guidance} and mix={self.mix} do not go together: a highest scale "
                "leaves guidance at 1 and mix at 0"
            )
