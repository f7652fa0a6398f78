"""A network and a data set of the user's own: trained under every objective, opened again, sampled; and what is refused."""

import contextlib
import dataclasses
import functools
import json
import math
import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqx_shortcut import flops, settings, sharding
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.data import ArraySource, batches, example, null_of, prepare
from eqx_shortcut.data.pipeline import WholeBatches
from eqx_shortcut.evaluate.held_out import squared_errors, validation_loss
from eqx_shortcut.experiment import health
from eqx_shortcut.models import DiTConfig, MLPConfig, NetworkConfig, check_network
from eqx_shortcut.objectives import OBJECTIVES, FlowMatching, ImprovedMeanFlow, MeanFlow, Networks, Objective, Shortcut
from eqx_shortcut.sampling import Sampling
from eqx_shortcut.train import TrainState, fit, init_state, make_step
from eqx_shortcut.trained import Trained, load, noise, sample, sample_from, trajectory


class Policy(eqx.Module):
    """One hidden layer over all that it is given."""

    enter: jax.Array
    see: jax.Array
    leave: jax.Array

    def __call__(self, x, t, d, condition, *, key=None):
        camera = jnp.mean(condition["camera"].astype(x.dtype) / 255, axis=(0, 1))
        given = jnp.concatenate([x.reshape(-1), t[None], d[None]])
        hidden = jnp.tanh(given @ self.enter + jnp.concatenate([condition["state"], camera]) @ self.see)
        return (hidden @ self.leave).reshape(x.shape)


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    width: int = 24

    def build(self, shape, classes, *, key):
        k_enter, k_see, k_leave = jax.random.split(key, 3)
        numbers = math.prod(shape)
        draw = lambda key, *shape: jax.random.normal(key, shape) / 3  # noqa: E731
        return Policy(draw(k_enter, numbers + 2, self.width), draw(k_see, 6, self.width), draw(k_leave, self.width, numbers))


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """Curves whose start is what is seen."""

    count: int = 40

    def build(self):
        rng = np.random.default_rng(0)
        state, camera = rng.standard_normal((self.count, 3)), rng.integers(0, 256, (self.count, 4, 4, 3), np.uint8)
        actions = np.sin(state[:, None, :2] + np.linspace(0, 3, 16)[:, None])
        return ArraySource(actions, {"state": state, "camera": camera}).split(0.2)


BATCH, STEPS = 16, 3
TX = optax.sgd(0.1)
NETWORK, (TRAIN, HELD_OUT) = PolicyConfig(), Demonstrations().build()
STORED = jax.tree.map(np.asarray, NETWORK.build(TRAIN.shape, 0, key=jax.random.key(0)))
NULL = null_of(TRAIN)
ALL: dict[str, Any] = {kind.__name__: kind for kind in OBJECTIVES.values()}
SHORT = {"steps": 4, "bootstrap_every": 4, "rollout": 2, "score": "test_foreign:total"}


def objective_of(name: str) -> Objective:
    """With few steps, where it has a number of them."""
    kind = ALL[name]
    return kind(**{field.name: SHORT[field.name] for field in dataclasses.fields(kind) if field.name in SHORT})


def networks_of(objective: Objective) -> Networks:
    """Networks before the first step, each in buffers of its own, made without a program."""
    online, average, teacher = (jax.tree.map(jnp.array, STORED) for _ in range(3))
    return Networks(
        online,
        average,
        teacher if objective.stages else None,
        objective.extra(jax.random.key(1)),
        NULL,
        memory=objective.memory(TRAIN.shape),
    )


def total(x, cond):
    """A reward."""
    return jnp.sum(x.reshape(x.shape[0], -1), axis=1)


def test_all_objectives_are_tried():
    assert len(ALL) == 24 and all(isinstance(kind(), Objective) for kind in ALL.values())


