"""What is trained: a loss bound to the trainer's networks, and the view of a network that samplers call."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from . import losses, samplers, times
from .guidance import guided
from .models.field import NetworkField
from .rows import check_share
from .types import Batch, Cond, Draws, Field, Metrics, Regression

Loss = tuple[Float[Array, ""], Metrics]


class Networks(eqx.Module):
    """What an objective may call; only `online` is differentiated.

    Each is a network of one example, `network(x, t, d, cond, *, key=None)`, with a property `null` (see DiT).
    """

    online: Any
    ema: Any
    teacher: Any = None
    turns: int = eqx.field(static=True, default=1)
    """In so many parts, one after another, a batch goes through `online`."""

    def field(self, key: PRNGKeyArray) -> Field:
        """The network to train as a field, each row under its own dropout mask."""
        return NetworkField(self.online, key, self.turns)


class Term(NamedTuple):
    """One of the regressions that a loss is the mean of, to be asked at chosen times.

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
    Euler's sampler.
    """

    continuous: ClassVar[bool] = False
    """Whether the network is asked at continuous step sizes, 0 included."""

    @property
    def stages(self) -> int:
        """0 without a teacher, 1 with one throughout, k with one replaced k - 1 times by the network at equal intervals."""
        return 0

    @property
    def teacher_step(self) -> float | None:
        """The step size at which the first teacher is asked for the velocity; None without a teacher."""
        return None

    @property
    def velocity_step(self) -> float | None:
        """The step size at which the trained network answers the velocity, and so can teach; None if it never does."""
        return None

    @property
    def only_step(self) -> float | None:
        """The one step size at which the network is trained; None if there are several."""
        return None

    def __call__(self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        """Loss and metrics of one batch; `progress` is the share of training done, in [0, 1)."""
        ...

    def terms(self, networks: Networks, progress: Float[Array, ""]) -> tuple[Term, ...]:
        """What the loss is made of at this share of training, for measuring errors by time; none if that is not known."""
        return ()

    def snapshot(self, networks: Networks) -> Any:
        """The network that becomes the teacher of the next stage."""
        return networks.ema

    def check(self, batch: int) -> None:
        """Raise ValueError, with the remedy, if a batch of that many rows cannot be trained on."""

    def sampling(self, network: Any) -> Field:
        """The field that samplers call: the network, asked at step sizes it was trained at."""
        ...

    def sample(
        self,
        field: Field,
        noise: Float[Array, "batch *shape"],
        cond: Cond,
        *,
        steps: samplers.Steps,
        renoise: samplers.Renoise,
    ) -> Float[Array, "batch *shape"]:
        """Data from noise by the method's own sampler, on the view `sampling`, guided or not."""
        return samplers.euler(field, noise, cond, steps=steps)

    def guides(self, steps: int) -> bool:
        """Whether a guidance scale applies when sampling in `steps`: not where the network already contains guidance, or never
        learnt to do without labels."""
        return True


class _OnField(Objective):
    """What the objectives below have in common: a loss of the online network as a field."""

    def __call__(self, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        """`loss` of one batch, with the online network as the field, each row under its own dropout mask."""
        k_draws, k_mask = jax.random.split(key)
        return self.loss(networks.field(k_mask), networks, batch, k_draws, progress)

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        """Loss and metrics of one batch; only `field` is trained."""
        ...


def _stopped(network: Any) -> Any:
    # Losses stop the gradient of what a target answers; stopped here, its tangents are not computed in the first place.
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if eqx.is_inexact_array(leaf) else leaf, network)


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


class AtEnds(eqx.Module):
    """A field asked at `d = 1`, or at `finest` when the step is that fine."""

    field: NetworkField
    finest: float = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"], d: Float[Array, " batch"], cond: Cond
    ) -> Float[Array, "batch *shape"]:
        return self.field(x, t, jnp.where(d > self.finest, 1.0, self.finest), cond)


