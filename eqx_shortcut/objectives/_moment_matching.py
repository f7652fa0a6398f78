"""Inductive moment matching as an objective."""

import dataclasses
from typing import ClassVar

from jaxtyping import PRNGKeyArray

from .. import losses, times
from ..guidance import Guidance
from ..ranges import Count, Share
from ..rows import check_divides
from ..types import Batch, Field, Number
from ._base import Loss, Networks, Objective, OnField, stopped


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

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        pairs = times.to_end(times.uniform_steps, self.to_data) if self.to_data else times.uniform_steps
        return losses.inductive_moment_matching(
            field,
            batch,
            key,
            target=stopped(field),
            particles=self.particles,
            halvings=self.halvings,
            pairs=pairs,
            guidance=Guidance(networks.null, self.label_dropout),
        )

    def check(self, batch: int) -> None:
        """Raises ValueError unless the batch consists of whole sets."""
        check_divides(batch, self.particles, "particles")
