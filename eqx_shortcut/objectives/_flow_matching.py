"""Flow matching as an objective."""

import dataclasses
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import losses
from ..models.field import NetworkField
from ..types import Batch, Field
from ._base import AtStep, Loss, Networks, OnField, Term


@dataclasses.dataclass(frozen=True)
class FlowMatching(OnField):
    """Flow matching: the velocity alone (the reference's train_type naive). On stored pairs it is reflow."""

    steps: int = 128
    """Times are drawn from the grid of this many steps; the network is always told d = 1/steps."""
    label_dropout: float = 0.1
    """Probability of hiding a row's label, which guidance at sampling needs."""

    @property
    def velocity_step(self) -> float:
        """`1/steps`."""
        return 1 / self.steps

    @property
    def only_step(self) -> float:
        """`1/steps`."""
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.flow_matching(
            field,
            batch,
            key,
            steps=self.steps,
            null=networks.online.null,
            dropout=self.label_dropout,
        )

    def terms(self, networks: Networks, progress: Float[Array, ""]) -> tuple[Term, ...]:
        """Flow matching."""
        return (Term("flow", 1.0, jnp.array([self.steps]), losses.flow_target),)

    def sampling(self, network: Any) -> Field:
        """The network at the one step size it knows, `1/steps`, whatever the number of steps."""
        return AtStep(NetworkField(network), 1 / self.steps, fixed=True)
