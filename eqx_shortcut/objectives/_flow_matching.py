"""Flow matching, live reflow and diffusion as objectives: velocity or noise of lines."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import losses, samplers, times
from ..guidance import Guidance
from ..models.field import NetworkField
from ..ranges import Count, Finite, NotNegative, Positive, Several, Share
from ..rows import check_share
from ..types import Batch, Field, Number
from ._base import AtEnds, AtStep, Loss, Networks, Objective, OnField, Term, stopped


@dataclasses.dataclass(frozen=True)
class OneStepSize(OnField, Objective):
    """A base of flow matching and diffusion: times on a grid, and a single step size as the network's input."""

    steps: Count = 128
    """Times are drawn from the grid of this many steps; the network is always told d = 1/steps (1 or more)."""
    label_dropout: Share = 0.1
    """Probability of hiding a row's label, which guidance at sampling needs (0 to 1)."""

    @property
    def only_step(self) -> float:
        return 1 / self.steps


@dataclasses.dataclass(frozen=True)
class FlowMatching(OneStepSize):
    """Flow matching: the velocity alone (the reference's train_type naive). On stored pairs it is reflow."""

    time_mean: Finite | None = None
    """Mean of the normal variable whose sigmoid is a time, -0.8 for JiT; None: times are on the grid."""
    time_std: NotNegative = 0.8
    """Standard deviation of that normal variable (0 or more)."""

    @property
    def velocity_step(self) -> float:
        return self.only_step

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        own = None if self.time_mean is None else partial(times.logit_normal, mean=self.time_mean, std=self.time_std)
        guidance = Guidance(networks.null, self.label_dropout)
        return losses.flow_matching(field, batch, key, steps=self.steps, at=own, guidance=guidance)

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """Flow matching."""
        return (Term("flow", 1.0, jnp.array([self.steps]), losses.flow_target),)

    def sampling(self, network: Any) -> Field:
        """The network at the one step size it knows, `1/steps`, whatever the number of steps."""
        return AtStep(NetworkField(network), self.only_step, fixed=True)


@dataclasses.dataclass(frozen=True)
class Diffusion(OneStepSize):
    """Diffusion (Ho et al. 2020): the network predicts the noise of a variance-preserving path; DDIM samples it."""

    predicts_noise: ClassVar[bool] = True
    clip: Positive | None = None
    """Limit of the data predicted in sampling; for images in [-1, 1] a clip of 1 is usual (more than 0)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        return losses.diffusion(field, batch, key, steps=self.steps, guidance=Guidance(networks.null, self.label_dropout))

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """The noise, and no velocity."""
        return (Term("noise", 1.0, jnp.array([self.steps]), losses.diffusion_target),)

    def sampling(self, network: Any) -> Field:
        """The average velocity of a DDIM step, whatever its size, so that Euler's sampler is DDIM."""
        return samplers.ddim_field(AtStep(NetworkField(network), self.only_step, fixed=True), clip=self.clip)


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
