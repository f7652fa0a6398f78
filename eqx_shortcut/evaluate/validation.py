"""The loss on images that are not trained on."""

import dataclasses
from typing import Any

import equinox as eqx
from jaxtyping import PRNGKeyArray

from ..objectives import Networks, Objective
from ..types import Batch, Cond, Metrics, Number, Point


class WithoutDropout(eqx.Module):
    """A network that is never given the key of its dropout."""

    network: Any

    @property
    def velocity(self) -> "WithoutDropout":
        """The network's second head, without dropout too."""
        return WithoutDropout(self.network.velocity)

    def __call__(self, x: Point, t: Number, d: Number, cond: Cond, *, key: PRNGKeyArray | None = None) -> Point:
        return self.network(x, t, d, cond)


def validation_loss(objective: Objective, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Metrics:
    """The objective's own loss of `networks.online`, and its parts, without dropout inside the network.

    The same key means the same times, noise and dropped labels, so that the values of a run compare.
    """
    quiet = dataclasses.replace(networks, online=WithoutDropout(networks.online))
    _, metrics = objective(quiet, batch, key, progress)
    return {name: value for name, value in metrics.items() if name.startswith("loss")}
