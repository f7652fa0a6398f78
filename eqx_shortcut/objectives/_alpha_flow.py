"""Alpha-Flow and its relatives as objectives.

Each is its own target, under the same dropout mask: in units of a small `alpha` the difference of two masks would outweigh
what is learned.
"""

import dataclasses
from functools import partial
from typing import ClassVar

from jaxtyping import PRNGKeyArray

from .. import losses, times, weights
from ..guidance import Guidance
from ..ranges import Count, Finite, NotNegative, Positive, PositiveShare, Share
from ..rows import check_divides, check_groups
from ..types import Batch, Field, Number, Weigh
from ._base import Loss, Networks, Objective, OnField, stopped
from ._pairs import LogitNormalTimes, OnPairs, Taught


@dataclasses.dataclass(frozen=True)
class AlphaFlow(LogitNormalTimes, Taught):
    """Alpha-Flow (Zhang et al. 2025): from flow matching of the trajectory to MeanFlow, by the share of the first step."""

    start: Finite = 0.25
    """Share of training at which alpha begins to fall from 1."""
    stop: Finite = 0.75
    """Share of training at which it has fallen to 0."""
    sharpness: Positive = 12.0
    """Steepness of the sigmoid by which it falls (more than 0)."""
    snap: Share = 0.005
    """Alpha is 0 where the sigmoid is below this: MeanFlow (0 to 1)."""
    clip: Positive | None = None
    """Limit of targets, in units of the data; where it cuts one, the bias is in inverse proportion to alpha (more than 0)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        alpha = times.sigmoid_fall(progress, start=self.start, stop=self.stop, sharpness=self.sharpness, snap=self.snap)
        target, options = stopped(field), self.options(networks, progress)
        return losses.alpha_flow(field, batch, key, target=target, alpha=alpha, clip=self.clip, **options)

    def weigh(self, networks: Networks) -> tuple[Weigh, ...]:
        """The adaptive weight, at a power of 0 too: it measures errors in units of alpha."""
        return (weights.Adaptive(self.power, self.eps),)

    def check(self, batch: int) -> None:
        """Raises ValueError unless the batch has rows of both kinds and alpha begins to fall before it has fallen."""
        super().check(batch)
        if not self.start < self.stop:
            raise ValueError(
                f"start={self.start} is not before stop={self.stop}, between which alpha falls: use a smaller start"
            )


@dataclasses.dataclass(frozen=True)
class SplitMeanFlow(LogitNormalTimes, OnPairs):
    """SplitMeanFlow (Guo et al. 2025): a step is one of a random share and one of the rest; no tangent."""

    power: NotNegative = 0.0
    clip: Positive | None = None
    """Limit of targets, in units of the data (more than 0)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        target, options = stopped(field), self.options(networks, progress)
        return losses.split_mean_flow(field, batch, key, target=target, clip=self.clip, **options)


@dataclasses.dataclass(frozen=True)
class SoFlow(LogitNormalTimes, OnPairs):
    """SoFlow (2025): alpha-Flow at a small alpha that falls by equal factors; no tangent."""

    first: PositiveShare = 0.1
    """Alpha at the start of training (more than 0, at most 1)."""
    last: PositiveShare = 0.002
    """Alpha at its end (more than 0, at most 1)."""
    time_mean: Finite = -0.2
    """Mean of the normal variable whose sigmoid is the start of a step; a positive one favours the data."""
    time_std: NotNegative = 0.8
    end_mean: Finite | None = 1.0
    """The same mean for the end of a step; None: start and end from one distribution, sorted."""
    end_std: NotNegative = 0.8
    """Standard deviation of that normal variable (0 or more)."""
    velocity_mean: Finite = 0.2
    """The same mean for the times of rows of d = 0."""
    velocity_std: NotNegative = 1.0
    """Standard deviation of that normal variable (0 or more)."""
    clip: Positive | None = None
    """Limit of targets, in units of the data; where it cuts one, the bias is in inverse proportion to alpha (more than 0)."""

    @property
    def velocity_times(self) -> times.Times:
        """Logit-normal, or uniform."""
        own = partial(times.logit_normal, mean=self.velocity_mean, std=self.velocity_std)
        return times.uniform if self.uniform_velocity else own

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        alpha, options = times.exponential_fall(progress, first=self.first, last=self.last), self.options(networks, progress)
        return losses.so_flow(field, batch, key, target=stopped(field), alpha=alpha, clip=self.clip, **options)

    def weigh(self, networks: Networks) -> tuple[Weigh, ...]:
        """SoFlow's weights: errors are compared as means, and rows of a step count half."""
        return weights.Adaptive(self.power, self.eps, mean=True), weights.Steps(0.5)


@dataclasses.dataclass(frozen=True)
class InductiveMomentMatching(OnField, Objective):
    """IMM (Zhou et al. 2025): steps to one time from two times of the same lines agree as sets, by a kernel."""

    continuous: ClassVar[bool] = True
    embed_scale_limit: ClassVar[float | None] = 10.0
    particles: Count = 4
    """Rows that share their times and are compared as a set; must divide the batch (1 or more)."""
    halvings: Count = 12
    """The two times differ by 160 / 2^halvings in noise over data (1 or more)."""
    to_data: Share = 0.0
    """Share of the sets whose steps go all the way to the data, as one-step samples do (0 to 1)."""
    label_dropout: Share = 0.1
    """Probability of hiding a row's label, which guidance needs (0 to 1)."""
    groups: Count | None = None
    """Sets of one class each in a batch, so that particles share a class; must divide it; None: random rows (1 or more)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        pairs = times.to_end(times.uniform_steps, self.to_data) if self.to_data else times.uniform_steps
        loss = partial(losses.inductive_moment_matching, particles=self.particles, halvings=self.halvings, pairs=pairs)
        return loss(field, batch, key, target=stopped(field), guidance=Guidance(networks.null, self.label_dropout))

    def check(self, batch: int) -> None:
        """Raises ValueError unless the batch, and of a batch of sets of one class each of them, consists of whole sets."""
        check_groups(batch, self.groups or 1)
        check_divides(batch // (self.groups or 1), self.particles, "particles")
