"""What a new run takes from another: the same function at first, in buffers of its own, where the state lies."""

import dataclasses
import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_shortcut
from eqx_shortcut import sharding
from eqx_shortcut.data import Digits
from eqx_shortcut.experiment import initial
from eqx_shortcut.experiment.config import Config
from eqx_shortcut.experiment.initial import adopted, check_first, check_same, check_teacher
from eqx_shortcut.models import DiTConfig, MLPConfig, NetworkField
from eqx_shortcut.objectives import (
    ConsistencyDistillation,
    ContinuousConsistency,
    Diffusion,
    FlowMatching,
    Lagrangian,
    MeanFlow,
    Objective,
    Shortcut,
)
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import init_state
from eqx_shortcut.trained import Trained
from scripts import script

EIGHT_DEVICES = True
NETWORK, SHAPE, CLASSES = DiTConfig(hidden=16, depth=1, heads=2, patch=2, precision="float32"), (4, 4, 1), 3
HERE = pathlib.Path("there")


def network_of(**options):
    return eqx.filter_jit(dataclasses.replace(NETWORK, **options).build)(SHAPE, CLASSES, key=jax.random.key(1))


def other_of(objective: Objective, at: int = 5, **options) -> Trained:
    """A run whose network has no zero among its weights."""
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda a: a + 0.3 * jnp.asarray(rng.standard_normal(a.shape), a.dtype), network_of(**options))
    return Trained(shaken, objective, SHAPE, CLASSES, at)


@eqx.filter_jit
def answers(network, d):
    x, t = jnp.linspace(-1, 1, 3 * 16).reshape(3, *SHAPE), jnp.array([0.0, 0.3, 0.9])
    return NetworkField(network)(x, t, jnp.full(3, d), jnp.arange(3))


def test_a_split_network_starts_as_the_flow_model_at_no_step():
    """Whatever the flow model saw of its one step: that is a constant now."""
    other = other_of(FlowMatching(steps=8), depth=2)
    taken = adopted(network_of(depth=2, split=1, step="none"), other, HERE)
    there = answers(other.network, jnp.float32(1 / 8))
    np.testing.assert_allclose(answers(taken, jnp.float32(0)), there, atol=1e-5)
    assert float(jnp.abs(answers(taken, jnp.float32(0.5)) - there).max()) > 1e-3


AVERAGED = "improved-mean-flow --network.step linear --network.embed-scale 10 --network.predict data"


@pytest.mark.parametrize(
    ("name", "other"), [("from-flow", "flow-matching"), ("from-flow-low-rank", "flow-matching"), ("drifting", AVERAGED)]
)
def test_presets_that_go_on_have_the_network_of_the_run_that_they_name(name, other):
    """Which is the one that its command leaves."""
    flow, config = (script("fashion_mnist").EXPERIMENT.parse(w) for w in (f"quick objective:{other}".split(), [name]))
    built = lambda config: eqx.filter_eval_shape(lambda k: config.network.build((28, 28, 1), 10, key=k), jax.random.key(0))  # noqa: E731
    assert config.init_from == pathlib.Path("runs/fashion_mnist") / other.split()[0]
    check_same(built(config), Trained(built(flow), flow.objective, (28, 28, 1), 10, 1), config.init_from)


@pytest.mark.parametrize("theirs", ["log2", "linear", "none"])
@pytest.mark.parametrize("objective", [FlowMatching(steps=8), Diffusion(steps=8)])
def test_weights_that_know_one_step_are_the_same_function_at_every_step(objective, theirs):
    other = other_of(objective, step=theirs)
    taken = adopted(network_of(), other, HERE)
    there = answers(other.network, jnp.float32(1 / 8))
    for d in (1.0, 0.5, 1 / 8, 1 / 128):
        np.testing.assert_allclose(answers(taken, jnp.float32(d)), there, atol=1e-5)
    assert taken.config == NETWORK


@pytest.mark.parametrize("objective", [FlowMatching(steps=8), Shortcut(steps=8)])
@pytest.mark.parametrize("sizes", [{}, {"fsdp": 8}])
def test_weights_are_taken_to_the_devices_of_a_run(objective, sizes):
    """Read onto one device, where the run's own mesh is set: what is computed of them lies on all."""
    mesh, other = sharding.make_mesh(**sizes), other_of(objective)
    other = dataclasses.replace(other, network=jax.device_put(other.network, jax.devices()[0]))
    network, expected = network_of(), adopted(network_of(), other, HERE)
    spread = sharding.lay_out(network, mesh)
    with jax.set_mesh(mesh):
        taken = adopted(spread, other, HERE)
    for leaf, place, value in zip(*map(jax.tree.leaves, (taken, spread, expected)), strict=True):
        assert leaf.sharding == place.sharding and len(leaf.devices()) == 8
        np.testing.assert_allclose(leaf, value, atol=1e-6)