@pytest.mark.parametrize("name", ALL)
def test_three_steps_under_every_objective(name):
    """Every kernel moves, that of what is seen among them, by gradients that are finite."""
    objective, whole = objective_of(name), WholeBatches(TRAIN, BATCH, seed=0)
    objective.check(BATCH)
    check_network(NETWORK, objective, example(TRAIN), TRAIN.classes)
    networks, (step, skipped, streak) = networks_of(objective), (jnp.zeros((), jnp.int32) for _ in range(3))
    state = TrainState(step, jax.random.key(2), networks, TX.init(networks.trained), skipped, streak)
    step, seen = make_step(objective, TX, prepare=prepare(TRAIN), ema_decay=0.9, steps=STEPS), []
    for i in range(STEPS):
        state, metrics = step(state, whole[i])
        seen += metrics.values()
    assert int(state.skipped) == 0 and np.isfinite(jax.device_get(seen)).all()
    moved = jax.tree.map(lambda a, b: np.abs(np.asarray(a) - b).max(), state.networks.online, STORED)
    assert min(jax.tree.leaves(moved)) > 1e-7
    jax.tree.map(np.testing.assert_array_equal, state.networks.null, NULL)


# A run, opened again


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Three steps as the trainer takes them, on eight devices."""
    folder, objective, mesh = tmp_path_factory.mktemp("run"), FlowMatching(steps=4), sharding.make_mesh(data=2, fsdp=4)
    settings.check_importable((NETWORK, objective))
    record = {"network": settings.dump(NETWORK), "objective": settings.dump(objective)}
    record |= {"shape": list(TRAIN.shape), "classes": TRAIN.classes, "null": settings.dump_arrays(NULL)}
    (folder / "config.json").write_text(json.dumps(record))
    build = lambda key: NETWORK.build(TRAIN.shape, TRAIN.classes, key=key)  # noqa: E731
    lay_out = functools.partial(sharding.lay_out, mesh=mesh)
    with jax.set_mesh(mesh), contextlib.closing(Checkpoints(folder / "checkpoints")) as checkpoints:
        state = init_state(build, TX, jax.random.key(0), null=NULL, shardings=lay_out)
        step = make_step(objective, TX, prepare=prepare(TRAIN), ema_decay=0.9, steps=STEPS, shardings=lay_out)
        with contextlib.closing(batches(TRAIN, BATCH, seed=0, sharding=sharding.batch_sharding(mesh))) as loader:
            state = fit(step, state, loader, until=STEPS)
            checkpoints.save(state, loader.get_state(), wait=True)
        found = checkpoints.restore(init_state(build, TX, jax.random.key(1), null=NULL, shardings=lay_out))
    assert found is not None
    jax.tree.map(np.testing.assert_array_equal, found[0].networks.online, state.networks.online)
    return folder


@pytest.fixture(scope="module")
def model(run: pathlib.Path) -> Trained:
    return load(run)


SEEN = HELD_OUT.first(5).condition


def test_a_run_is_opened_with_its_network_and_null(model):
    assert isinstance(model.network, Policy) and (model.shape, model.classes, model.step) == ((16, 2), 0, STEPS)
    assert jax.tree.structure(model.null) == jax.tree.structure(NULL)
    jax.tree.map(np.testing.assert_array_equal, model.null, NULL)
    assert jax.tree.map(lambda a: a.dtype, model.null) == jax.tree.map(lambda a: a.dtype, NULL)


def test_each_sample_is_of_its_condition_whatever_the_batch(model, key):
    x = noise(model, key, jnp.arange(5))
    t = jnp.zeros(5)
    expected = x + model.field(x, t, t + 0.25, jax.tree.map(jnp.asarray, SEEN))
    found = sample(model, key, 5, conditions=SEEN)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(sample(model, key, 5, conditions=SEEN, batch=2), found, atol=1e-5)
    last = jax.tree.map(lambda leaf: leaf[3:], SEEN)
    np.testing.assert_allclose(sample(model, key, 2, first=3, conditions=last), found[3:], atol=1e-5)
    np.testing.assert_array_equal(sample_from(model, key, x, conditions=SEEN), found)
    way = trajectory(model, key, x, steps=1, points=(0, 1), conditions=SEEN)
    np.testing.assert_array_equal(way.x[-1], found)


def test_one_condition_serves_all_samples(model, key):
    one = jax.tree.map(lambda leaf: leaf[0], SEEN)
    each = jax.tree.map(lambda leaf: np.stack([leaf] * 3), one)
    np.testing.assert_array_equal(sample(model, key, 3, conditions=one), sample(model, key, 3, conditions=each))


@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0])
def test_guidance_extrapolates_from_the_null_condition(model, key, scale):
    with_it, without = sample(model, key, 5, conditions=SEEN), sample(model, key, 5, conditions=NULL)
    assert np.abs(with_it - without).max() > 1e-2
    found = sample(model, key, 5, Sampling(guidance=scale), conditions=SEEN)
    np.testing.assert_allclose(found, without + scale * (with_it - without), atol=1e-4)


KIND = r"\{'camera': u8\[4,4,3\], 'state': f32\[3\]\}"
ASKED: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, f"conditions of the run are {KIND}, not labels: give conditions="),
    "labels": ({"labels": 3}, f"conditions of the run are {KIND}, not labels: give conditions="),
    "both": ({"labels": 3, "conditions": NULL}, "labels and conditions both say what to sample"),
    "parts": ({"conditions": {"state": np.zeros(3)}}, f"are not of the run's kind, {KIND}"),
    "units": (
        {"conditions": NULL | {"camera": np.zeros((4, 4, 3), np.float32)}},
        rf"a condition of float32, where training had uint8 \(of {KIND}\): scale it as there",
    ),
    "shape": (
        {"conditions": NULL | {"state": np.zeros((4, 2))}},
        r"a condition of shape \(4, 2\) for 4 samples, where one is of shape \(3,\).*: give 4 with a leading axis",
    ),
}


@pytest.mark.parametrize("name", ASKED)
def test_conditions_that_do_not_fit_are_one_sentence(model, key, name):
    asked, said = ASKED[name]
    with pytest.raises(ValueError, match=said):
        sample(model, key, 4, **asked)


@pytest.mark.parametrize("asked", [{"conditions": NULL}, {"labels": 0}, {"steps": Sampling(guidance=2.0)}])
def test_a_run_without_conditions_refuses_them(model, key, asked):
    hidden = dataclasses.replace(model, labelled=False)
    alone = Trained(Alone(jnp.ones(2)), FlowMatching(steps=4), (16, 2), 0, 1)
    for other in (hidden, alone):
        assert np.isfinite(sample(other, key, 2)).all()
        with pytest.raises(ValueError, match="the run was trained without"):
            sample(other, key, 2, **asked)


def test_a_run_whose_module_is_gone_says_so(run, tmp_path):
    record = settings.read(run / "config.json")
    for kind in ("gone_birds:UNetConfig", f"{__name__}:GoneConfig"):
        (tmp_path / "config.json").write_text(json.dumps(record | {"network": {"kind": kind}}))
        with pytest.raises(
            ValueError, match=rf"the class {kind}, which cannot be imported here \(.*\): run where its module lies"
        ):
            load(tmp_path)


# Without a condition


class Alone(eqx.Module):
    """A network that sees no condition."""

    weight: jax.Array

    def __call__(self, x, t, d, condition, *, key=None):
        assert condition is None
        return self.weight[None] * x + t - d


@pytest.mark.parametrize("name", ["Shortcut", "MeanFlow", "ImprovedMeanFlow", "ESC", "ConsistencyDistillation"])
def test_rows_without_a_condition_are_trained_on(name):
    objective, rows = objective_of(name), ArraySource(TRAIN.x[:BATCH])
    network, batch = Alone(jnp.array([0.5, -0.5])), prepare(rows)(rows.rows(np.arange(BATCH)), jax.random.key(0))
    check_network(Building(network), objective, example(rows), rows.classes)
    teacher = network if objective.stages else None
    networks = Networks(network, network, teacher, objective.extra(jax.random.key(1)), null_of(rows))
    loss, _ = eqx.filter_jit(lambda n, b: objective(n, b, jax.random.key(2), jnp.float32(0.4)))(networks, batch)
    assert np.isfinite(loss)


# What asks more of a network than a call, where it may


def test_operations_of_a_step_are_those_of_its_products():
    """Two forwards; of the gradient each product's two factors, but what is given to the first two has none."""
    per_row, first = 2 * 24 * (34 + 6 + 32), 2 * 24 * (34 + 6)
    objective = FlowMatching(steps=4)
    assert flops.of_step(objective, networks_of(objective), BATCH, TRAIN.shape) == BATCH * (3 * per_row - first)


