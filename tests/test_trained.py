"""A run opened for use: the weights asked for, and samples that depend on key and place alone."""

import dataclasses
import json
import pathlib
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import eqx_shortcut
from eqx_shortcut import flops, samplers, settings
from eqx_shortcut.checkpoint import CheckpointError, Checkpoints
from eqx_shortcut.guidance import Guided, guided
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import (
    ConsistencyTraining,
    Diffusion,
    FlowMatching,
    ImprovedMeanFlow,
    LiveReflow,
    Networks,
    Shortcut,
)
from eqx_shortcut.rows import expand
from eqx_shortcut.samplers import StepRange
from eqx_shortcut.sampling import Sampling
from eqx_shortcut.train import TrainState
from eqx_shortcut.trained import Trained, load, noise, sample, sample_from, trajectory

NETWORK, SHAPE, CLASSES = DiTConfig(hidden=16, depth=1, heads=2, patch=2), (4, 4, 1), 3


def shaken(network: Any, seed: int) -> Any:
    """The network with noise on every weight: an untrained one answers 0."""
    rng = np.random.default_rng(seed)
    noise = lambda a: a + 0.3 * rng.standard_normal(a.shape).astype(a.dtype) if eqx.is_inexact_array(a) else a  # noqa: E731
    return jax.tree.map(noise, network)


@pytest.fixture(scope="module")
def networks() -> dict[tuple[str, int], Any]:
    """Networks of steps 3 and 5 by weights and step, all different."""
    network = eqx.filter_jit(lambda: NETWORK.build(SHAPE, CLASSES, key=jax.random.key(0)))()
    places = [(weights, step) for weights in ("online", "ema") for step in (3, 5)]
    return {place: shaken(network, seed) for seed, place in enumerate(places)}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, networks: dict[tuple[str, int], Any]) -> pathlib.Path:
    """A run folder with checkpoints of those networks."""
    folder = tmp_path_factory.mktemp("run")
    record = {"shape": SHAPE, "classes": CLASSES, **settings.dump({"network": NETWORK, "objective": FlowMatching(steps=4)})}
    (folder / "config.json").write_text(json.dumps(record))
    checkpoints, zero = Checkpoints(folder / "checkpoints", config=record), jnp.zeros((), jnp.int32)
    for step in (3, 5):
        pair = Networks(networks["online", step], networks["ema", step])
        checkpoints.save(TrainState(jnp.int32(step), jax.random.key(0), pair, {"count": zero}, zero, zero), {})
    checkpoints.close()
    return folder


@pytest.fixture(scope="module")
def model(run: pathlib.Path) -> Trained:
    return load(run)


def test_a_run_is_opened_from_the_package_itself(run):
    model = eqx_shortcut.load(str(run))
    assert isinstance(model, eqx_shortcut.Trained)
    assert (model.shape, model.classes, model.step, model.objective) == (SHAPE, CLASSES, 5, FlowMatching(steps=4))


