"""Alpha-Flow and its relatives as objectives.

Each is its own target, under the same dropout mask: in units of a small `alpha` the difference of two masks would outweigh
what is learned.
"""

import dataclasses

from jaxtyping import Array, Float, PRNGKeyArray

from .. import losses, times
from ..types import Batch, Field
from ._base import Loss, Networks, stopped
from ._pairs import OnLogitNormalPairs, jvp


@dataclasses.dataclass(frozen=True)
class AlphaFlow(OnLogitNormalPairs):
    """Alpha-Flow (Zhang et al. 2025): from flow matching of the trajectory to MeanFlow, by the share of the first step."""

    start: float = 0.25
    """Share of training at which alpha begins to fall from 1."""
    stop: float = 0.75
    """Share of training at which it has fallen to 0."""
    sharpness: float = 12.0
    """Steepness of the sigmoid by which it falls."""
    snap: float = 0.005
    """Alpha is 0 where the sigmoid is below this: MeanFlow."""
    clip: float | None = 4.0
    """Limit of targets, in units of the data."""
    finite_difference: float | None = None
    """Step of central differences in place of the exact tangent; None: exact."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.alpha_flow(
            field,
            batch,
            key,
            target=stopped(field),
            alpha=times.sigmoid_fall(progress, start=self.start, stop=self.stop, sharpness=self.sharpness, snap=self.snap),
            clip=self.clip,
            jvp=jvp(self.finite_difference),
            **self.options(networks, progress),
        )

    def check(self, batch: int) -> None:
        """Rows of both kinds, and a time for alpha to fall."""
        super().check(batch)
        if not self.start < self.stop:
            raise ValueError(
                f"start={self.start} is not before stop={self.stop}, between which alpha falls: use a smaller start"
            )


@dataclasses.dataclass(frozen=True)
class SplitMeanFlow(OnLogitNormalPairs):
    """SplitMeanFlow (Guo et al. 2025): a step is one of a random share and one of the rest; no tangent."""

    power: float = 0.0
    """A row weighs 1 / (error + eps)^power, the error being its summed square; 0: all weigh the same."""
    clip: float | None = 4.0
    """Limit of targets, in units of the data."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        target, options = stopped(field), self.options(networks, progress)
        return losses.split_mean_flow(field, batch, key, target=target, clip=self.clip, **options)


@dataclasses.dataclass(frozen=True)
class SoFlow(OnLogitNormalPairs):
    """SoFlow (2025): alpha-Flow at a small alpha that falls by equal factors; no tangent."""

    first: float = 0.1
    """Alpha at the start of training."""
    last: float = 0.002
    """Alpha at its end."""
    clip: float | None = 4.0
    """Limit of targets, in units of the data."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.so_flow(
            field,
            batch,
            key,
            target=stopped(field),
            alpha=times.exponential_fall(progress, first=self.first, last=self.last),
            clip=self.clip,
            **self.options(networks, progress),
        )