class ToData(eqx.Module):
    """A field asked at `d = 1 - t`, the whole way to the data, whatever the step, and no finer than `finest`."""

    field: NetworkField
    finest: float = eqx.field(static=True)

    def __call__(
        self, x: Float[Array, "batch *shape"], t: Float[Array, " batch"], d: Float[Array, " batch"], cond: Cond
    ) -> Float[Array, "batch *shape"]:
        return self.field(x, t, jnp.maximum(1 - t, self.finest), cond)


@dataclasses.dataclass(frozen=True)
class FlowMatching(_OnField):
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


@dataclasses.dataclass(frozen=True)
class Shortcut(_OnField):
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

    @property
    def velocity_step(self) -> float:
        """`1/steps`."""
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.shortcut(
            field,
            batch,
            key,
            target=NetworkField(networks.ema if self.bootstrap_ema else _stopped(networks.online)),
            steps=self.steps,
            bootstrap_every=self.bootstrap_every,
            guidance=self.guidance,
            null=networks.online.null,
            dropout=self.label_dropout,
            dt_bias=self.dt_bias,
            clip=self.clip,
        )

    def terms(self, networks: Networks, progress: Float[Array, ""]) -> tuple[Term, ...]:
        """Flow matching, and two half steps at each larger step size, of which the smallest alone is guided."""
        target = NetworkField(networks.ema if self.bootstrap_ema else networks.online)
        share, sections = 1 / self.bootstrap_every, 2 ** jnp.arange(times.log2_steps(self.steps))

        def bootstrap(sections, guidance):
            build = partial(losses.bootstrap_target, target, guidance=guidance, null=networks.online.null, clip=self.clip)
            return Term("bootstrap", share, sections, build)

        flow = Term("flow", 1 - share, jnp.array([self.steps]), losses.flow_target)
        if self.guidance == 1 or len(sections) == 1:
            return flow, bootstrap(sections, self.guidance)
        return flow, bootstrap(sections[-1:], self.guidance), bootstrap(sections[:-1], 1.0)

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


@dataclasses.dataclass(frozen=True)
class ProgressiveDistillation(_OnField):
    """Progressive distillation (Salimans and Ho 2022): half as many steps in each stage, down to one."""

    steps: int = 128
    """Steps of the first teacher, a power of two; there are log2(steps) stages."""
    guidance: float = 1.0
    """Guidance scale of the first teacher, which all later ones contain; 1 is none."""
    teacher_ema: bool = True
    """Each stage's teacher is the average of the weights; False: the weights themselves."""
    clip: float | None = 4.0
    """Limit of the point between the teacher's two steps, in units of the data."""

    @property
    def stages(self) -> int:
        """`log2(steps)`."""
        return times.log2_steps(self.steps)

    @property
    def teacher_step(self) -> float:
        """`1/steps`."""
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.progressive_distillation(
            field,
            batch,
            key,
            teacher=NetworkField(networks.teacher),
            level=self._level(progress),
            guidance=self._guidance(progress),
            null=networks.online.null,
            clip=self.clip,
        )

    def _level(self, progress):
        return self.stages - 1 - times.stage(progress, self.stages)

    def _guidance(self, progress):
        return 1.0 if self.guidance == 1 else jnp.where(times.stage(progress, self.stages) == 0, self.guidance, 1.0)

    def terms(self, networks: Networks, progress: Float[Array, ""]) -> tuple[Term, ...]:
        """Two half steps of the teacher at the step size of the stage."""
        target = partial(
            losses.progressive_target,
            NetworkField(networks.teacher),
            guidance=self._guidance(progress),
            null=networks.online.null,
            clip=self.clip,
        )
        return (Term("distillation", 1.0, 2 ** self._level(progress)[None], target),)

    def snapshot(self, networks: Networks) -> Any:
        """The average of the weights, or the weights."""
        return networks.ema if self.teacher_ema else networks.online

    def check(self, batch: int) -> None:
        """Any batch will do; `steps` must be a power of two."""
        times.log2_steps(self.steps)

    def sampling(self, network: Any) -> Field:
        """The network at `d`, no finer than `2/steps`, the finest it was trained at."""
        return AtStep(NetworkField(network), 2 / self.steps)

    def guides(self, steps: int) -> bool:
        """Never: no label is hidden in training, so the unlabelled velocity is not known."""
        return False


