"""Losses on sets of one-step samples as objectives."""

import dataclasses
import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import losses
from ..models.field import NetworkField
from ..pretrained.small_classifier import load_classifier
from ..ranges import Count, NotNegative, Positive
from ..rows import check_groups
from ..types import Batch, Field
from ._base import Loss, Networks, Objective, OnField


@dataclasses.dataclass(frozen=True)
class _OnSets(OnField, Objective):
    """A base of losses on sets: the network is asked for one step from noise to data, and learns no other."""

    groups: Count = 1
    """Sets of one class each that a batch is made of; must divide it (1 or more)."""
    features: tuple[str, ...] = ("pixels",)
    """What samples are compared in: pixels (rows of any kind as they are), files of classifier.py, or several of these.
    A network whose features train must not judge."""

    @property
    def sets(self) -> int:
        """`groups`."""
        return self.groups

    @functools.cached_property
    def vectors(self) -> losses.Features:
        """The features as a function of rows. Raises ValueError for what is no such file."""
        with jax.ensure_compile_time_eval():
            return _all_of([_vectors(name) for name in self.features])

    def check(self, batch: int) -> None:
        """Sets of two rows or more, and features that there are."""
        check_groups(batch, self.groups)
        if not self.features:
            raise ValueError("features=() compares nothing: name pixels, or files of classifier.py")
        _ = self.vectors

    @property
    def options(self) -> dict[str, Any]:
        """The options of all losses on sets."""
        return {"groups": self.groups, "features": self.vectors}

    def sampling(self, network: Any) -> Field:
        """The network; more steps than one ask it for what it does not learn here."""
        return NetworkField(network)

    def guides(self, steps: int) -> bool:
        """Never: no label is hidden in training."""
        return False


@dataclasses.dataclass(frozen=True)
class SinkhornFlow(_OnSets):
    """W-Flow (2026): one-step samples move by entropic plans, towards the data and away from a second set of samples."""

    epsilon: Positive = 0.05
    """Entropy of the plans, in units of their mean cost (more than 0)."""
    iterations: Count = 20
    """Of Sinkhorn (1 or more)."""
    power: Positive = 1.0
    """The cost is the distance to this power (more than 0)."""
    guidance: NotNegative = 1.0
    """Guidance scale inside; 1 is none (0 or more)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        plans = {"epsilon": self.epsilon, "iterations": self.iterations, "power": self.power}
        return losses.sinkhorn_flow(field, batch, key, guidance=self.guidance, **plans, **self.options)


@dataclasses.dataclass(frozen=True)
class Drifting(_OnSets):
    """Drifting models (2026): one-step samples are drawn by the data near them and flee one another."""

    temperatures: tuple[Positive, ...] = (0.02, 0.05, 0.2)
    """Reaches of the kernels, in units of the mean distance (more than 0)."""
    guidance: NotNegative = 1.0
    """Guidance scale inside; 1 is none (0 or more)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        options = {"temperatures": self.temperatures, "guidance": self.guidance, **self.options}
        return losses.drifting(field, batch, key, **options)


def _vectors(name: str) -> losses.Features:
    if name == "pixels":
        return losses.flattened
    if not name.endswith(".safetensors"):
        raise ValueError(f"features={name}: name pixels, or a file FILE.safetensors of classifier.py")
    network, _ = load_classifier(pathlib.Path(name))

    def pooled(x):
        # Grey images with three equal channels.
        return jax.vmap(network)(jnp.broadcast_to(x, (*x.shape[:3], 3))).pooled

    return pooled


def _all_of(features: list[losses.Features]) -> losses.Features:
    return lambda x: [vectors(x) for vectors in features]
