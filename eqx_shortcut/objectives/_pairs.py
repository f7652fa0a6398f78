"""Bases of objectives at continuous step sizes."""

import dataclasses
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import PRNGKeyArray

from .. import losses, tangents, times, weights
from ..guidance import Guidance, Scales, draw_guided
from ..ranges import BelowOne, Finite, MoreThanOne, NotNegative, Positive, Several, Share
from ..rows import check_share
from ..types import Batch, Cond, Number, Weigh
from ._base import Loss, Networks, Objective, OnField


@dataclasses.dataclass(frozen=True)
class OnPairs(OnField, Objective):
    """Rows of a step `[t, t + d]`, among rows of `d = 0` that learn the velocity."""

    continuous: ClassVar[bool] = True
    embed_scale_limit: ClassVar[float | None] = 10.0
    bootstrap_every: Several = 4
    """One row in this many has a step size, the others have d = 0; must divide the batch (2 or more)."""
    uniform_velocity: bool = False
    """Rows of d = 0 have uniform times; False: the times at which steps start."""
    to_data: Share = 0.0
    """Share of the steps that go all the way to the data, as one-step samples do (0 to 1)."""
    guidance: NotNegative = 1.0
    """Guidance scale inside the target velocity; 1 is none (0 or more)."""
    mix: BelowOne = 0.0
    """Share of the network's own labelled velocity in the target; the scale learnt is guidance / (1 - mix) (0 to below 1)."""
    interval: tuple[Share, Share] = (0.0, 1.0)
    """Times between which the velocity is guided (0 to 1)."""
    label_dropout: Share = 0.1
    """Probability of hiding a row's label, which guidance needs (0 to 1)."""
    power: NotNegative = 1.0
    """Row weight 1 / (error + eps)^power, with the row's summed squared error; 0: equal weights (0 or more)."""
    eps: Positive = 0.01
    """The eps of the row weight: summed squared errors below it count as small (more than 0)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.interval[0] > self.interval[1]:
            raise ValueError(f"interval={self.interval} ends before it starts: name the earlier time first")

    @property
    def velocity_step(self) -> float:
        return 0.0

    @property
    def pairs(self) -> times.Pairs:
        """The distribution of `(t, d)`, but for the share that goes to the data."""
        return times.uniform_pairs

    @property
    def velocity_times(self) -> times.Times | None:
        """The distribution of `t` at `d = 0`; None: where steps start."""
        return times.uniform if self.uniform_velocity else None

    def share_to_data(self, progress: Number) -> float | Number:
        """The share at this progress of training."""
        return self.to_data

    def drawn(self, progress: Number) -> losses.Intervals:
        """Times and step sizes after a part of training."""
        pairs = times.to_end(self.pairs, self.share_to_data(progress)) if self.to_data else self.pairs
        return losses.Intervals(pairs, self.bootstrap_every, self.velocity_times)

    def guided(self, null: Cond = None) -> Guidance:
        """Hidden labels, and the guidance inside the velocity."""
        return Guidance(null, self.label_dropout, self.guidance, self.mix, self.interval)

    def weigh(self, networks: Networks) -> tuple[Weigh, ...]:
        """The adaptive weight, and the learned one if there is one."""
        adaptive = (weights.Adaptive(self.power, self.eps),) if self.power else ()
        return adaptive if networks.extra is None else (*adaptive, networks.extra)

    def options(self, networks: Networks, progress: Number) -> dict[str, Any]:
        """The options of all losses on pairs."""
        return {"intervals": self.drawn(progress), "guidance": self.guided(networks.null), "weigh": self.weigh(networks)}

    def check(self, batch: int) -> None:
        """One row in `bootstrap_every` must be left for steps, and others for the velocity."""
        check_share(batch, self.bootstrap_every)

    def guides(self, steps: int) -> bool:
        """Where the network is told its scale; else unless trained with guidance, which every step size then contains."""
        return self.told is not None or not self.guided().inside


@dataclasses.dataclass(frozen=True)
class Taught(OnPairs):
    """OnPairs with a tangent, whose velocity may be a teacher's, guided by its unlabelled answers or by a weak network."""

    autoguides: ClassVar[bool] = True
    distil: bool = False
    """Take the velocity from a teacher, which `guidance` guides (MeanFlow: at power=0); False: from the data."""
    max_scale: MoreThanOne | None = None
    """Highest of the teacher's scales, uniform from 1, that the network is told; None: `guidance` alone (more than 1)."""
    finite_difference: Positive | None = None
    """Step of central differences in place of the exact tangent; None: exact (more than 0)."""

    @property
    def told(self) -> Scales | None:
        """All scales from 1 to the highest, if there is one."""
        return None if self.max_scale is None else Scales(1.0, self.max_scale, interval=self.interval, uniform=True)

    def __call__(self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Loss:
        """`loss` of one batch, whose conditions tell each row's guidance if the network learns several scales."""
        if self.told is not None:
            like = jnp.zeros(batch.x.shape[0], batch.x.dtype)
            cond = draw_guided(jax.random.fold_in(key, 2), batch.cond, self.told, like)
            batch = dataclasses.replace(batch, cond=cond)
        return super().__call__(networks, batch, key, progress)

    def options(self, networks: Networks, progress: Number) -> dict[str, Any]:
        """Those of all losses on pairs, what takes the tangent, and the teacher, guided in place of the lines."""
        options = super().options(networks, progress) | {"jvp": jvp(self.finite_difference)}
        if not self.distil:
            return options
        teacher = networks.teaching(self.guidance, self.interval)
        return options | {"teacher": teacher, "guidance": Guidance(networks.null, self.label_dropout)}

    def check(self, batch: int) -> None:
        """As the others; a scale that is told is a teacher's, and mixed in is the velocity of the network that learns."""
        super().check(batch)
        if self.max_scale is not None and not (self.distil and self.guidance == 1):
            raise ValueError(
                f"max_scale={self.max_scale} is the highest guidance scale of a teacher, in place of one: use distil, and "
                "leave guidance at 1"
            )
        if self.distil and self.mix:
            raise ValueError(
                f"mix={self.mix} is a share of the network's own velocity, and a teacher answers it: leave it at 0"
            )


@dataclasses.dataclass(frozen=True)
class LogitNormalTimes:
    """A base beside OnPairs: `t` and `t + d` are logit-normal times, alike and put in order or each of its own distribution."""

    time_mean: Finite = 0.4
    """Mean of the normal variable whose sigmoid is a time; a positive one favours the data."""
    time_std: NotNegative = 1.0
    """Standard deviation of that normal variable (0 or more)."""
    end_mean: Finite | None = None
    """The same mean for the end of a step, time_mean then for its start; None: both from one distribution, sorted."""
    end_std: NotNegative = 1.0
    """Standard deviation for the end of a step (0 or more)."""

    @property
    def pairs(self) -> times.Pairs:
        """Both times drawn alike, and put in order, or, with an `end_mean`, each from its own."""
        if self.end_mean is not None:
            own = {"mean": self.time_mean, "std": self.time_std, "end_mean": self.end_mean, "end_std": self.end_std}
            return partial(times.logit_normal_ends, **own)
        return partial(times.logit_normal_pairs, mean=self.time_mean, std=self.time_std)


def jvp(step: float | None) -> tangents.Jvp:
    """`jax.jvp`, or central differences of that step."""
    return jax.jvp if step is None else tangents.finite_difference(step)
