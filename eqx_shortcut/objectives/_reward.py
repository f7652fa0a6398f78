"""Fine-tuning by a reward as an objective."""

import dataclasses
import functools
import importlib
from typing import ClassVar

from jaxtyping import PRNGKeyArray

from .. import losses
from ..models.field import NetworkField
from ..ranges import Count, Positive, Several
from ..rows import check_groups
from ..types import Batch, Field, Number
from ._base import Loss, Networks, Objective, OnField


@dataclasses.dataclass(frozen=True)
class Reward(OnField, Objective):
    """MeanFlowNFT (2026): a reward on finished samples fine-tunes a flow map. Start it with --init-from."""

    continuous: ClassVar[bool] = True
    embed_scale_limit: ClassVar[float | None] = 10.0
    hides_labels: ClassVar[bool] = False
    finite_difference: ClassVar[None] = None
    score: str = ""
    """MODULE:FUNCTION from samples and their conditions to how good each is, larger being better."""
    steps: Several = 4
    """Steps in which samples are drawn, and of which one is learnt (2 or more)."""
    groups: Count = 1
    """Sets of one class each that a batch is made of, in which scores are compared; must divide it (1 or more)."""
    beta: Positive = 0.1
    """The larger, the nearer the network stays to its average (more than 0)."""

    @functools.cached_property
    def function(self) -> losses.Score:
        """The reward. Raises ValueError if it cannot be imported."""
        module, _, name = self.score.partition(":")
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(f"score={self.score} cannot be had ({error}): name a reward, MODULE:FUNCTION") from error

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        options = {"score": self.function, "steps": self.steps, "groups": self.groups, "beta": self.beta}
        return losses.reward(field, batch, key, old=NetworkField(networks.ema), **options)

    def check(self, batch: int) -> None:
        """Sets of two rows or more, and a reward that there is."""
        check_groups(batch, self.groups)
        _ = self.function
