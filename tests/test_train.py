"""One step and the loop around it: what a step changes, what it may not, and what the loop tells its events."""

import contextlib
import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqx_shortcut import Batch, ema, sharding, weights
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.experiment import health
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import Objective, Shortcut
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import STREAK, Diverged, TrainState, every, fit, init_state, loss_of_step, make_step


class Line(eqx.Module):
    """`w x + b`, and a field that is no array."""

    w: jax.Array
    b: jax.Array
    name: str = eqx.field(static=True, default="line")


def build(key) -> Line:
    return Line(jax.random.normal(key, (3, 2)), jnp.zeros(2))


@dataclasses.dataclass(frozen=True)
class Squares(Objective):
    """`mean |w x + b - noise|^2`, the noise drawn from the step's key; counts its traces."""

    continuous: ClassVar[bool] = False
    traces: list = dataclasses.field(default_factory=list)

    def __call__(self, networks, batch: Batch, key, progress):
        self.traces.append(batch.x.shape)
        line, noise = networks.online, jax.random.normal(key, (batch.x.shape[0], 2))
        loss = jnp.mean((batch.x @ line.w + line.b[None] - noise) ** 2)
        return loss, {"loss": loss, "progress": progress, "draw": noise[0, 0]}

    def sampling(self, network: Any): ...


def to_batch(raw, key) -> Batch:
    return Batch(raw)


X = jax.random.normal(jax.random.key(7), (8, 3))
BAD = {"nan": X.at[3, 1].set(jnp.nan), "infinite": X.at[0, 0].set(jnp.inf), "of infinite gradient": X * 1e30}


def start(tx=None, decay: float = 0.9, steps: int = 100, objective: Any = None):
    tx = optax.adam(1e-2) if tx is None else tx
    objective = Squares() if objective is None else objective
    step = make_step(objective, tx, prepare=to_batch, ema_decay=decay, steps=steps)
    return step, init_state(build, tx, jax.random.key(0), teacher=objective.stages > 0)


def numbers(tree) -> list[np.ndarray]:
    """Copies of all arrays, keys as their data."""
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return [np.array(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a) for a in arrays]


def assert_same(a, b) -> None:
    for one, other in zip(numbers(a), numbers(b), strict=True):
        np.testing.assert_array_equal(one, other)


def run(step, state, xs) -> tuple[TrainState, list[dict[str, float]]]:
    rows = []
    for x in xs:
        state, metrics = step(state, x)
        rows.append({name: float(value) for name, value in metrics.items()})
    return state, rows


def test_the_stub_is_an_objective():
    assert isinstance(Squares(), Objective)


def test_the_average_starts_as_a_copy_of_the_network():
    _, state = start()
    assert_same(state.networks.online, state.networks.ema)
    assert state.networks.online.w.unsafe_buffer_pointer() != state.networks.ema.w.unsafe_buffer_pointer()
    assert int(state.step) == int(state.skipped) == int(state.streak) == 0 and state.networks.teacher is None


def test_two_runs_of_one_seed_are_equal_to_the_bit():
    (one, rows), (other, again) = (run(*start(), [X] * 4) for _ in range(2))
    assert_same(one, other)
    assert rows == again


def test_draws_are_a_function_of_seed_and_step_alone():
    """A state put at step 2 draws what a run draws at its step 2, whatever came before."""
    step, state = start()
    (key,) = numbers(state.key)
    _, rows = run(step, state, [X] * 3)
    assert len({row["draw"] for row in rows}) == 3
    _, fresh = start()
    _, (row,) = run(step, eqx.tree_at(lambda s: s.step, fresh, jnp.int32(2)), [X * 2])
    assert row["draw"] == rows[2]["draw"]
    k_loss = jax.random.split(jax.random.fold_in(jax.random.wrap_key_data(jnp.asarray(key)), 2))[1]
    assert row["draw"] == float(jax.random.normal(k_loss, (8, 2))[0, 0])


def test_the_objective_is_told_the_share_of_training_done():
    _, rows = run(*start(steps=4), [X] * 4)
    assert [row["progress"] for row in rows] == [0, 0.25, 0.5, 0.75]


def test_a_step_is_compiled_once():
    objective = Squares()
    step, state = start(objective=objective)
    run(step, state, [X, X + 1, BAD["nan"], X])
    assert len(objective.traces) == 1