class Own(eqx.Module):
    """A product whose gradient is its own affair, and tangent none."""

    kernel: jax.Array

    def __call__(self, x, t, d, condition, *, key=None):
        @jax.custom_vjp
        def product(x, kernel):
            return x @ kernel

        product.defvjp(lambda x, k: (x @ k, (x, k)), lambda kept, g: (g @ kept[1].T, kept[0].T @ g))
        return product(x, self.kernel)


def test_operations_of_a_network_without_tangents_are_counted_from_its_gradient():
    network = Own(jnp.eye(2))
    found = flops.of_step(FlowMatching(steps=4), Networks(network, network), BATCH, (16, 2))
    assert found == BATCH * 2 * (2 * 16 * 2 * 2)


def test_errors_by_time_validation_and_health_take_any_network():
    objective = Shortcut(steps=4, bootstrap_every=4)
    networks, batch = networks_of(objective), prepare(TRAIN)(TRAIN.rows(np.arange(BATCH)), jax.random.key(0))

    @eqx.filter_jit
    def measured(networks, batch, key, progress):
        asked = squared_errors(objective, networks, batch, key, progress, times=2)
        return asked, validation_loss(objective, networks, batch, key, progress)

    asked, loss = measured(networks, batch, jax.random.key(1), jnp.float32(0.5))
    assert [name for name, _ in asked] == ["flow", "bootstrap"] and all(np.isfinite(found.error).all() for _, found in asked)
    assert np.isfinite(loss["loss"])
    step, skipped, streak = (jnp.zeros((), jnp.int32) for _ in range(3))
    state = TrainState(step, jax.random.key(2), networks, TX.init(networks.trained), skipped, streak)
    told = health.make_activations(objective, prepare=prepare(TRAIN), steps=STEPS)(state, TRAIN.rows(np.arange(BATCH)))
    assert list(told) == ["ema 1", "ema 2", "online 1"] and all(list(layers) == ["answer"] for layers in told.values())


