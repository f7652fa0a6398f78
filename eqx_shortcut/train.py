"""Training: the state, one compiled step, and the loop that drives it."""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Int, PRNGKeyArray, PyTree

from . import compilation, ema, times
from .objectives import Networks, Objective
from .types import Batch, Cond, Metrics, Number

STREAK = 20
"""Steps in a row with a loss or gradient that is not finite, after which a run ends."""


class TrainState(eqx.Module):
    """Everything a run needs to go on, besides the position in the data."""

    step: Int[Array, ""]
    key: PRNGKeyArray
    networks: Networks
    opt_state: PyTree
    skipped: Int[Array, ""]
    """Steps skipped so far because loss or gradient were not finite."""
    streak: Int[Array, ""]
    """Steps skipped in a row, the last step included."""
    averages: tuple[ema.PowerAverage, ...] = ()
    """Averages of `networks.online` beside `networks.ema`, which no objective sees."""

    @property
    def updates(self) -> Int[Array, ""]:
        """Steps that changed the weights."""
        return self.step - self.skipped


Prepare = Callable[[Any, PRNGKeyArray], Batch]
"""From what the loader yields to a Batch, on the device: scaling, mirroring, encoding."""

Step = Callable[[TrainState, Any], tuple[TrainState, Metrics]]


def init_state(
    build: Callable[[PRNGKeyArray], Any],
    tx: optax.GradientTransformation,
    key: PRNGKeyArray,
    *,
    null: Cond = None,
    teacher: bool = False,
    weak: bool = False,
    extra: Callable[[PRNGKeyArray], Any] = lambda key: None,
    memory: Any = None,
    averages: Sequence[float] = (),
    shardings: Callable[[TrainState], TrainState] = lambda state: state,
) -> TrainState:
    """The state before the first step; `build(key)` makes the network; average, teacher and weak network start as copies of it.

    `null` is the condition without its batch axis that stands for none (see data.null_of); label dropout and guidance need it.
    `extra(key)` makes what is trained beside it, or None (see Objective.extra); `memory` is what the objective remembers before
    the first step. `averages` are relative widths of more averages to be kept, by a power of the step (see ema.PowerAverage).
    `shardings` constrains the state to its layout before anything of it exists: what is split is never whole on a device.
    """

    @compilation.jit
    def make(key):
        k_network, k_train = jax.random.split(key)
        network = build(k_network)
        zero = jnp.zeros((), jnp.int32)
        # Returned several times from one jit, so that the sets of weights are distinct buffers and all can be donated.
        first, second = (network if asked else None for asked in (teacher, weak))
        networks = Networks(network, network, first, extra(jax.random.fold_in(key, 2)), null, second, memory=memory)
        opt_state = tx.init(eqx.filter(networks.trained, eqx.is_inexact_array))
        kept = tuple(ema.PowerAverage(network, sigma_rel) for sigma_rel in averages)
        return shardings(TrainState(zero, k_train, networks, opt_state, zero, zero, kept))

    return make(key)


def make_step(objective: Objective, tx: optax.GradientTransformation, *, prepare: Prepare, **options: Any) -> Step:
    """One training step `(state, raw) -> (state, metrics)`, compiled once; the state passed in is consumed (donated).

    `options` are those of `make_update`.
    """
    step = compilation.jit(make_update(objective, tx, **options), donate="all-except-first")
    return lambda state, raw: step((raw, prepare), state)