@pytest.mark.parametrize("step", [3, 5, None])
@pytest.mark.parametrize("weights", ["online", "ema"])
def test_the_weights_are_those_asked_for(run, networks, weights, step):
    found, expected = load(run, weights=weights, step=step), networks[weights, step or 5]
    assert found.step == (step or 5)
    for a, b in zip(jax.tree.leaves(found.network), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_sample_depends_on_key_and_place_and_not_on_count_or_batch(model, key):
    many = sample(model, key, 7, steps=2)
    assert many.shape == (7, *SHAPE) and np.isfinite(many).all()
    for count, batch in ((5, 256), (7, 3), (6, 3)):
        np.testing.assert_allclose(sample(model, key, count, steps=2, batch=batch), many[:count], atol=1e-5)
    assert len({bytes(np.asarray(image)) for image in many}) == 7
    assert not np.allclose(sample(model, jax.random.key(1), 7, steps=2), many)


OTHERS = [
    ConsistencyTraining(steps=4),
    ConsistencyTraining(steps=4, renoise=False),
    Diffusion(steps=4, clip=1.0),
    LiveReflow(4),
]


@pytest.mark.parametrize("objective", OTHERS, ids=["anew", "euler", "diffusion", "reflow"])
def test_samples_number_first_and_on_are_those_of_a_longer_row_in_any_batch(model, key, objective):
    """New noise between the steps, too, depends on key, place and step alone."""
    other = Trained(model.network, objective, SHAPE, CLASSES, 5)
    many = sample(other, key, 6, steps=3)
    np.testing.assert_allclose(sample(other, key, 3, steps=3, first=3), many[3:], atol=1e-5)
    np.testing.assert_allclose(sample(other, key, 6, steps=3, batch=4), many, atol=1e-5)
    assert len({bytes(np.asarray(image)) for image in many}) == 6


def test_the_noise_of_a_sample_is_known(model, key):
    indices = jnp.array([4, 0])
    t = jnp.zeros(2)
    expected = noise(model, key, indices) + eqx.filter_jit(model.field)(noise(model, key, indices), t, t + 1, indices % CLASSES)
    np.testing.assert_allclose(sample(model, key, 5)[indices], expected, atol=1e-5)
    assert noise(model, key, jnp.arange(500)).shape == (500, *SHAPE)
    assert abs(float(noise(model, key, jnp.arange(500)).std()) - 1) < 5 / np.sqrt(2 * 500 * 16)


def test_new_noise_between_steps_is_not_that_of_another_sample_or_step(model, key):
    """Asked of an objective that returns the noise it is given."""

    class Asked(FlowMatching):
        def sample(self, field, noise, cond, *, steps, renoise):
            assert isinstance(steps, StepRange)
            return jnp.where(steps.of == 1, noise, renoise(jnp.asarray(steps.of - 2)))

    asked = Trained(model.network, Asked(4), SHAPE, CLASSES, 5)
    given = [np.asarray(sample(asked, key, 4, steps=steps)) for steps in (1, 2, 3)]
    np.testing.assert_array_equal(given[0], noise(model, key, jnp.arange(4)))
    assert len({bytes(row) for rows in given for row in rows}) == 12


@pytest.mark.parametrize(
    ("objective", "guidance"),
    [(FlowMatching(steps=4), 2.0), *((other, 1.0) for other in OTHERS)],
    ids=["guided", "anew", "euler", "diffusion", "reflow"],
)
def test_a_trajectory_goes_from_the_noise_to_the_sample_to_the_bit(model, key, objective, guidance):
    """Whichever points are asked for."""
    other = Trained(model.network, objective, SHAPE, CLASSES, 5)
    start = noise(other, key, jnp.arange(2))
    way = trajectory(other, key, start, Sampling(5, guidance=guidance), points=range(6))
    np.testing.assert_allclose(way.t, np.arange(6) / 5, rtol=1e-6)
    np.testing.assert_array_equal(way.x[0], start)
    np.testing.assert_array_equal(way.x[-1], sample(other, key, 2, Sampling(5, guidance=guidance)))
    np.testing.assert_array_equal(way.data[-1], way.x[-1])
    some = trajectory(other, key, start, Sampling(5, guidance=guidance), points=(2, 5))
    np.testing.assert_array_equal(some.x, way.x[jnp.array([2, 5])])
    rest = sample_from(other, key, way.x[2], Sampling(5, guidance=guidance), done=2)
    np.testing.assert_array_equal(rest, way.x[-1])
    assert len({bytes(np.asarray(x)) for x in way.x}) == 6


def test_the_data_of_a_trajectory_is_where_one_step_from_each_point_ends(model, key):
    field, way = (
        eqx.filter_jit(model.field),
        trajectory(model, key, noise(model, key, jnp.arange(3)), steps=4, points=(0, 1, 4)),
    )
    for t, x, data in zip(way.t, way.x, way.data, strict=True):
        t = jnp.full(3, t)
        expected = x + expand(1 - t, x) * field(x, t, 1 - t, jnp.arange(3) % CLASSES)
        np.testing.assert_allclose(data, expected, atol=1e-5)


@pytest.mark.parametrize("points", [(), (1, 0), (-1, 2), (0, 5)])
def test_points_that_are_not_on_the_way_are_refused(model, key, points):
    with pytest.raises(ValueError, match="name one or more of 0 to 4 in rising order"):
        trajectory(model, key, noise(model, key, jnp.arange(2)), steps=4, points=points)


@pytest.mark.parametrize("done", [-1, 4])
def test_a_number_of_steps_done_that_leaves_none_is_refused(model, key, done):
    with pytest.raises(ValueError, match=f"done={done} of steps=4: leave out 0 or more, and fewer than there are"):
        sample_from(model, key, noise(model, key, jnp.arange(2)), steps=4, done=done)


def test_noise_added_between_the_steps_is_that_of_the_sample_s_number(model, key):
    """One start and several numbers: what differs is what the sampler adds."""
    other = Trained(model.network, ConsistencyTraining(steps=4), SHAPE, CLASSES, 5)
    start = jnp.repeat(noise(other, key, jnp.array([3])), 2, axis=0)
    same, each = (sample_from(other, key, start, steps=2, indices=jnp.array(p), labels=0) for p in ((3, 3), (3, 4)))
    for x in (same[0], same[1], each[0]):
        np.testing.assert_allclose(x, sample(other, key, 2, first=3, steps=2, labels=0)[0], atol=1e-5)
    assert not np.allclose(each[1], same[1], atol=1e-2)


def test_a_run_without_labels_samples_without(run, tmp_path, key):
    (tmp_path / "checkpoints").symlink_to(run / "checkpoints")
    record = settings.read(run / "config.json")
    for unconditional in (True, False):
        (tmp_path / "config.json").write_text(json.dumps(record | {"unconditional": unconditional}))
        assert load(tmp_path).labelled is not unconditional
    hidden = Trained(load(run).network, FlowMatching(steps=4), SHAPE, CLASSES, 5, labelled=False)
    np.testing.assert_array_equal(sample(hidden, key, 4), sample(load(run), key, 4, labels=CLASSES))
    np.testing.assert_array_equal(sample(hidden, key, 4, labels=CLASSES), sample(hidden, key, 4))


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"labels": 1}, "label 1 for a run that was trained without labels: leave it out"),
        ({"labels": jnp.array([CLASSES, 2, 1, 0])}, "label 2 for a run that was trained without labels"),
        (
            {"steps": Sampling(guidance=4)},
            "guidance=4 goes from no condition to one, and the run was trained without: leave it at 1",
        ),
        ({"labels": CLASSES, "steps": Sampling(guidance=0.0)}, "guidance=0 goes from no condition to one"),
    ],
)
def test_a_run_without_labels_refuses_labels_and_guidance(model, key, asked, said):
    hidden = Trained(model.network, FlowMatching(steps=4), SHAPE, CLASSES, 5, labelled=False)
    with pytest.raises(ValueError, match=said):
        sample(hidden, key, 4, **asked)


