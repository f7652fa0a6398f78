"""Flow maps by self-distillation as objectives."""

import dataclasses
from functools import partial
from typing import ClassVar

from jaxtyping import PRNGKeyArray

from .. import losses, times
from ..models.field import NetworkField
from ..ranges import Finite, NotNegative, Proper
from ..types import Batch, Field, Number
from ._base import Loss, Networks, stopped
from ._pairs import OnPairs, Taught


@dataclasses.dataclass(frozen=True)
class _FlowMap:
    """A base beside OnPairs: uniform times, a learned weight."""

    uniform_velocity: bool = True
    power: NotNegative = 0.0
    log_variance: bool = True
    """Learn a weight of each t and d, which is bounded (see weights.LogVariance)."""


def _target(field: Field, networks: Networks, ema: bool) -> Field:
    # The network itself under the same dropout mask.
    return NetworkField(networks.ema) if ema else stopped(field)


@dataclasses.dataclass(frozen=True)
class _AlongStep(_FlowMap, Taught):
    """A base of objectives that learn by `losses.lagrangian`."""

    target_ema: bool = False
    """The velocity at the end from the average of the weights; False: from the weights themselves."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        target = _target(field, networks, self.target_ema)
        return losses.lagrangian(field, batch, key, target=target, **self.options(networks, progress))


@dataclasses.dataclass(frozen=True)
class Lagrangian(_AlongStep):
    """Lagrangian self-distillation (Boffi et al. 2025): the end of a step moves with the velocity at that end."""


@dataclasses.dataclass(frozen=True)
class TerminalVelocity(_AlongStep):
    """Terminal velocity matching (2025): Lagrangian with logit-normal step sizes and the average of the weights.

    The paper's average decays by 0.99: `--ema-decay 0.99`.
    """

    target_ema: bool = True
    gap_mean: Finite = 0.0
    """Mean of the normal variable whose sigmoid is a step size."""
    gap_std: NotNegative = 1.0
    """Standard deviation of that normal variable (0 or more)."""

    @property
    def pairs(self) -> times.Pairs:
        """Logit-normal `d`, and `t` uniform on what it leaves."""
        return partial(times.logit_normal_gaps, mean=self.gap_mean, std=self.gap_std)


@dataclasses.dataclass(frozen=True)
class Eulerian(_FlowMap, Taught):
    """Eulerian self-distillation (Boffi et al. 2025): the average of a step changes as its start moves along the flow."""

    log_variance: bool = False
    stop_tangent: bool = False
    """Stop the gradient through the tangent."""
    stop_space: bool = True
    """Stop the gradient through the tangent's part in x alone."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        stops = {"stop_tangent": self.stop_tangent, "stop_space": self.stop_space}
        return losses.eulerian(field, batch, key, **stops, **self.options(networks, progress))


@dataclasses.dataclass(frozen=True)
class ProgressiveMap(_FlowMap, OnPairs):
    """Progressive self-distillation (Boffi et al. 2025): a step is two, as in shortcut models, at any time and step size."""

    embed_scale_limit: ClassVar[float | None] = None
    share: Proper | None = 0.5
    """Share of the first of the two steps; None: uniform for each row (more than 0, below 1)."""
    target_ema: bool = False
    """The two steps from the average of the weights; False: from the weights themselves."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        target = _target(field, networks, self.target_ema)
        return losses.progressive_map(field, batch, key, target=target, share=self.share, **self.options(networks, progress))
