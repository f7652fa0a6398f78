"""The interface of objectives, the networks they may call, and the views of a network that samplers call."""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, PRNGKeyArray

from .. import ranges, samplers, weights
from ..guidance import Scales, autoguided, unlabelled
from ..models.field import NetworkField
from ..types import Batch, Cond, Draws, Field, Loss, Number, Numbers, Points, Regression


class Networks(eqx.Module):
    """The networks that an objective may call; only `online` and `extra` are differentiated.

    But for `extra` each is a network of one example, any module called `network(x, t, d, cond, *, key=None)`.
    """

    online: Any
    ema: Any
    teacher: Any = None
    extra: Any = None
    """What the objective trains beside `online` and sampling does not need (see Objective.extra)."""
    null: Cond = None
    """The condition without its batch axis that stands for none: a class run's label `classes`; None where there are none."""
    weak: Any = None
    """A network worse than the teacher, which guides it (see guidance.autoguided); None: there is none."""
    microbatches: int = eqx.field(static=True, default=1)
    """The number of parts in which a batch goes through `online`, one after another."""
    memory: Any = None
    """What the objective remembers of earlier steps, not trained (see Objective.memory)."""

    def field(self, key: PRNGKeyArray) -> Field:
        """The network to train as a field, each row under its own dropout mask."""
        return NetworkField(self.online, key, self.microbatches)

    def teaching(self, scale: float, interval: tuple[float, float] = (0.0, 1.0)) -> Field:
        """The teacher's field, guided by `scale` or as a condition `Guided` tells: by the weak network, or without labels."""
        teacher = NetworkField(self.teacher)
        weak = unlabelled(teacher, self.null) if self.weak is None else NetworkField(self.weak)
        return autoguided(teacher, weak, scale, interval=interval)

    @property
    def trained(self) -> Any:
        """The differentiated and optimised part: `online`, or `(online, extra)` if there is an `extra`."""
        return self.online if self.extra is None else (self.online, self.extra)

    def with_trained(self, trained: Any) -> "Networks":
        """These networks with other values of `trained`."""
        online, extra = (trained, None) if self.extra is None else trained
        return dataclasses.replace(self, online=online, extra=extra)


class Term(NamedTuple):
    """One of the regressions whose mean is the loss, which can be evaluated at chosen times.

    For each number `n` of `sections` its rows have `t` on `{0, 1/n, ..., (n - 1)/n}`. `target` builds the regression of draws
    with such `t` and `d = 1/n`, and says itself which `d` the network is told.
    """

    name: str
    share: float
    """Share of the rows of a batch."""
    sections: Int[Array, " levels"]
    target: Callable[[Draws], Regression]


