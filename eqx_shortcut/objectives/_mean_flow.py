"""MeanFlow and what came of it as objectives."""

import dataclasses
from typing import Any

from jaxtyping import Array, Float, PRNGKeyArray

from .. import losses, times, weights
from ..types import Batch, Field
from ._base import Loss, Networks
from ._pairs import OnLogitNormalPairs, jvp


@dataclasses.dataclass(frozen=True)
class MeanFlow(OnLogitNormalPairs):
    """MeanFlow (Geng et al. 2025): the average velocity from the velocity and one tangent along the path."""

    finite_difference: float | None = None
    """Step of central differences in place of the exact tangent; None: exact."""
    posterior_every: int | None = None
    """One row in this many learns from the mean of all lines of the batch through its point; None: none does."""
    log_variance: bool = False
    """Learn a weight of each t and d."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.mean_flow(
            field,
            batch,
            key,
            pairs=self.pairs(progress),
            posterior_every=self.posterior_every,
            jvp=jvp(self.finite_difference),
            log_variance=networks.extra,
            **self.options(networks),
        )

    def extra(self, key: PRNGKeyArray) -> Any:
        """The logarithm of the error's variance at each `t` and `d`, if it is learned."""
        return weights.LogVariance() if self.log_variance else None


@dataclasses.dataclass(frozen=True)
class ESC(MeanFlow):
    """ESC (2025): MeanFlow with posterior means for half of the rows, steps to the data early, and a learned weight."""

    posterior_every: int | None = 2
    """One row in this many learns from the mean of all lines of the batch through its point; None: none does."""
    early_to_data: float = 0.5
    """Share of steps that go all the way to the data at first; it falls to 0 over training."""
    log_variance: bool = True
    """Learn a weight of each t and d."""

    def pairs(self, progress: Float[Array, ""]) -> times.Pairs:
        """Those of MeanFlow, of which a falling share goes to the data."""
        return times.to_end(super().pairs(progress), self.early_to_data * (1 - progress))


@dataclasses.dataclass(frozen=True)
class ImprovedMeanFlow(OnLogitNormalPairs):
    """Improved MeanFlow (Geng et al. 2025b): the velocity is regressed, the tangent is along the network's own."""

    bootstrap_every: int = 2
    """One row in this many has a step size, the others have d = 0; must divide the batch."""
    finite_difference: float | None = None
    """Step of central differences in place of the exact tangent; None: exact."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        pairs = self.pairs(progress)
        return losses.improved_mean_flow(
            field, batch, key, pairs=pairs, jvp=jvp(self.finite_difference), **self.options(networks)
        )
