"""Live reflow as an objective."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import losses
from ..guidance import Guidance
from ..models.field import NetworkField
from ..ranges import Count, NotNegative, Several, Share
from ..rows import check_share
from ..types import Batch, Field, Number
from ._base import AtEnds, AtStep, Loss, Networks, Objective, OnField, Term, stopped


@dataclasses.dataclass(frozen=True)
class LiveReflow(OnField, Objective):
    """Live reflow (Frans et al. 2024): flow matching, and at d = 1 straight lines to where the network itself leads."""

    steps: Count = 128
    """Finest number of steps (1 or more)."""
    bootstrap_every: Several = 8
    """One row in this many is a reflow row; must divide the batch (2 or more)."""
    rollout: Count = 8
    """Euler steps of the network's own path (1 or more)."""
    guidance: NotNegative = 1.0
    """Guidance scale of the path (the reference always guides it, by 4); 1 is none (0 or more)."""
    label_dropout: Share = 0.1
    """Probability of hiding a flow row's label (0 to 1)."""
    trained_steps: bool = True
    """Sample at d = 1 for fewer than `steps` steps (the reference's evaluation); False: at d = 1/N (its inference)."""

    @property
    def velocity_step(self) -> float:
        """`1/steps`."""
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.live_reflow(
            field,
            batch,
            key,
            target=NetworkField(stopped(networks.online)),
            steps=self.steps,
            bootstrap_every=self.bootstrap_every,
            rollout=self.rollout,
            guidance=self._guidance(networks),
        )

    def _guidance(self, networks):
        return Guidance(networks.null, self.label_dropout, self.guidance)

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """Flow matching, and at `d = 1` the lines to where the network leads."""
        share, sections, field = 1 / self.bootstrap_every, jnp.array([self.steps]), NetworkField(networks.online)

        def target(draws):
            whole, guidance = dataclasses.replace(draws, d=jnp.ones_like(draws.d)), self._guidance(networks)
            return losses.live_reflow_target(field, whole, steps=self.steps, rollout=self.rollout, guidance=guidance)

        return Term("flow", 1 - share, sections, losses.flow_target), Term("reflow", share, sections, target)

    def check(self, batch: int) -> None:
        """Raises ValueError unless one row in `bootstrap_every` is left for reflow, and others for flow matching."""
        check_share(batch, self.bootstrap_every)

    def sampling(self, network: Any) -> Field:
        """The network at `d = 1`, or at `1/steps` for that many steps or more; or at `d`, no finer than `1/steps`."""
        field = NetworkField(network)
        return AtEnds(field, 1 / self.steps) if self.trained_steps else AtStep(field, 1 / self.steps)

    def guides(self, steps: int) -> bool:
        """At the finest step only, if trained with guidance, which `d = 1` then contains."""
        return self.guidance == 1 or steps >= self.steps