def test_a_sample_is_noise_carried_by_the_field(model, key):
    noise = jnp.stack([jax.random.normal(jax.random.fold_in(key, i), SHAPE) for i in range(3)])
    t = jnp.zeros(3)
    expected = noise + eqx.filter_jit(model.field)(noise, t, t + 1, jnp.arange(3))
    np.testing.assert_allclose(sample(model, key, 3), expected, atol=1e-5)


def test_labels_are_in_turn_or_one_for_all_or_one_each(model, key):
    turn = sample(model, key, 5)
    np.testing.assert_array_equal(sample(model, key, 5, labels=jnp.array([0, 1, 2, 0, 1])), turn)
    ones = sample(model, key, 5, labels=1)
    np.testing.assert_array_equal(sample(model, key, 5, labels=jnp.ones(5, jnp.int32)), ones)
    assert not np.allclose(ones[0], turn[0], atol=1e-3) and np.allclose(ones[1], turn[1], atol=1e-5)


def test_guidance_extrapolates_from_unlabelled_to_labelled(model, key):
    labelled, unlabelled = sample(model, key, 4, labels=1), sample(model, key, 4, labels=CLASSES)
    for scale in (0, 0.5, 3):
        found = sample(model, key, 4, Sampling(guidance=scale), labels=1)
        np.testing.assert_allclose(found, unlabelled + scale * (labelled - unlabelled), atol=1e-4)


def test_guidance_is_not_applied_where_the_network_contains_it(model, key):
    inside = Trained(model.network, Shortcut(steps=4, guidance=2.0), SHAPE, CLASSES, 5)
    for steps in (1, 2):
        plain, scaled = (sample(inside, key, 4, Sampling(steps, guidance=scale)) for scale in (1.0, 3.0))
        np.testing.assert_array_equal(plain, scaled)
        assert not np.allclose(sample(inside, key, 4, Sampling(steps, guidance=3.0, guide_always=True)), plain, atol=1e-3)
    plain, scaled = (sample(inside, key, 4, Sampling(4, guidance=scale)) for scale in (1.0, 3.0))
    assert not np.allclose(plain, scaled, atol=1e-3)


TOLD = ImprovedMeanFlow(max_scale=4.0, intervals=True, interval=(0.25, 0.75))


@pytest.fixture(scope="module")
def told_model() -> Trained:
    """A network that is told scale and times of guidance."""
    config = dataclasses.replace(NETWORK, step="linear", guided="interval")
    structure = eqx.filter_eval_shape(lambda key: config.build(SHAPE, CLASSES, key=key), jax.random.key(0))
    rng = np.random.default_rng(0)
    network = jax.tree.map(lambda a: jnp.asarray(0.3 * rng.standard_normal(a.shape), a.dtype), structure)
    return Trained(network, TOLD, SHAPE, CLASSES, 5)