# Networks that do not fit


@dataclasses.dataclass(frozen=True)
class Building:
    """A config that builds the network given."""

    network: Any

    def build(self, shape, classes, *, key):
        return self.network


class Doubled(Policy):
    def __call__(self, x, t, d, condition, *, key=None):
        return jnp.stack([x, x])


class Several(Policy):
    def __call__(self, x, t, d, condition, *, key=None):
        return x, t


class Keyless(Policy):
    def __call__(self, x, t, d, condition):
        return x


class Timeless(Policy):
    def __call__(self, x, condition, *, key=None):
        return x


class Elsewhere(Policy):
    def __call__(self, x, t, d, condition, *, key=None):
        return x + condition["goal"]


class Wide(Policy):
    def __call__(self, x, t, d, condition, *, key=None):
        return x @ jnp.ones((3, 2))


@dataclasses.dataclass(frozen=True)
class Shapeless:
    def build(self, key):
        return Policy(STORED.enter, STORED.see, STORED.leave)


def built(kind: Any) -> Building:
    return Building(kind(STORED.enter, STORED.see, STORED.leave))


PLAIN, HEADED, TOLD = FlowMatching(), ImprovedMeanFlow(velocity_head=True), ImprovedMeanFlow(max_scale=4.0)
MISFITS: dict[str, tuple[Any, Objective, str]] = {
    "shape": (built(Doubled), PLAIN, r"Doubled answers f32\[2,16,2\] for x f32\[16,2\], and a velocity has the shape of x"),
    "several": (built(Several), PLAIN, r"Several answers \(f32\[16,2\], f32\[\]\) for x f32\[16,2\]"),
    "no key": (
        built(Keyless),
        PLAIN,
        r"Keyless is called \(x, t, d, condition, \*, key=None\) and takes \(x, t, d, condition\) \(got an unexpected .*'key'",
    ),
    "no time": (
        built(Timeless),
        PLAIN,
        r"Timeless is called \(x, t, d, .* and takes \(x, condition, \*, key=None\) \(too many",
    ),
    "build": (Shapeless(), PLAIN, r"Shapeless.build is called \(shape, classes, \*, key\) and takes \(key\) \("),
    "condition": (
        built(Elsewhere),
        PLAIN,
        r"Elsewhere cannot be called on x f32\[16,2\], t, d, condition \{'camera': u8\[4,4,3\], 'state': f32\[3\]\}: 'goal'",
    ),
    "inside": (built(Wide), PLAIN, r"Wide cannot be called on x f32\[16,2\].*: dot_general requires"),
    "no module": (Building("a network"), PLAIN, r"Building.build gives a str, not a module that is called"),
    "head": (NETWORK, HEADED, r"ImprovedMeanFlow trains a second head, and PolicyConfig has no property `velocity` for it"),
    "told": (NETWORK, TOLD, r"Policy cannot be called on x f32\[16,2\], t, d, condition Guided\("),
}