def test_the_state_passed_in_is_consumed_and_the_batch_is_not():
    step, state = start()
    old = jax.tree.leaves(eqx.filter((state.networks, state.opt_state), eqx.is_array))
    step(state, X)
    assert all(array.is_deleted() for array in old) and not X.is_deleted()


def test_the_average_after_a_step_is_decay_average_plus_rest_network():
    step, state = start(decay=0.75)
    before = numbers(state.networks.ema)
    for _ in range(2):
        state, _ = step(state, X)
        online = numbers(state.networks.online)
        for old, new, network in zip(before, numbers(state.networks.ema), online, strict=True):
            np.testing.assert_allclose(new, 0.75 * old + 0.25 * network, rtol=1e-6, atol=1e-7)
        before = numbers(state.networks.ema)


@pytest.mark.parametrize("bad", BAD)
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(bad):
    step, state = start()
    state, _ = run(step, state, [X])
    before, key = numbers((state.networks, state.opt_state)), numbers(state.key)
    state, (row,) = run(step, state, [BAD[bad]])
    assert not (np.isfinite(row["loss"]) and np.isfinite(row["grad_norm"]))
    for old, new in zip(before, numbers((state.networks, state.opt_state)), strict=True):
        np.testing.assert_array_equal(old, new)
    assert np.array_equal(numbers(state.key), key)
    assert (int(state.step), int(state.skipped), int(state.streak)) == (2, 1, 1)


# What is trained beside the network


@dataclasses.dataclass(frozen=True)
class Weighed(Squares):
    """Squares, each row weighed by what is learned of it."""

    def __call__(self, networks, batch: Batch, key, progress):
        line, noise = networks.online, jax.random.normal(key, (batch.x.shape[0], 2))
        error, t = jnp.mean((batch.x @ line.w + line.b[None] - noise) ** 2, axis=1), jnp.linspace(0, 1, len(noise))
        return (loss := jnp.mean(weights.learned(error, networks.extra.of(t, 1 - t)))), {"loss": loss}

    def extra(self, key):
        return weights.LogVariance(3)


def test_what_is_trained_beside_the_network_is_optimised_with_it_and_kept_by_skipped_steps_and_checkpoints(tmp_path):
    """By the rule of the network, here gradient descent; health sees every gradient; checkpoints have an item of it."""
    objective, tx = Weighed(), optax.sgd(0.1, momentum=0.5)
    like = init_state(build, tx, jax.random.key(0), extra=objective.extra)
    assert not jnp.any(like.networks.extra.coefficients)
    assert_same(like.networks.online, init_state(build, tx, jax.random.key(0)).networks.online)
    layers = health.make_layers(objective, tx, prepare=to_batch, steps=10)(like, X)
    assert list(layers["gradient"]) == ["extra/coefficients", "w", "b"]

    def loss(coefficients):
        given, networks = ((X, to_batch), like.networks)
        extra = eqx.tree_at(lambda e: e.coefficients, networks.extra, coefficients)
        return loss_of_step(objective, given, like, 10)[1]((networks.online, extra))[0]

    slope = jax.grad(loss)(like.networks.extra.coefficients)
    step, _ = start(tx, objective=objective)
    state, (row,) = run(step, like, [X])
    np.testing.assert_allclose(state.networks.extra.coefficients, -0.1 * slope, rtol=1e-5, atol=1e-7)
    norms = [part.norm for part in layers["gradient"].values()]
    np.testing.assert_allclose(np.linalg.norm(norms), row["grad_norm"], rtol=1e-5)
    before = numbers((state.networks, state.opt_state))
    state, _ = run(step, state, [BAD["nan"]])
    for old, new in zip(before, numbers((state.networks, state.opt_state)), strict=True):
        np.testing.assert_array_equal(old, new)
    with contextlib.closing(Checkpoints(tmp_path)) as checkpoints:
        checkpoints.save(state, {}, wait=True)
        found = checkpoints.restore(init_state(build, tx, jax.random.key(1), extra=objective.extra))
    assert (tmp_path / "2" / "extra").is_dir() and found is not None
    assert jax.tree.structure(found[0]) == jax.tree.structure(state)
    assert_same(found[0], state)


# The teacher