def _to_data(draws: Draws) -> Draws:
    return Draws(draws.x, draws.noise, draws.t, 1 - draws.t, draws.cond)


class _Consistency(_OnField):
    """What consistency models have in common: they are asked for the whole way to the data, and sampled by jumps to it."""

    steps: int
    renoise: bool

    def check(self, batch: int) -> None:
        """Any batch will do; `steps` must be a power of two."""
        times.log2_steps(self.steps)

    def sampling(self, network: Any) -> Field:
        """The network at `d = 1 - t`."""
        return ToData(NetworkField(network), 1 / self.steps)

    def sample(
        self,
        field: Field,
        noise: Float[Array, "batch *shape"],
        cond: Cond,
        *,
        steps: samplers.Steps,
        renoise: samplers.Renoise,
    ) -> Float[Array, "batch *shape"]:
        """Jumps to the data with new noise between, or Euler steps."""
        if self.renoise:
            return samplers.consistency(field, noise, cond, steps=steps, renoise=renoise)
        return samplers.euler(field, noise, cond, steps=steps)

    def guides(self, steps: int) -> bool:
        """Never: no label is hidden in training, so the unlabelled velocity is not known."""
        return False


@dataclasses.dataclass(frozen=True)
class ConsistencyDistillation(_Consistency):
    """Consistency distillation (Song et al. 2023): the same data from both ends of each step of a teacher."""

    steps: int = 128
    """Steps of the teacher, a power of two."""
    guidance: float = 1.0
    """Guidance scale of the teacher; 1 is none."""
    clip: float | None = 4.0
    """Limit of the teacher's point, in units of the data."""
    renoise: bool = True
    """Sample with new noise between the steps (the reference's inference); False: by Euler steps (its evaluation)."""

    @property
    def stages(self) -> int:
        """One teacher throughout."""
        return 1

    @property
    def teacher_step(self) -> float:
        """`1/steps`."""
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.consistency_distillation(
            field,
            batch,
            key,
            target=NetworkField(networks.ema),
            teacher=NetworkField(networks.teacher),
            steps=self.steps,
            guidance=self.guidance,
            null=networks.online.null,
            clip=self.clip,
        )

    def terms(self, networks: Networks, progress: Float[Array, ""]) -> tuple[Term, ...]:
        """Agreement over one step of the teacher."""
        teacher = guided(NetworkField(networks.teacher), self.guidance, networks.online.null)

        def target(draws):
            field, gap = NetworkField(networks.ema), 1 / self.steps
            return losses.consistency_distillation_target(field, teacher, _to_data(draws), gap=gap, clip=self.clip)

        return (Term("consistency", 1.0, jnp.array([self.steps]), target),)


@dataclasses.dataclass(frozen=True)
class ConsistencyTraining(_Consistency):
    """Consistency training (Song et al. 2023): the same data from both ends of a gap on each line, without a teacher."""

    steps: int = 128
    """The gap falls from 1 to 2/steps over training, by halves at equal intervals; a power of two."""
    renoise: bool = True
    """Sample with new noise between the steps (the reference's inference); False: by Euler steps (its evaluation)."""

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.consistency_training(
            field,
            batch,
            key,
            target=NetworkField(networks.ema),
            level=self._level(progress),
        )

    def _level(self, progress):
        return times.stage(progress, times.log2_steps(self.steps))

    def terms(self, networks: Networks, progress: Float[Array, ""]) -> tuple[Term, ...]:
        """Agreement over the gap of this share of training."""
        sections = 2 ** self._level(progress)

        def target(draws):
            return losses.consistency_training_target(NetworkField(networks.ema), _to_data(draws), gap=1 / sections)

        return (Term("consistency", 1.0, sections[None], target),)