def make_update(
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    ema_decay: float,
    steps: int,
    accumulate: int = 1,
    shardings: Callable[[TrainState], TrainState] = lambda state: state,
) -> Callable[[tuple[Any, Prepare], TrainState], tuple[TrainState, Metrics]]:
    """`make_step` before compilation, as `((raw, prepare), state) -> (state, metrics)`; weights in `prepare` are arguments.

    All draws come from `fold_in(state.key, state.step)`: they depend on the seed and the step, not on the hardware. A
    step whose loss or gradient is not finite changes nothing but the counters. `steps` is the length of the run:
    the objective is told the share that is done, and where a stage of an objective with several begins, the teacher is
    replaced by its `snapshot`. The batch goes through the network to train in `accumulate` parts, one after another, which
    divides the memory of its activations; draws, targets and the loss are those of the whole batch. `shardings` constrains
    the new state to the layout of the old one.
    """

    def updated(state, gradient, memory, finite):
        updates, opt_state = optimized(tx, gradient, state)
        networks = state.networks.with_trained(eqx.apply_updates(state.networks.trained, updates))
        networks = dataclasses.replace(networks, ema=ema.update(networks.ema, networks.online, ema_decay), memory=memory)
        averages = tuple(average.updated(networks.online, state.updates + 1) for average in state.averages)
        new, old = (networks, opt_state, averages), (state.networks, state.opt_state, state.averages)
        networks, opt_state, averages = _where(finite, new, old)
        bad = (~finite).astype(jnp.int32)
        return TrainState(
            step=state.step + 1,
            key=state.key,
            networks=networks,
            opt_state=opt_state,
            skipped=state.skipped + bad,
            streak=(state.streak + 1) * bad,
            averages=averages,
        )

    def renewed(state):
        stage, last = (times.stage(_share(step, steps), objective.stages) for step in (state.step, state.step - 1))
        teacher = _where(stage > last, objective.snapshot(state.networks), state.networks.teacher)
        return eqx.tree_at(lambda s: s.networks.teacher, state, teacher)

    def update(given: tuple[Any, Prepare], state: TrainState) -> tuple[TrainState, Metrics]:
        _, loss_fn = loss_of_step(objective, given, state, steps, accumulate)
        (loss, (metrics, memory)), gradient = eqx.filter_value_and_grad(loss_fn, has_aux=True)(state.networks.trained)
        norm = optax.tree.norm(gradient)
        finite = jnp.isfinite(loss) & jnp.isfinite(norm)
        new = updated(state, gradient, memory, finite)
        new = renewed(new) if objective.stages > 1 else new
        metrics = metrics | {"grad_norm": norm, "skipped": new.skipped, "streak": new.streak}
        return shardings(new), metrics

    return update


def loss_of_step(
    objective: Objective, given: tuple[Any, Prepare], state: TrainState, steps: int, accumulate: int = 1
) -> tuple[Batch, Callable[[Any], tuple[Number, tuple[Metrics, Any]]]]:
    """The batch of the step after `state`, and its loss as a function of `networks.trained`, with that step's draws.

    Beside the loss are its metrics, and what the objective remembers for the step after it.
    """
    raw, prepare = given
    k_prepare, k_loss = jax.random.split(jax.random.fold_in(state.key, state.step))
    batch = prepare(raw, k_prepare)
    progress = _share(state.step, steps)

    def loss_fn(trained):
        networks = dataclasses.replace(state.networks.with_trained(trained), microbatches=accumulate)
        (loss, metrics), memory = objective.remembered(networks, batch, k_loss, progress)
        return loss, (metrics, memory)

    return batch, loss_fn


def optimized(tx: optax.GradientTransformation, gradient: PyTree, state: TrainState) -> tuple[PyTree, PyTree]:
    """The optimizer's update of the weights, and its new state."""
    # Optax mixes dtypes, which callers who chose strict promotion would be refused.
    with jax.numpy_dtype_promotion("standard"):
        return tx.update(gradient, state.opt_state, eqx.filter(state.networks.trained, eqx.is_inexact_array))


def _share(step: Int[Array, ""], steps: int) -> Number:
    return step.astype(jnp.float32) / steps


def _where(condition: Bool[Array, ""], yes: PyTree, no: PyTree) -> PyTree:
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b) if eqx.is_array(a) else a, yes, no)


class Diverged(RuntimeError):
    """A run whose loss or gradient stayed infinite or NaN."""


Hook = Callable[[int, TrainState, Metrics], None]
"""Something done between steps, outside jit: `hook(step, state, metrics)` after step number `step`, from 1."""


def every(n: int, until: int, event: Hook) -> Hook:
    """`event` after each n-th step and after step `until`."""

    def maybe(step: int, state: TrainState, metrics: Metrics) -> None:
        if step % n == 0 or step == until:
            event(step, state, metrics)

    return maybe


def fit(step: Step, state: TrainState, batches: Iterable[Any], *, until: int, events: Sequence[Hook] = ()) -> TrainState:
    """Drives `step` over `batches` until step number `until`, running each event after each step.

    Health is read one step late, so that the device never waits for the host. Raises Diverged after 20 skipped steps in
    a row, and StopIteration if the batches end first.
    """
    batches, previous = iter(batches), None
    for number in range(int(state.step) + 1, until + 1):
        state, metrics = step(state, next(batches))
        for event in events:
            event(number, state, metrics)
        if previous is not None:
            check_finite(number - 1, previous)
        previous = metrics
    if previous is not None:
        check_finite(until, previous)
    return state


def check_finite(step: int, metrics: Metrics) -> None:
    """Raise Diverged, saying what to try, once `metrics["streak"]` has reached 20."""
    if int(metrics["streak"]) >= STREAK:
        raise Diverged(
            f"loss or gradient was not finite for {STREAK} steps in a row, up to step {step}: the weights are those of "
            f"step {step - STREAK}; try a smaller learning rate, gradient clipping (--optimizer.clip 1), a warm-up, or "
            "look for infinite values in the data"
        )