def test_weights_that_know_many_steps_are_taken_as_they_are():
    other = other_of(Shortcut(steps=8), dropout=0.1, remat="mlp", unroll=2, precision="bfloat16")
    taken = adopted(network_of(), other, HERE)
    for one, same in zip(jax.tree.leaves(taken), jax.tree.leaves(other.network), strict=True):
        np.testing.assert_array_equal(one, same)
    assert taken.config == NETWORK


@pytest.mark.parametrize("options", [pytest.param({}, marks=pytest.mark.slow), {"low_rank": 2}, {"predict": "noise"}])
def test_a_shortcut_model_begins_with_the_samples_of_its_flow_model(options):
    """One as imported from SiT or DiT, at 128 steps and at 1; with corrections of low rank too."""
    theirs = {name: value for name, value in options.items() if name != "low_rank"}
    flow = other_of(FlowMatching(steps=128), logits="root", step="none", **theirs)
    taken = adopted(network_of(logits="root", **options), flow, HERE)
    begun = Trained(taken, Shortcut(steps=128), SHAPE, CLASSES, 0)
    for steps in (128, 1):
        found, expected = (eqx_shortcut.sample(model, jax.random.key(2), 3, steps=steps) for model in (begun, flow))
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert begun.network.step.hidden.kernel.any(), "or the step could never be learnt"


def test_corrections_that_were_trained_are_taken_in():
    """A run that starts from one with corrections begins where that one ended, with or without new ones."""
    other = other_of(Shortcut(steps=8), low_rank=2)
    expected = answers(other.network, jnp.float32(0.5))
    for rank in (0, 3):
        np.testing.assert_allclose(
            answers(adopted(network_of(low_rank=rank), other, HERE), jnp.float32(0.5)), expected, atol=1e-5
        )


def test_another_architecture_is_refused_setting_by_setting():
    with pytest.raises(
        ValueError, match=r"there has another network \(hidden is 32 there, 16 here; heads is 4 there, 2 here\)"
    ):
        adopted(network_of(), other_of(FlowMatching(), hidden=32, heads=4), HERE)
    with pytest.raises(ValueError, match=r"another network \(step is 'linear' there, 'log2' here\): use the same --network"):
        adopted(network_of(), other_of(Shortcut(), step="linear"), HERE)


def test_other_data_are_refused():
    network = NETWORK.build(SHAPE, CLASSES + 1, key=jax.random.key(0))
    with pytest.raises(
        ValueError, match=r"there was trained on examples of \(4, 4, 1\) with 3 classes, here .*with 4: name a run"
    ):
        adopted(network, other_of(FlowMatching()), HERE)


def config_of(objective, **options) -> Config:
    return Config(data=Digits(), network=NETWORK, objective=objective, optimizer=AdamW(), **options)


def test_a_state_starts_as_its_teacher_in_buffers_of_its_own_on_every_device(monkeypatch):
    """And the weights that --init-from names take the place of the teacher's, but do not teach."""
    runs = {"taught": other_of(FlowMatching(steps=4)), "first": other_of(Shortcut(steps=4))}
    runs["first"] = dataclasses.replace(runs["first"], network=jax.tree.map(lambda a: a + 1, runs["first"].network))
    monkeypatch.setattr("eqx_shortcut.experiment.initial.trained", lambda run: runs[run.name])
    state = init_state(lambda key: NETWORK.build(SHAPE, CLASSES, key=key), AdamW().build(1), jax.random.key(0), teacher=True)
    state = sharding.replicate(state, sharding.make_mesh())
    objective, teacher = ConsistencyDistillation(steps=4), pathlib.Path("taught")
    for first in (None, pathlib.Path("first")):
        found = initial.state(config_of(objective, teacher=teacher, init_from=first), state).networks
        found = sharding.replicate(found, sharding.make_mesh())
        kernels = [network.final.out.kernel for network in (found.online, found.ema, found.teacher)]
        expected = runs["taught" if first is None else "first"].network.final.out.kernel
        for kernel, wanted in zip(kernels, (expected, expected, runs["taught"].network.final.out.kernel), strict=True):
            assert len(kernel.devices()) == 8
            np.testing.assert_array_equal(kernel, wanted)
        assert len({kernel.addressable_shards[0].data.unsafe_buffer_pointer() for kernel in kernels}) == 3


def test_a_teacher_is_asked_at_continuous_step_sizes_if_it_knows_them_or_only_one():
    distil = config_of(ContinuousConsistency(distil=True), teacher=HERE)
    for objective in (FlowMatching(), MeanFlow()):
        check_teacher(distil, Trained(None, objective, SHAPE, CLASSES, 5), HERE)
    check_teacher(config_of(ConsistencyDistillation(), teacher=HERE), Trained(None, MeanFlow(), SHAPE, CLASSES, 5), HERE)
    with pytest.raises(ValueError, match=r"by Shortcut down to d = 0.125, and would be asked at d = 0: name a run of flow"):
        check_teacher(distil, Trained(None, Shortcut(steps=8), SHAPE, CLASSES, 5), HERE)
    with pytest.raises(ValueError, match="ContinuousConsistency and knows no velocity to teach"):
        check_teacher(distil, Trained(None, ContinuousConsistency(), SHAPE, CLASSES, 5), HERE)