@runtime_checkable
class Objective(Protocol):
    """A frozen dataclass of hyper-parameters that turns networks and a batch into a loss.

    A class that names it as a base inherits what most objectives have in common: no teacher, any batch, no guidance inside,
    Euler's sampler. Fields `finite_difference`, `distil`, `groups`, `log_variance` and `velocity_head` mean the same in all
    that have them.
    """

    continuous: ClassVar[bool] = False
    """Whether training uses continuous step sizes, 0 included."""
    embed_scale_limit: ClassVar[float | None] = None
    """Largest factor on times before the network's sinusoids that training tolerates (see unsteady); None: any."""
    predicts_noise: ClassVar[bool] = False
    """Whether the network is trained to answer noise, and not a velocity."""
    hides_labels: ClassVar[bool] = True
    """Whether training hides labels, without which there is no unlabelled velocity to guide samples by."""
    autoguides: ClassVar[bool] = False
    """Whether its teacher may be guided by a weak network (see Networks.teaching)."""

    @property
    def stages(self) -> int:
        """0 without a teacher, 1 with one throughout, k with one replaced k - 1 times by the network at equal intervals."""
        return int(self.teacher_step is not None)

    @property
    def teacher_step(self) -> float | None:
        """The step size at which the first teacher is asked for the velocity; None without a teacher. By default 0 if a field
        `distil` asks for one."""
        return 0.0 if getattr(self, "distil", False) else None

    @property
    def velocity_step(self) -> float | None:
        """The step size at which the trained network answers the velocity, and so can teach; None if it never does."""
        return None

    @property
    def only_step(self) -> float | None:
        """The one step size at which the network is trained; None if there are several."""
        return None

    @property
    def second_head(self) -> bool:
        """Whether the network is asked for a second head, its property `velocity` (see DiT): a field `velocity_head`."""
        return getattr(self, "velocity_head", False)

    @property
    def sets(self) -> int | None:
        """The number of sets of rows of one label that a batch is made of (see data.batches), by default the field `groups` if
        there is one; None: rows at random."""
        return getattr(self, "groups", None)

    @property
    def told(self) -> Scales | None:
        """The guidance scales that the network is told in its condition, in training and sampling; None if it is told none."""
        return None

    def __call__(self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        """Loss and metrics of one batch; `progress` is the share of training done, in [0, 1)."""
        ...

    def terms(self, networks: Networks, progress: Number) -> tuple[Term, ...]:
        """The terms of the loss at this share of training, for measuring errors by time; empty if an objective does not say."""
        return ()

    def extra(self, key: PRNGKeyArray) -> Any:
        """A module that is trained beside the network, for the loss as `networks.extra`: by default the weight that a field
        `log_variance` asks for, learned of each `t` and `d`; None if there is none."""
        return weights.LogVariance() if getattr(self, "log_variance", False) else None

    def memory(self, shape: tuple[int, ...]) -> Any:
        """The memory before the first step, for rows of this shape: a PyTree that the loss finds as `networks.memory`."""
        return None

    def remembered(self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> tuple[Loss, Any]:
        """Loss and metrics as the objective gives them, and its memory for the next step."""
        return self(networks, batch, key, progress), networks.memory

    def trained_in(self) -> tuple[str, ...]:
        """Features that train the network, and so must not judge it: "pixels", or "sha256 ..." of the file of a network."""
        return ()

    def snapshot(self, networks: Networks) -> Any:
        """The network that becomes the teacher of the next stage."""
        return networks.ema

    def check(self, batch: int) -> None:
        """Raise ValueError, with the remedy, if a batch of that many rows cannot be trained on."""

    def sampling(self, network: Any) -> Field:
        """The field that samplers call: the network, asked at step sizes it was trained at; by default at any."""
        return NetworkField(network)

    def sample(self, field: Field, noise: Points, cond: Cond, *, steps: samplers.Steps, renoise: samplers.Renoise) -> Points:
        """Data from noise by the method's own sampler, on the view `sampling`, guided or not."""
        return samplers.euler(field, noise, cond, steps=steps)

    def guides(self, steps: int) -> bool:
        """Whether a guidance scale applies when sampling in `steps`: not where the network already contains guidance, or never
        learnt to do without labels."""
        return self.hides_labels


def named(kind: type) -> str:
    """The class of an objective in lower case with dashes, the name of its subcommand and of its runs."""
    return re.sub("(?<=[a-z])(?=[A-Z])", "-", kind.__name__).lower()


def unsteady(objective: Objective, embed_scale: float) -> str | None:
    """Why a network whose sinusoids have times multiplied by `embed_scale` suits an objective badly; None if it does not."""
    limit = objective.embed_scale_limit
    if limit is None or embed_scale <= limit:
        return None
    return (
        f"{type(objective).__name__} learns from the network's own derivative in time, whose error grows with "
        f"--network.embed-scale {embed_scale:g}: above {limit:g} training may diverge or draw noise; use {limit:g}"
    )


class OnField(ranges.Checked):
    """A base beside Objective for a loss of the online network as a field, and settings in their ranges."""

    def __call__(self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        """`loss` of one batch, with the online network as the field, each row under its own dropout mask."""
        k_draws, k_mask = jax.random.split(key)
        return self.loss(networks.field(k_mask), networks, batch, k_draws, progress)

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        """Loss and metrics of one batch; only `field` is trained."""
        ...


def stopped(network: Any) -> Any:
    # Losses stop the gradient of what a target answers; stopped here, its tangents are not computed in the first place.
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, network)


class AtStep(eqx.Module):
    """A field asked at no finer step than `finest`, or, if `fixed`, at that step only."""

    field: NetworkField
    finest: float = eqx.field(static=True)
    fixed: bool = eqx.field(static=True, default=False)

    def __call__(self, x: Points, t: Numbers, d: Numbers, cond: Cond) -> Points:
        d = jnp.full_like(d, self.finest) if self.fixed else jnp.maximum(d, self.finest)
        return self.field(x, t, d, cond)


class AtEnds(eqx.Module):
    """A field asked at `d = 1`, or at `finest` when the step is that fine."""

    field: NetworkField
    finest: float = eqx.field(static=True)

    def __call__(self, x: Points, t: Numbers, d: Numbers, cond: Cond) -> Points:
        return self.field(x, t, jnp.where(d > self.finest, 1.0, self.finest), cond)


class ToData(eqx.Module):
    """A field asked at `d = 1 - t`, the whole way to the data, whatever the step, and no finer than `finest`."""

    field: NetworkField
    finest: float = eqx.field(static=True)

    def __call__(self, x: Points, t: Numbers, d: Numbers, cond: Cond) -> Points:
        return self.field(x, t, jnp.maximum(1 - t, self.finest), cond)