@pytest.mark.parametrize("name", MISFITS)
def test_a_network_that_does_not_fit_is_one_sentence(name):
    config, objective, said = MISFITS[name]
    with pytest.raises(ValueError, match=said) as found:
        check_network(config, objective, example(TRAIN), TRAIN.classes)
    assert "\n" not in str(found.value)


LABELLED = ArraySource(np.zeros((4, 4, 4, 1)), np.arange(4))
DIT, MLP = DiTConfig(hidden=16, depth=1, heads=2), MLPConfig(hidden=8)


@pytest.mark.parametrize(
    ("network", "objective", "said"),
    [
        (DIT, MeanFlow(), r"MeanFlow asks .* at continuous step sizes, 0 included, .* use --network.step linear"),
        (
            dataclasses.replace(DIT, step="linear"),
            TOLD,
            "scale of its guidance, .*guided none has no input: use .*guided scale",
        ),
        (MLP, dataclasses.replace(TOLD, intervals=True), "interval of its guidance, .*guided none has no input"),
        (dataclasses.replace(DIT, step="linear"), HEADED, "a second head, which the network does not have: .*velocity-head"),
        (MLP, HEADED, "a second head, which the MLP does not have"),
        (MLPConfig(hidden=2**31), PLAIN, "an array of 9.2e\\+18 numbers, more than any machine addresses: make it smaller"),
    ],
)
def test_the_package_s_own_networks_say_what_they_lack(network, objective, said):
    assert isinstance(network, NetworkConfig)
    with pytest.raises(ValueError, match=said):
        check_network(network, objective, example(LABELLED), LABELLED.classes)


@pytest.mark.parametrize(
    ("network", "objective"),
    [
        (DIT, PLAIN),
        (
            dataclasses.replace(DIT, step="linear", guided="interval", velocity_head=True),
            dataclasses.replace(HEADED, max_scale=4.0),
        ),
        (dataclasses.replace(MLP, guided="interval"), TOLD),
        (MLP, MeanFlow()),
    ],
)
def test_the_package_s_own_networks_fit(network, objective):
    check_network(network, objective, example(LABELLED), LABELLED.classes)
