"""Diffusion as an objective."""

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import losses, samplers
from ..models.field import NetworkField
from ..ranges import Positive
from ..types import Batch, Field, Number
from ._base import AtStep, Loss, Networks, Term
from ._flow_matching import OneStepSize


@dataclasses.dataclass(frozen=True)
class Diffusion(OneStepSize):
    """Diffusion (Ho et al. 2020): the network predicts the noise of a variance-preserving path; DDIM samples it."""

    predicts_noise: ClassVar[bool] = True
    clip: Positive | None = None
    """Limit of the data predicted in sampling; for images in [-1, 1] a clip of 1 is usual (more than 0)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.diffusion(field, batch, key, **self.options(networks))

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """The noise, and no velocity."""
        return (Term("noise", 1.0, jnp.array([self.steps]), losses.diffusion_target),)

    def sampling(self, network: Any) -> Field:
        """The average velocity of a DDIM step, whatever its size, so that Euler's sampler is DDIM."""
        return samplers.ddim_field(AtStep(NetworkField(network), self.only_step, fixed=True), clip=self.clip)