@pytest.mark.parametrize("steps", [1, 2])
def test_a_network_that_is_told_its_guidance_is_told_the_scale_at_every_step(told_model, key, steps):
    """And the times, which are those of its objective; in one evaluation of each row."""
    labels, start = jnp.arange(4) % CLASSES, noise(told_model, key, jnp.arange(4))
    tell = lambda x, t, d, cond: told_model.field(  # noqa: E731
        x, t, d, Guided(cond, *(jnp.full_like(t, value) for value in (3.0, 0.25, 0.75)))
    )
    expected = eqx.filter_jit(lambda x: samplers.euler(tell, x, labels, steps=steps))(start)
    last_places = 16 * np.finfo(np.float32).eps * np.abs(expected).max()  # two programs, whose sums differ in order
    np.testing.assert_allclose(sample(told_model, key, 4, Sampling(steps, guidance=3.0)), expected, rtol=0, atol=last_places)
    assert not np.allclose(sample(told_model, key, 4, steps=steps), expected, atol=1e-3)


def test_steps_that_start_outside_of_the_interval_are_not_guided(model, key):
    """Of four steps the second and the third are, whose times are the ends of the interval."""
    labels, x = jnp.arange(4) % CLASSES, noise(model, key, jnp.arange(4))
    for i in range(4):
        field = guided(model.field, 3.0, CLASSES) if i in (1, 2) else model.field
        x = samplers.euler(field, x, labels, steps=StepRange(*map(jnp.int32, (4, i, i + 1))))
    found = sample(model, key, 4, Sampling(4, guidance=3.0, guidance_interval=(0.25, 0.5)))
    np.testing.assert_allclose(found, x, atol=1e-5)
    everywhere, plain = (sample(model, key, 4, Sampling(4, guidance=scale)) for scale in (3.0, 1.0))
    assert np.abs(found - everywhere).max() > 1e-2 and np.abs(found - plain).max() > 1e-2
    always = sample(model, key, 4, Sampling(4, guidance=3.0, guidance_interval=(0.0, 1.0)))
    np.testing.assert_allclose(always, everywhere, atol=1e-5)


@pytest.mark.parametrize(
    ("steps", "interval", "sampler"),
    [(1, (0.2, 0.8), None), (4, (0.3, 0.4), None), (2, (0.4, 0.6), samplers.Sampler(times=samplers.Shifted(3.0)))],
)
def test_guidance_at_times_at_which_no_step_starts_is_refused(model, key, steps, interval, sampler):
    said = rf"guidance_interval=.* holds the start of none of {steps} steps .*: begin it at 0, or take more steps"
    with pytest.raises(ValueError, match=said):
        sample(model, key, 2, Sampling(steps, guidance=3.0, guidance_interval=interval, sampler=sampler))


def test_another_sampler_takes_the_place_of_the_objective_s(model, key):
    start, labels = noise(model, key, jnp.arange(4)), jnp.arange(4) % CLASSES
    times = samplers.Shifted(2.0)
    expected = samplers.heun(guided(model.field, 2.0, CLASSES), start, labels, steps=3, times=times)
    chosen = samplers.Sampler(samplers.heun, times)
    found = sample(model, key, 4, Sampling(3, guidance=2.0, sampler=chosen))
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.abs(found - sample(model, key, 4, Sampling(3, guidance=2.0))).max() > 1e-3


@pytest.mark.parametrize(
    ("objective", "loop", "said"),
    [
        (ConsistencyTraining(steps=4), samplers.heun, "heun asks for the velocity, which ConsistencyTraining does not teach"),
        (FlowMatching(steps=4), samplers.consistency, "the whole way to the data, which FlowMatching does not teach"),
    ],
)
def test_a_sampler_that_asks_for_what_was_not_taught_is_refused(model, key, objective, loop, said):
    with pytest.raises(ValueError, match=said):
        sample(dataclasses.replace(model, objective=objective), key, 2, Sampling(sampler=samplers.Sampler(loop)))


def test_a_network_that_is_told_times_of_guidance_is_told_those_of_the_sampler(told_model, key):
    other = dataclasses.replace(TOLD, interval=(0.125, 1.0))
    expected = sample(Trained(told_model.network, other, SHAPE, CLASSES, 5), key, 4, Sampling(guidance=3.0))
    found = sample(told_model, key, 4, Sampling(guidance=3.0, guidance_interval=(0.125, 1.0)))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(sample(told_model, key, 4, Sampling(guidance=3.0)), expected, atol=1e-3)