@dataclasses.dataclass(frozen=True)
class Taught(Squares):
    """Squares of the difference to the teacher, too; a new teacher at each of the stages."""

    count: int = 3
    average: bool = True

    @property
    def stages(self) -> int:
        return self.count

    def snapshot(self, networks):
        return networks.ema if self.average else networks.online

    def __call__(self, networks, batch: Batch, key, progress):
        loss, metrics = super().__call__(networks, batch, key, progress)
        loss = loss + jnp.mean((batch.x @ (networks.online.w - networks.teacher.w)) ** 2)
        return loss, metrics | {"loss": loss}


def test_average_and_teacher_start_as_copies_in_buffers_of_their_own():
    _, state = start(objective=Taught())
    networks = state.networks
    assert_same(networks.online, networks.teacher)
    assert len({n.w.unsafe_buffer_pointer() for n in (networks.online, networks.ema, networks.teacher)}) == 3


@pytest.mark.parametrize("average", [True, False])
def test_the_teacher_is_renewed_where_a_stage_begins_and_nowhere_else(average):
    """Seven steps of three stages: steps 0 to 2, 3 and 4, 5 and 6; a step that is not finite in between."""
    objective = Taught(average=average)
    step, state = start(objective=objective, steps=7)
    for number, x in enumerate([X, X, X, X, BAD["nan"], X, X], start=1):
        teacher = numbers(state.networks.teacher)
        state, _ = step(state, x)
        expected = numbers(objective.snapshot(state.networks)) if number in (3, 5) else teacher
        for one, other in zip(numbers(state.networks.teacher), expected, strict=True):
            np.testing.assert_array_equal(one, other)
        assert np.any(numbers(state.networks.ema)[0] != numbers(state.networks.online)[0])
    assert len(objective.traces) == 1 and int(state.skipped) == 1
    assert all(np.isfinite(array).all() for array in numbers(state.networks))