GUIDED = Lagrangian(distil=True, guidance=2.0)
UNTAUGHT: dict[str, tuple[Config, Trained, str]] = {
    "noise": (
        config_of(MeanFlow(distil=True), noise_scale=2.0),
        Trained(None, FlowMatching(), SHAPE, CLASSES, 5),
        r"there was trained with noise of standard deviation 1, here it is 2: use --noise-scale 1",
    ),
    "no labels": (
        config_of(GUIDED),
        Trained(None, FlowMatching(), SHAPE, CLASSES, 5, labelled=False),
        r"guidance asks a teacher with its labels and without, and there was trained without labels: leave the scale at 1, or",
    ),
    "labels alone": (
        config_of(MeanFlow(distil=True, max_scale=3.0)),
        Trained(None, FlowMatching(label_dropout=0.0), SHAPE, CLASSES, 5),
        r"there never learnt to do without \(label_dropout=0\): leave the scale at 1, or guide it by --weak-teacher",
    ),
    "hidden here": (
        config_of(GUIDED, unconditional=True),
        Trained(None, FlowMatching(), SHAPE, CLASSES, 5),
        r"and here labels are hidden: leave the scale at 1",
    ),
}


@pytest.mark.parametrize(("config", "teacher", "message"), UNTAUGHT.values(), ids=UNTAUGHT.keys())
def test_a_teacher_that_does_not_know_what_it_is_asked_is_refused(config, teacher, message):
    with pytest.raises(ValueError, match=message):
        check_teacher(config, teacher, HERE)
    if "labels" in message:
        check_teacher(dataclasses.replace(config, weak_teacher=HERE), teacher, HERE)


UNSTARTED = {
    "no teacher": (config_of(MeanFlow(distil=True)), r"MeanFlow distils a trained network and none is named: train one"),
    "not told to": (config_of(MeanFlow(), teacher=HERE), r"has no teacher: distil from it with --objective.distil, leave out"),
    "no scale": (
        config_of(MeanFlow(distil=True), teacher=HERE, weak_teacher=HERE),
        r"--weak-teacher there guides a teacher by a scale: name both, with --teacher and --objective.guidance",
    ),
    "not guided so": (
        config_of(ConsistencyDistillation(guidance=2.0), teacher=HERE, weak_teacher=HERE),
        r"ConsistencyDistillation does not guide a teacher by a weak network: leave out --weak-teacher there",
    ),
}


@pytest.mark.parametrize(("config", "message"), UNSTARTED.values(), ids=UNSTARTED.keys())
def test_teachers_that_contradict_the_settings_are_refused_before_any_is_read(config, message):
    with pytest.raises(ValueError, match=message):
        initial.check_start(config)


def test_what_a_network_answers_is_among_its_settings():
    for config, shape in ((NETWORK, SHAPE), (MLPConfig(hidden=8, depth=1), (2,))):
        theirs, ours = (
            eqx.filter_eval_shape(dataclasses.replace(config, predict=what).build, shape, CLASSES, key=jax.random.key(0))
            for what in ("data", "velocity")
        )
        with pytest.raises(ValueError, match=r"another network \(predict is 'data' there, 'velocity' here\): use the same"):
            adopted(ours, Trained(theirs, Shortcut(), shape, CLASSES, 5), HERE)


def test_a_run_that_was_never_trained_is_refused(monkeypatch):
    monkeypatch.setattr("eqx_shortcut.experiment.initial.load", lambda run: other_of(FlowMatching(), 0))
    state = init_state(lambda key: NETWORK.build(SHAPE, CLASSES, key=key), AdamW().build(1), jax.random.key(0))
    with pytest.raises(ValueError, match=r"there was never trained: its only checkpoint is of step 0; train it first"):
        initial.state(config_of(Shortcut(), init_from=HERE), state)


@pytest.mark.parametrize(("ours", "theirs"), [(MeanFlow(), Diffusion()), (Diffusion(), FlowMatching())])
def test_first_weights_answer_what_is_trained(ours, theirs):
    with pytest.raises(ValueError, match=r"there was trained by \w+ to answer .*noise.*: name a run of a method that does"):
        check_first(config_of(ours, init_from=HERE), Trained(None, theirs, SHAPE, CLASSES, 5), HERE)
    check_first(config_of(ours, init_from=HERE), Trained(None, ours, SHAPE, CLASSES, 5), HERE)


def test_nothing_taken_is_the_state_itself():
    state = init_state(lambda key: NETWORK.build(SHAPE, CLASSES, key=key), AdamW().build(1), jax.random.key(0))
    assert initial.state(config_of(Shortcut()), state) is state