@pytest.mark.parametrize(
    ("objective", "interval", "said"),
    [
        (Shortcut(steps=4), (0.5, 0.25), r"guidance_interval=\(0.5, 0.25\): name two times of 0 to 1"),
        (Shortcut(steps=4), (0.5, 1.5), "name two times of 0 to 1"),
        (TOLD, (0.6, 1.0), "is told times before and after 0.5 in training"),
        (
            dataclasses.replace(TOLD, intervals=False),
            (0.0, 1.0),
            r"learnt guidance at times \(0.25, 0.75\) and is told no others",
        ),
    ],
)
def test_times_of_guidance_that_are_none_or_not_learnt_are_refused(told_model, key, objective, interval, said):
    other = Trained(told_model.network, objective, SHAPE, CLASSES, 5)
    with pytest.raises(ValueError, match=said):
        sample(other, key, 4, Sampling(guidance=2.0, guidance_interval=interval))


class Product(eqx.Module):
    """A network that is one product of numbers, so that its operations count its evaluations."""

    kernel: jax.Array

    def __call__(self, x, t, d, cond, *, key=None):
        return (x.reshape(-1) @ self.kernel).reshape(x.shape)


def test_telling_the_guidance_evaluates_the_network_once_and_extrapolating_twice(key):
    def evaluations(objective, guidance):
        model = Trained(Product(jnp.ones((16, 16))), objective, SHAPE, CLASSES, 5)
        draw = lambda x: sample_from(model, key, x, Sampling(guidance=guidance), labels=jnp.arange(4) % CLASSES)  # noqa: E731
        return flops.flops(jax.make_jaxpr(draw)(jnp.zeros((4, *SHAPE)))) / (4 * 2 * 16 * 16)

    assert [evaluations(TOLD, scale) for scale in (1.0, 3.0)] == [1, 1]
    assert [evaluations(ImprovedMeanFlow(), scale) for scale in (1.0, 3.0)] == [1, 2]


@pytest.mark.parametrize("scale", [0.5, 4.5])
def test_a_scale_that_the_network_was_not_told_in_training_is_refused(told_model, key, scale):
    with pytest.raises(ValueError, match=f"guidance {scale} is not in 1 to 4, the scales that the network is told in training"):
        sample(told_model, key, 4, Sampling(guidance=scale))


@pytest.mark.parametrize(("label", "wrong"), [(4, 4), (-1, -1), ([0, 1, 7], 7), ([0, -2, 7], -2)])
def test_a_label_out_of_range_is_refused(model, key, label, wrong):
    label = label if isinstance(label, int) else jnp.array(label)
    with pytest.raises(ValueError, match=rf"label {wrong} is not in 0 to 2 \(or 3 for none\)"):
        sample(model, key, 3, labels=label)


WRONG = [
    ({"steps": 0}, "steps=0: a sample takes at least 1 step"),
    ({"count": 0}, "count=0: ask for at least 1 sample"),
    ({"count": -2}, "count=-2: ask for at least 1 sample"),
    ({"batch": 0}, "batch=0: .*at least 1"),
]


@pytest.mark.parametrize(("arguments", "words"), WRONG)
def test_a_request_for_nothing_is_refused(model, key, arguments, words):
    with pytest.raises(ValueError, match=words):
        sample(model, key, **{"count": 3, **arguments})


@pytest.mark.parametrize("array", [jnp.array, np.array])
def test_labels_of_another_count_are_refused(model, key, array):
    with pytest.raises(ValueError, match="2 labels for 3 samples"):
        sample(model, key, 3, labels=array([0, 1]))


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match=f"{tmp_path} is not a run folder: it holds no config.json"):
        load(tmp_path)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "digits" / "shortcut").mkdir(parents=True)
    (tmp_path / "digits" / "shortcut" / "config.json").touch()
    for above in (tmp_path, tmp_path / "digits"):
        with pytest.raises(ValueError, match=f"name a run in it, such as {tmp_path}/digits/shortcut$"):
            load(above)
    (tmp_path / "config.json").write_text('{"_class_name": "AutoencoderKL", "classes": 3}')
    with pytest.raises(ValueError, match=r"config.json is not that of a run: it says no network and no objective and no shape"):
        load(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text())
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*: train first"):
        load(tmp_path)


def test_damaged_settings_are_named(run, tmp_path):
    (tmp_path / "config.json").write_text((run / "config.json").read_text()[:-20])
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json"):
        load(tmp_path)
