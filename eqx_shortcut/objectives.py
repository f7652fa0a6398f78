"""What is trained: a loss bound to the trainer's networks, and the view of a network that samplers call."""

import dataclasses
from typing import Any, ClassVar, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from . import losses, times
from .models.field import NetworkField
from .types import Batch, Cond, Field, Metrics


class Networks(eqx.Module):
    """What an objective may call; only `online` is differentiated.

    Each is a network of one example, `network(x, t, d, cond, *, key=None)`, with a property `null` (see DiT).
    """

    online: Any
    ema: Any
    teacher: Any = None


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass of hyper-parameters that turns networks and a batch into a loss."""

    continuous: ClassVar[bool]
    """Whether the network is asked at continuous step sizes, 0 included."""

    def __call__(
        self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        """Loss and metrics of one batch; `progress` is the share of training done, in [0, 1)."""
        ...

    def check(self, batch: int) -> None:
        """Raise ValueError, with the remedy, if a batch of that many rows cannot be trained on."""
        ...

    def sampling(self, network: Any) -> Field:
        """The field that samplers call: the network, asked at step sizes it was trained at."""
        ...

    def guides(self, steps: int) -> bool:
        """Whether a guidance scale applies when sampling in `steps`: not where the network already contains guidance."""
        ...


class AtStep(eqx.Module):
    """A field asked at no finer step than `finest`, or, if `fixed`, at that step only."""

    field: NetworkField
    finest: float = eqx.field(static=True)
    fixed: bool = eqx.field(static=True, default=False)

    def __call__(
        self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"], d: Float[Array, " batch"], cond: Cond
    ) -> Float[Array, "batch *shape"]:
        d = jnp.full_like(d, self.finest) if self.fixed else jnp.maximum(d, self.finest)
        return self.field(x, t, d, cond)


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """Flow matching: the velocity alone (the reference's train_type naive)."""

    steps: int = 128
    """Times are drawn from the grid of this many steps; the network is always told d = 1/steps."""
    label_dropout: float = 0.1
    """Probability of hiding a row's label, which guidance at sampling needs."""

    continuous: ClassVar[bool] = False

    def __call__(
        self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        k_draws, k_mask = jax.random.split(key)
        return losses.flow_matching(
            NetworkField(networks.online, k_mask),
            batch,
            k_draws,
            steps=self.steps,
            null=networks.online.null,
            dropout=self.label_dropout,
        )

    def check(self, batch: int) -> None:
        """Any batch will do."""

    def sampling(self, network: Any) -> Field:
        """The network at the one step size it knows, `1/steps`, whatever the number of steps."""
        return AtStep(NetworkField(network), 1 / self.steps, fixed=True)

    def guides(self, steps: int) -> bool:
        """Always."""
        return True


@dataclasses.dataclass(frozen=True)
class Shortcut:
    """Shortcut models (Frans et al. 2024): flow matching, and one step equals two half steps."""

    steps: int = 128
    """Finest number of steps, a power of two."""
    bootstrap_every: int = 8
    """One row in this many is a bootstrap row; must divide the batch."""
    bootstrap_ema: bool = True
    """Bootstrap targets from the average of the weights; False: from the weights themselves."""
    guidance: float = 1.0
    """Guidance scale inside the bootstrap targets of the finest step; 1 is none."""
    dt_bias: bool = False
    """Half of the bootstrap rows for d = 1 and d = 1/2."""
    label_dropout: float = 0.1
    """Probability of hiding a flow row's label."""
    clip: float | None = 4.0
    """Limit of bootstrap points and targets, in units of the data."""

    continuous: ClassVar[bool] = False

    def __call__(
        self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        k_draws, k_mask = jax.random.split(key)
        return losses.shortcut(
            NetworkField(networks.online, k_mask),
            batch,
            k_draws,
            target=NetworkField(networks.ema if self.bootstrap_ema else networks.online),
            steps=self.steps,
            bootstrap_every=self.bootstrap_every,
            guidance=self.guidance,
            null=networks.online.null,
            dropout=self.label_dropout,
            dt_bias=self.dt_bias,
            clip=self.clip,
        )

    def check(self, batch: int) -> None:
        """Every step size needs a bootstrap row, and the finest one a guided row if there is guidance."""
        losses.check_strata(batch, self.steps, self.bootstrap_every)
        rows = batch // self.bootstrap_every
        if self.guidance != 1 and not times.finest_rows(rows, self.steps, bias=self.dt_bias):
            raise ValueError(
                f"guidance={self.guidance} would guide nothing: with dt_bias {rows} bootstrap rows leave none for the "
                f"finest step of steps={self.steps}; use a larger batch, a smaller bootstrap_every, or no dt_bias"
            )

    def sampling(self, network: Any) -> Field:
        """The network at `d`, but never finer than `1/steps`, which is the finest it was trained at."""
        return AtStep(NetworkField(network), 1 / self.steps)

    def guides(self, steps: int) -> bool:
        """At the finest step only, if trained with guidance, which larger steps then contain."""
        return self.guidance == 1 or steps >= self.steps