@dataclasses.dataclass(frozen=True)
class LiveReflow(_OnField):
    """Live reflow (Frans et al. 2024): flow matching, and at d = 1 straight lines to where the network itself leads."""

    steps: int = 128
    """Finest number of steps."""
    bootstrap_every: int = 8
    """One row in this many is a reflow row; must divide the batch."""
    rollout: int = 8
    """Euler steps of the network's own path."""
    guidance: float = 1.0
    """Guidance scale of the path (the reference always guides it, by 4); 1 is none."""
    label_dropout: float = 0.1
    """Probability of hiding a flow row's label."""
    trained_steps: bool = True
    """Sample at d = 1 for fewer than `steps` steps (the reference's evaluation); False: at d = 1/N (its inference)."""

    @property
    def velocity_step(self) -> float:
        """`1/steps`."""
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.live_reflow(
            field,
            batch,
            key,
            target=NetworkField(_stopped(networks.online)),
            steps=self.steps,
            bootstrap_every=self.bootstrap_every,
            rollout=self.rollout,
            guidance=self.guidance,
            null=networks.online.null,
            dropout=self.label_dropout,
        )

    def terms(self, networks: Networks, progress: Float[Array, ""]) -> tuple[Term, ...]:
        """Flow matching, and at `d = 1` the lines to where the network leads."""
        share, sections = 1 / self.bootstrap_every, jnp.array([self.steps])

        def target(draws):
            whole = Draws(draws.x, draws.noise, draws.t, jnp.ones_like(draws.d), draws.cond)
            return losses.live_reflow_target(
                NetworkField(networks.online),
                whole,
                steps=self.steps,
                rollout=self.rollout,
                guidance=self.guidance,
                null=networks.online.null,
            )

        return Term("flow", 1 - share, sections, losses.flow_target), Term("reflow", share, sections, target)

    def check(self, batch: int) -> None:
        """One row in `bootstrap_every` must be left for reflow, and others for flow matching."""
        check_share(batch, self.bootstrap_every)

    def sampling(self, network: Any) -> Field:
        """The network at `d = 1`, or at `1/steps` for that many steps or more; or at `d`, no finer than `1/steps`."""
        field = NetworkField(network)
        return AtEnds(field, 1 / self.steps) if self.trained_steps else AtStep(field, 1 / self.steps)

    def guides(self, steps: int) -> bool:
        """At the finest step only, if trained with guidance, which `d = 1` then contains."""
        return self.guidance == 1 or steps >= self.steps


@dataclasses.dataclass(frozen=True)
class Diffusion(_OnField):
    """Diffusion (Ho et al. 2020): the network predicts the noise of a variance-preserving path; DDIM samples it."""

    steps: int = 128
    """Times are drawn from the grid of this many steps; the network is always told d = 1/steps."""
    label_dropout: float = 0.1
    """Probability of hiding a row's label, which guidance at sampling needs."""
    clip: float | None = None
    """Limit of the data predicted in sampling; for images in [-1, 1] a clip of 1 is usual."""

    @property
    def only_step(self) -> float:
        """`1/steps`."""
        return 1 / self.steps

    def loss(self, field: Field, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Float[Array, ""]) -> Loss:
        return losses.diffusion(
            field,
            batch,
            key,
            steps=self.steps,
            null=networks.online.null,
            dropout=self.label_dropout,
        )

    def terms(self, networks: Networks, progress: Float[Array, ""]) -> tuple[Term, ...]:
        """The noise, and no velocity."""
        return (Term("noise", 1.0, jnp.array([self.steps]), losses.diffusion_target),)

    def sampling(self, network: Any) -> Field:
        """The average velocity of a DDIM step, whatever its size, so that Euler's sampler is DDIM."""
        return samplers.ddim_field(AtStep(NetworkField(network), 1 / self.steps, fixed=True), clip=self.clip)
