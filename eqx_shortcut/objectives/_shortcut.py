"""Shortcut models as an objective."""

import dataclasses
from functools import partial
from typing import Any

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import losses, times
from ..guidance import Guidance
from ..models.field import NetworkField
from ..ranges import NotNegative, Positive, Several, Share
from ..types import Batch, Field, Number
from ._base import AtStep, Loss, Networks, Objective, OnField, Term, stopped


@dataclasses.dataclass(frozen=True)
class Shortcut(OnField, Objective):
    """Shortcut models (Frans et al. 2024): flow matching, and one step equals two half steps."""

    steps: Several = 128
    """Finest number of steps, a power of two (2 or more)."""
    bootstrap_every: Several = 8
    """One row in this many is a bootstrap row; must divide the batch (2 or more)."""
    bootstrap_ema: bool = True
    """Bootstrap targets from the average of the weights; False: from the weights themselves."""
    guidance: NotNegative = 1.0
    """Guidance scale inside the bootstrap targets of the finest step; 1 is none (0 or more)."""
    guide_all: bool = False
    """Guide those of every step size, which then add to what they inherit."""
    dt_bias: bool = False
    """Half of the bootstrap rows for d = 1 and d = 1/2."""
    label_dropout: Share = 0.1
    """Probability of hiding a flow row's label (0 to 1)."""
    clip: Positive | None = 4.0
    """Limit of bootstrap points and targets, in units of the data (more than 0)."""

    @property
    def velocity_step(self) -> float:
        """`1/steps`."""
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.shortcut(
            field,
            batch,
            key,
            target=NetworkField(networks.ema if self.bootstrap_ema else stopped(networks.online)),
            steps=self.steps,
            bootstrap_every=self.bootstrap_every,
            guidance=Guidance(networks.null, self.label_dropout, self.guidance, all_steps=self.guide_all),
            dt_bias=self.dt_bias,
            clip=self.clip,
        )

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """Flow matching, and two half steps at each larger step size; guidance applies to the smallest step size, or to all."""
        target = NetworkField(networks.ema if self.bootstrap_ema else networks.online)
        share, sections = 1 / self.bootstrap_every, 2 ** jnp.arange(times.log2_steps(self.steps))

        def bootstrap(sections, scale):
            guidance = Guidance(networks.null, scale=scale)
            return Term(
                "bootstrap", share, sections, partial(losses.bootstrap_target, target, guidance=guidance, clip=self.clip)
            )

        flow = Term("flow", 1 - share, jnp.array([self.steps]), losses.flow_target)
        if self.guidance == 1 or self.guide_all or len(sections) == 1:
            return flow, bootstrap(sections, self.guidance)
        return flow, bootstrap(sections[-1:], self.guidance), bootstrap(sections[:-1], 1.0)

    def check(self, batch: int) -> None:
        """Every step size needs a bootstrap row."""
        losses.check_strata(batch, self.steps, self.bootstrap_every, dt_bias=self.dt_bias)

    def sampling(self, network: Any) -> Field:
        """The network at `d`, but never finer than `1/steps`, which is the finest it was trained at."""
        return AtStep(NetworkField(network), 1 / self.steps)

    def guides(self, steps: int) -> bool:
        """At the finest step only, if trained with guidance, which larger steps then contain."""
        return self.guidance == 1 or steps >= self.steps