def test_one_teacher_throughout_is_never_renewed():
    step, state = start(objective=Taught(count=1), steps=3)
    before = numbers(state.networks.teacher)
    state, _ = run(step, state, [X] * 4)
    for one, other in zip(numbers(state.networks.teacher), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("at", [2, 3])
def test_a_distillation_goes_on_from_its_checkpoint_to_the_bit_over_a_new_stage(at, tmp_path):
    step, state = start(objective=Taught(), steps=7)
    checkpoints = Checkpoints(tmp_path)
    for number in range(1, 8):
        state, _ = step(state, X + number)
        if number == at:
            checkpoints.save(state, {}, wait=True)
    again, fresh = start(objective=Taught(), steps=7)
    fresh, _ = again(fresh, X)
    found = checkpoints.restore(fresh)
    checkpoints.close()
    assert found is not None and int(found[0].step) == at
    continued, _ = run(again, found[0], [X + number for number in range(at + 1, 8)])
    assert_same(continued, state)


def test_skipped_steps_are_counted_and_a_good_one_ends_the_streak():
    nan = BAD["nan"]
    _, rows = run(*start(), [nan, nan, X, nan, X])
    assert [row["skipped"] for row in rows] == [1, 2, 2, 3, 3]
    assert [row["streak"] for row in rows] == [1, 2, 0, 1, 0]


@pytest.mark.parametrize("extra", [0, 1, 5])
def test_twenty_bad_steps_in_a_row_end_a_run_even_at_its_end(extra):
    step, state = start()
    xs = [X, X] + [BAD["nan"]] * (STREAK + extra)
    seen: list[int] = []
    with pytest.raises(Diverged, match=r"not finite for 20 steps in a row, up to step 22.*weights are those of step 2;.*clip"):
        fit(step, state, xs, until=len(xs), events=[lambda number, state, metrics: seen.append(number)])
    assert seen[-1] in (22, 23)


def test_nineteen_bad_steps_in_a_row_do_not():
    step, state = start()
    nan = BAD["nan"]
    xs = [nan] * (STREAK - 1) + [X] + [nan] * (STREAK - 1)
    assert int(fit(step, state, xs, until=len(xs)).skipped) == 2 * (STREAK - 1)


def test_fit_runs_every_event_after_each_step_in_order():
    step, state = start()
    seen: list[tuple[str, int, int]] = []
    events = [
        lambda number, state, metrics: seen.append(("a", number, int(state.step))),
        lambda number, state, metrics: seen.append(("b", number, int(metrics["loss"] > 0))),
    ]
    state = fit(step, state, [X] * 5, until=2, events=events)
    assert seen == [("a", 1, 1), ("b", 1, 1), ("a", 2, 2), ("b", 2, 1)] and int(state.step) == 2


def test_fit_goes_on_from_the_step_of_the_state_and_takes_no_batch_too_many():
    step, state = start()
    xs, seen = iter([X] * 5), []
    state = fit(step, state, xs, until=2)
    state = fit(step, state, xs, until=4, events=[lambda number, *_: seen.append(number)])
    assert seen == [3, 4] and len(list(xs)) == 1
    assert fit(step, state, xs, until=4) is state


@pytest.mark.parametrize(("n", "until", "expected"), [(3, 7, [3, 6, 7]), (3, 6, [3, 6]), (10, 4, [4]), (1, 3, [1, 2, 3])])
def test_every_is_each_nth_step_and_the_last_once(n, until, expected):
    seen: list[int] = []
    event, (_, state) = every(n, until, lambda number, state, metrics: seen.append(number)), start()
    for number in range(1, until + 1):
        event(number, state, {})
    assert seen == expected


def adamw(parameters: list[np.ndarray], gradients: list[list[np.ndarray]], config: AdamW, rates: list[float]):
    """AdamW as Loshchilov and Hutter write it, in double precision."""
    m, v = ([np.zeros_like(p, np.float64) for p in parameters] for _ in range(2))
    parameters = [p.astype(np.float64) for p in parameters]
    for n, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        norm = np.sqrt(sum((g.astype(np.float64) ** 2).sum() for g in gradient))
        scale = 1 if config.clip is None else min(1, config.clip / norm)
        for i, g in enumerate(gradient):
            g = g.astype(np.float64) * scale
            m[i] = config.beta1 * m[i] + (1 - config.beta1) * g
            v[i] = config.beta2 * v[i] + (1 - config.beta2) * g**2
            update = (m[i] / (1 - config.beta1**n)) / (np.sqrt(v[i] / (1 - config.beta2**n)) + 1e-8)
            parameters[i] -= rate * (update + config.weight_decay * parameters[i])
    return parameters


@pytest.mark.parametrize(
    "config",
    [AdamW(lr=0.1), AdamW(lr=0.1, clip=0.5, beta1=0.5), AdamW(lr=0.1, schedule="cosine", warmup=1, weight_decay=0.5)],
    ids=["plain", "clipped", "scheduled"],
)
def test_two_steps_of_adamw_are_those_computed_by_hand(config, x64):
    """Gradients `3 p` and `-p`, each at the weights of its step."""
    tx, first, second = config.build(10), np.array([[1.0, -2.0, 3.0]] * 2), np.array([0.5, -0.25])
    parameters, seen = (jnp.asarray(first), jnp.asarray(second)), []
    state = tx.init(parameters)
    with jax.numpy_dtype_promotion("standard"):
        for c in (3.0, -1.0):
            gradient = jax.tree.map(lambda p, c=c: c * p, parameters)
            seen.append([np.asarray(g) for g in gradient])
            updates, state = tx.update(gradient, state, parameters)
            parameters = optax.apply_updates(parameters, updates)
    rates = [float(config.rate(10)(n)) for n in range(2)]
    for found, expected in zip(jax.tree.leaves(parameters), adamw([first, second], seen, config, rates), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-7)


def test_weight_decay_alone_shrinks_by_rate_times_decay():
    config = AdamW(lr=0.1, weight_decay=0.5)
    tx, p = config.build(10), jnp.array([4.0])
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = tx.update(jnp.zeros(1), tx.init(p), p)
    (shrunk,) = jax.tree.leaves(optax.apply_updates(p, updates))
    np.testing.assert_allclose(shrunk, 4 * (1 - 0.1 * 0.5), rtol=1e-6)


def test_more_averages_follow_in_the_same_program_and_change_nothing_else():
    """Also over a skipped step, which is no update of theirs."""
    objective = Squares()
    step, state = start(objective=objective)
    wide = init_state(build, optax.adam(1e-2), jax.random.key(0), averages=(0.05, 0.1))
    recorded = []
    for x in (X, X + 1, BAD["nan"], X - 1, X):
        state, _ = step(state, x)
        wide, _ = step(wide, x)
        recorded.append(numbers(wide.networks.online))
    assert_same(wide.networks, state.networks)
    assert len(objective.traces) == 2 and int(wide.updates) == 4
    updates = [found for i, found in enumerate(recorded) if i != 2]
    for average in wide.averages:
        n, i = ema.gamma_of(average.sigma_rel) + 1, np.arange(1, 5)
        weights = (i**n - (i - 1) ** n) / 4**n
        for found, *moved in zip(numbers(average.network), *updates, strict=True):
            np.testing.assert_allclose(found, np.tensordot(weights, np.stack(moved), 1), atol=1e-6)


def rates(config: AdamW, steps: int, at: list[int]) -> np.ndarray:
    return np.array([float(np.asarray(config.rate(steps)(n))) for n in at])


def test_a_constant_rate_is_constant_after_its_warm_up():
    np.testing.assert_allclose(rates(AdamW(lr=2.0), 10, [0, 5, 10, 99]), 2.0)
    np.testing.assert_allclose(rates(AdamW(lr=2.0, warmup=4), 10, [0, 1, 2, 4, 9]), [0, 0.5, 1, 2, 2])


def test_a_cosine_falls_to_nothing_at_the_last_step():
    expected = [1 + np.cos(np.pi * n / 10) for n in range(11)]
    np.testing.assert_allclose(rates(AdamW(lr=2.0, schedule="cosine"), 10, list(range(11))), expected, atol=1e-6)
    warm = AdamW(lr=2.0, schedule="cosine", warmup=2)
    np.testing.assert_allclose(rates(warm, 10, [0, 1, 2, 6, 10]), [0, 1, 2, 1, 0], atol=1e-6)


def test_a_warm_up_longer_than_the_run_only_rises():
    found = rates(AdamW(lr=2.0, schedule="cosine", warmup=20), 10, list(range(11)))
    np.testing.assert_allclose(found, 0.1 * np.arange(11), rtol=1e-6)


def test_the_gradient_norm_reported_is_that_before_clipping():
    tx = AdamW(lr=0.0, clip=1e-3).build(10)
    _, (clipped,) = run(*start(tx), [X])
    _, (plain,) = run(*start(), [X])
    assert clipped["grad_norm"] == plain["grad_norm"] > 1e-3


NETWORK = DiTConfig(hidden=16, depth=1, heads=2, patch=2)
IMAGES = jax.random.normal(jax.random.key(3), (3, 16, 4, 4, 1))


def three_steps(objective: Any, devices: int) -> TrainState:
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    tx = AdamW(lr=1e-2, clip=1.0).build(3)
    state = sharding.replicate(
        init_state(lambda key: NETWORK.build((4, 4, 1), 5, key=key), tx, jax.random.key(0), null=5), mesh
    )
    step = make_step(
        objective,
        tx,
        prepare=lambda raw, key: Batch(*raw),
        ema_decay=0.9,
        steps=3,
        shardings=lambda state: sharding.replicate(state, mesh),
    )
    labels = jnp.arange(16) % 5
    for x in IMAGES:
        state, _ = step(state, jax.device_put((x, labels), sharding.batch_sharding(mesh)))
    return state


@pytest.mark.slow  # the short versions are in test_layouts.py and models/test_dit.py
def test_three_steps_are_equal_on_1_and_8_devices():
    """But for the biases of the attention's keys, whose gradient is rounding: a shift of all logits changes nothing."""
    objective = Shortcut(steps=4, bootstrap_every=2)
    one, eight = three_steps(objective, 1), three_steps(objective, 8)
    moved = numbers(init_state(lambda key: NETWORK.build((4, 4, 1), 5, key=key), AdamW().build(3), jax.random.key(0)).networks)
    bias = lambda networks: [n.blocks.qkv.bias for n in (networks.online, networks.ema)]  # noqa: E731
    hide = lambda networks: eqx.tree_at(bias, networks, [b.at[:, 1].set(0) for b in bias(networks)])  # noqa: E731
    assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(eqx.filter(eight, eqx.is_array)))
    for a, b in zip(numbers(hide(one.networks)), numbers(hide(eight.networks)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert max(np.abs(a - b).max() for a, b in zip(moved, numbers(one.networks), strict=True)) > 1e-3
