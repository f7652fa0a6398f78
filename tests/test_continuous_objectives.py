"""Objectives at continuous step sizes: each is its loss with what it says, at every share of training."""

import dataclasses
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
import toy
from eqx_shortcut import Batch, losses, samplers, tangents, times, weights
from eqx_shortcut.data import Images
from eqx_shortcut.data.pipeline import WholeBatches
from eqx_shortcut.guidance import Guidance, Scales, autoguided, draw_guided, unlabelled
from eqx_shortcut.models import NetworkField
from eqx_shortcut.objectives import (
    ESC,
    AlphaFlow,
    ContinuousConsistency,
    Eulerian,
    ImprovedMeanFlow,
    Lagrangian,
    MeanFlow,
    MidTraining,
    Networks,
    Objective,
    ProgressiveMap,
    SoFlow,
    SplitMeanFlow,
    TerminalVelocity,
    unsteady,
)

N = 24


def networks(objective: Objective | None = None) -> Networks:
    """With a learned weight other than 0, if the objective has one."""
    extra = None if objective is None else objective.extra(jax.random.key(0))
    extra = jax.tree.map(lambda c: c + 0.03, extra)
    return toy.networks(toy.Bent, extra)


def batch() -> Batch:
    x = np.random.default_rng(0).standard_normal((N, 3))
    return Batch(jnp.asarray(x, jnp.float32), jnp.arange(N) % 2)


GUIDED: dict[str, Any] = {"guidance": 2.0, "mix": 0.25, "interval": (0.1, 0.8)}
PAIRS: dict[str, Any] = {"bootstrap_every": 4, "label_dropout": 0.5, "eps": 0.1, **GUIDED}
SAID = {"guidance": Guidance(None, 0.0, 2.0, 0.25, (0.1, 0.8)), "dropout": 0.5, "eps": 0.1, "bootstrap_every": 4}
LOGIT = times.logit_normal
LINES = partial(times.logit_normal_pairs, mean=-0.3, std=0.5)
EVERY = [
    MeanFlow(),
    ImprovedMeanFlow(),
    ESC(),
    AlphaFlow(),
    SplitMeanFlow(),
    SoFlow(),
    Lagrangian(),
    TerminalVelocity(),
    Eulerian(),
    ProgressiveMap(),
    ContinuousConsistency(),
    ContinuousConsistency(distil=True),
    MeanFlow(distil=True),
    Eulerian(distil=True, max_scale=3.0),
]
each = pytest.mark.parametrize("objective", EVERY, ids=lambda o: type(o).__name__ + "-distil" * getattr(o, "distil", False))
TIMES: dict[str, Any] = {"time_mean": -0.3, "time_std": 0.5}
SAME = "the network itself, under the same mask"
HEAD = "its second head, under the same mask"

# An objective, its loss, and what the loss is told beside what all are told.
CASES = {
    "mean_flow": (MeanFlow(**TIMES, power=0.5), "mean_flow", {"pairs": LINES, "power": 0.5}),
    "mean_flow with ends of their own": (
        MeanFlow(time_mean=0.6, time_std=1.6, end_mean=4.0, end_std=1.6),
        "mean_flow",
        {"pairs": partial(times.logit_normal_ends, mean=0.6, std=1.6, end_mean=4.0, end_std=1.6)},
    ),
    "mean_flow by differences": (
        MeanFlow(finite_difference=0.01),
        "mean_flow",
        {"jvp": tangents.finite_difference(0.01)},
    ),
    "mean_flow with a learned weight": (MeanFlow(log_variance=True), "mean_flow", {"log_variance": True}),
    "improved_mean_flow": (ImprovedMeanFlow(**TIMES), "improved_mean_flow", {"pairs": LINES}),
    "improved_mean_flow with two heads": (ImprovedMeanFlow(velocity_head=True), "improved_mean_flow", {"velocity": HEAD}),
    "split_mean_flow": (SplitMeanFlow(**TIMES, clip=1.0), "split_mean_flow", {"target": SAME, "pairs": LINES, "clip": 1.0}),
    "mean_flow at uniform velocities": (
        MeanFlow(uniform_velocity=True),
        "mean_flow",
        {"velocity_times": times.uniform},
    ),
    "lagrangian": (Lagrangian(), "lagrangian", {"target": SAME, "log_variance": True}),
    "lagrangian without a learned weight": (Lagrangian(log_variance=False), "lagrangian", {"target": SAME}),
    "lagrangian of the average": (Lagrangian(target_ema=True, power=1.0), "lagrangian", {"target": "ema", "power": 1.0}),
    "terminal_velocity": (
        TerminalVelocity(gap_mean=0.5, gap_std=0.3),
        "terminal_velocity",
        {"target": "ema", "pairs": partial(times.logit_normal_gaps, mean=0.5, std=0.3)},
    ),
    "progressive_map with steps to the data": (
        ProgressiveMap(to_data=0.3),
        "progressive_map",
        {"target": SAME, "pairs": times.to_end(times.uniform_pairs, 0.3)},
    ),
    "eulerian": (Eulerian(log_variance=True), "eulerian", {"log_variance": True}),
    "eulerian through the tangent": (Eulerian(stop_space=False), "eulerian", {"stop_space": False}),
    "eulerian through none": (Eulerian(stop_tangent=True), "eulerian", {"stop_tangent": True}),
    "progressive_map": (ProgressiveMap(log_variance=True), "progressive_map", {"target": SAME, "log_variance": True}),
    "progressive_map of the average": (
        ProgressiveMap(share=None, target_ema=True),
        "progressive_map",
        {"target": "ema", "share": None},
    ),
}


def found_and_expected(objective, name, said, key, progress=0.5):
    """What an objective answers, and its loss with what it is said to be told."""
    both, (k_draws, k_mask) = networks(objective), jax.random.split(key)
    field = NetworkField(both.online, k_mask)
    target = {SAME: field, HEAD: NetworkField(both.online.velocity, k_mask), "ema": NetworkField(both.ema)}
    said = {k: target.get(v, v) if isinstance(v, str) else v for k, v in said.items()}
    if objective.extra(key) is not None and said.pop("log_variance", True):
        said["log_variance"] = both.extra

    found = objective(both, batch(), key, jnp.float32(progress))[0]
    return found, getattr(flat, name)(field, batch(), k_draws, null=both.null, **said)[0]


@pytest.mark.parametrize("case", CASES)
def test_each_is_its_loss(key, case):
    objective, name, said = CASES[case]
    found, expected = found_and_expected(dataclasses.replace(objective, **PAIRS), name, SAID | said, key)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("intervals", [False, True])
def test_improved_mean_flow_tells_the_network_all_scales(key, intervals):
    """And they hold at the times of the objective, or of each row."""
    objective = ImprovedMeanFlow(max_scale=5.0, intervals=intervals, interval=(0.2, 0.9), label_dropout=0.5)
    scales = Scales(1.0, 5.0, intervals, (0.2, 0.9))
    assert objective.told == scales and objective.guides(1) and ImprovedMeanFlow().told is None
    found, expected = found_and_expected(objective, "improved_mean_flow", {"guidance": scales, "dropout": 0.5}, key)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("weak", [True, False], ids=["by a weak network", "by its unlabelled answers"])
def test_a_network_is_told_the_scales_that_guide_its_teacher(key, weak):
    """Uniform from 1 on, each row its own; teachers are told the label alone."""
    objective = MeanFlow(distil=True, max_scale=3.0, interval=(0.2, 0.9), label_dropout=0.0, power=0.0)
    scales = Scales(1.0, 3.0, interval=(0.2, 0.9), uniform=True)
    assert objective.told == scales and objective.guides(1) and not MeanFlow(distil=True, guidance=2.0).guides(1)
    both = networks()
    both = dataclasses.replace(both, weak=toy.Bent(jnp.float32(-0.2)) if weak else None)
    found = objective(both, batch(), key, jnp.float32(0.5))[0]
    k_draws, k_mask = jax.random.split(key)
    teacher = NetworkField(both.teacher)
    other = NetworkField(both.weak) if weak else unlabelled(teacher, both.null)
    cond = draw_guided(jax.random.fold_in(key, 2), batch().cond, scales, jnp.zeros(N))
    assert float(cond.scale.min()) >= 1 and 2 < float(cond.scale.max()) <= 3 and abs(float(cond.scale.mean()) - 2) < 0.4
    told, field = dataclasses.replace(batch(), cond=cond), NetworkField(both.online, k_mask)
    expected, _ = losses.mean_flow(field, told, k_draws, teacher=autoguided(teacher, other), weigh=())
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 0.9999939), (0.5, 0.5), (1.0, 0.0)])
def test_alpha_flow_falls_from_flow_matching_to_mean_flow(key, progress, alpha):
    objective = AlphaFlow(**TIMES, **PAIRS, clip=1.0)
    said = {"target": SAME, "alpha": alpha, "pairs": LINES, "clip": 1.0}
    found, expected = found_and_expected(objective, "alpha_flow", SAID | said, key, progress)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("progress", "alpha"), [(0.0, 0.1), (0.5, 0.0002**0.5), (1.0, 0.002)])
def test_so_flow_falls_by_equal_factors(key, progress, alpha):
    objective = SoFlow(**PAIRS, end_mean=0.7, velocity_std=0.6, clip=1.0)
    own = {"pairs": partial(times.logit_normal_ends, end_mean=0.7), "velocity_times": partial(LOGIT, mean=0.2, std=0.6)}
    said = {"target": SAME, "alpha": alpha, "clip": 1.0, **own}
    found, expected = found_and_expected(objective, "so_flow", SAID | said, key, progress)
    np.testing.assert_allclose(found, expected, rtol=1e-3)


@pytest.mark.parametrize(("progress", "share"), [(0.0, 0.4), (0.05, 0.4 * 2 / 3), (0.1, 0.0), (1.0, 0.0)])
def test_esc_is_mean_flow_on_posterior_means_with_more_steps_to_the_data_early(key, progress, share):
    objective = ESC(**TIMES, **PAIRS, to_data=0.4, to_data_until=0.1)
    said = {"pairs": times.to_end(LINES, share), "posterior_every": 2}
    found, expected = found_and_expected(objective, "mean_flow", SAID | said, key, progress)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(("groups", "share"), [(None, 0.113), (16, 0.5)])
def test_every_second_row_has_a_posterior_mean_where_a_batch_is_sets_of_a_class(key, groups, share):
    """Of 1,000 classes a row of a random batch of 256 has another of its class with probability 1 - 0.999^255 = 0.225."""
    objective, rng = ESC(groups=groups), np.random.default_rng(0)
    assert objective.sets == groups
    objective.check(256)
    images = Images(np.zeros((20_000, 1, 1, 1), np.uint8), np.repeat(np.arange(1000, dtype=np.int32), 20), classes=1000)
    labels = WholeBatches(images, 256, seed=0, groups=groups)[0]["labels"]
    batch = Batch(jnp.asarray(rng.standard_normal((256, 2)), jnp.float32), jnp.asarray(labels))
    draws = objective.drawn(jnp.float32(0.5)).draw(batch, key)
    moved = np.mean(np.any(np.asarray(draws.x != batch.x), axis=1))
    assert abs(moved - share) < (0.1 if groups is None else 0.02)  # near the data a mean is the row itself


@pytest.mark.parametrize(("progress", "warmup"), [(0.0, 0.0), (0.05, 0.5), (1.0, 1.0)])
@pytest.mark.parametrize("distil", [False, True])
def test_continuous_consistency_warms_up_from_the_data_or_a_teacher(key, progress, warmup, distil):
    objective = ContinuousConsistency(distil=distil, std=0.7, normalise=0.2, guidance=2.0 if distil else 1.0)
    helpers = {"teacher": NetworkField(networks().teacher), "guidance": 2.0} if distil else {}
    said = {"warmup": warmup, "std": 0.7, "normalise": 0.2, **helpers}
    found, expected = found_and_expected(objective, "continuous_consistency", said, key, progress)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    at_once = dataclasses.replace(objective, warmup_share=0.0)
    found, expected = found_and_expected(at_once, "continuous_consistency", said | {"warmup": 1.0}, key, progress)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("objective", [AlphaFlow(), SoFlow()])
def test_a_small_alpha_does_not_see_the_dropout_mask(key, objective):
    """The target under a mask of its own, or none, would differ by that mask, and not by what a small step makes of it."""
    both, (k_draws, k_mask) = networks(), jax.random.split(key)
    _, metrics = objective(both, batch(), key, jnp.float32(0.7))
    field, other = NetworkField(both.online, k_mask), NetworkField(both.online)
    _, apart = flat.alpha_flow(field, batch(), k_draws, target=other, alpha=0.01, null=both.null, dropout=0.1)
    assert metrics["loss_bootstrap"] < 0.05 * apart["loss_bootstrap"]


# What the trainer and the samplers are told


@each
def test_they_are_continuous_and_have_what_they_train_beside_the_network(objective):
    assert isinstance(objective, Objective) and objective.continuous and objective.only_step is None
    assert objective.terms(networks(), jnp.float32(0.5)) == ()
    distils = getattr(objective, "distil", False)
    velocity = None if isinstance(objective, ContinuousConsistency) else 0.0
    assert (objective.stages, objective.teacher_step, objective.velocity_step) == (
        int(distils),
        0.0 if distils else None,
        velocity,
    )
    learned = isinstance(objective, ESC | ContinuousConsistency | Lagrangian | TerminalVelocity | ProgressiveMap)
    assert isinstance(objective.extra(jax.random.key(0)), weights.LogVariance) is learned
    every = {ImprovedMeanFlow: 2, ContinuousConsistency: None}.get(type(objective), 4)
    assert getattr(objective, "bootstrap_every", None) == every
    objective.check(N)


@pytest.mark.parametrize("objective", [SplitMeanFlow(), ESC(), TerminalVelocity(), ContinuousConsistency(distil=True)])
def test_the_network_and_what_is_beside_it_alone_are_trained(key, objective):
    grad = eqx.filter_grad(lambda networks: objective(networks, batch(), key, jnp.float32(0.5))[0])(networks(objective))
    assert float(jnp.abs(grad.online.weight)) > 0
    assert float(grad.ema.weight) == float(grad.teacher.weight) == 0
    assert grad.extra is None or float(jnp.abs(grad.extra.coefficients).min()) > 0


@each
def test_they_are_asked_at_any_step_or_the_whole_way(objective):
    whole = isinstance(objective, ContinuousConsistency)
    x, t, d = jnp.ones((3, 2)), jnp.array([0.0, 0.5, 0.99]), jnp.array([1.0, 0.5, 1 / 1000])
    network = networks().online
    field, expected = objective.sampling(network), NetworkField(network)(x, t, 1 - t if whole else d, jnp.arange(3))
    np.testing.assert_allclose(field(x, t, d, jnp.arange(3)), expected, rtol=1e-6)
    assert objective.guides(1) is objective.guides(1000) is not whole


def test_mid_training_has_one_teacher_which_it_asks_for_the_velocity():
    objective, network = MidTraining(), networks().online
    assert objective.continuous and (objective.stages, objective.teacher_step) == (1, 0.0) and not objective.guides(1)
    x, t = jnp.ones((3, 2)), jnp.array([0.0, 0.5, 0.99])
    expected = NetworkField(network)(x, t, 1 - t, jnp.arange(3))
    np.testing.assert_allclose(objective.sampling(network)(x, t, jnp.ones(3), jnp.arange(3)), expected, rtol=1e-6)


@pytest.mark.parametrize("objective", [MeanFlow(), ContinuousConsistency(), ContinuousConsistency(renoise=False)])
def test_they_are_sampled_by_euler_steps_or_by_jumps(key, objective):
    noise, field = jax.random.normal(key, (3, 2)), objective.sampling(networks().online)
    found = objective.sample(field, noise, jnp.arange(3), steps=2, renoise=lambda i: noise)
    jumps = partial(samplers.consistency, renoise=lambda i: noise)
    sampler = jumps if getattr(objective, "renoise", False) else samplers.euler
    np.testing.assert_array_equal(found, sampler(field, noise, jnp.arange(3), steps=2))


@pytest.mark.parametrize("inside", [{"guidance": 1.5}, {"mix": 0.5}])
def test_what_contains_guidance_is_not_guided_again(inside):
    assert not MeanFlow(**inside).guides(1) and not SoFlow(**inside).guides(128)


@pytest.mark.parametrize(
    ("objective", "rows", "message"),
    [
        (SoFlow(), 6, r"batch 6 is not a multiple of bootstrap_every=4: use a batch of 4 or 8"),
        (ImprovedMeanFlow(max_scale=4.0, guidance=2.0), 64, r"guidance=2.0 .* leaves guidance at 1 and mix at 0"),
        (ImprovedMeanFlow(intervals=True), 64, r"told beside its scale, and none is: name the highest as max_scale"),
        (
            MeanFlow(max_scale=3.0),
            64,
            r"max_scale=3.0 is the highest guidance scale of a teacher, .*: use distil, and leave gui",
        ),
        (
            Lagrangian(distil=True, mix=0.5),
            64,
            r"mix=0.5 is a share of the network's own velocity, and a teacher .* leave it at 0",
        ),
        (ESC(distil=True), 64, r"posterior_every=2 averages velocities of lines, and a teacher answers it: leave it None"),
        (ESC(groups=48), 64, r"batch 64 is not a multiple of groups=48"),
        (ESC(groups=64), 64, r"groups=64 of a batch of 64 are sets of one row, which tell nothing: use a batch of 128 or more"),
        (MidTraining(), 24, r"batch 24 is not a multiple of rollout=16: use a batch of 16 or 32, or rollout=12 or 24"),
        (AlphaFlow(start=0.5, stop=0.5), 64, r"start=0.5 is not before stop=0.5, .*use a smaller start"),
        (AlphaFlow(), 6, r"batch 6 is not a multiple of bootstrap_every=4: use a batch of 4 or 8"),
        (ContinuousConsistency(guidance=2.0), 64, r"guidance=2.0 guides a teacher, and there is none: use distil, or"),
    ],
)
def test_check_names_value_and_remedy(objective, rows, message):
    with pytest.raises(ValueError, match=message):
        objective.check(rows)


@pytest.mark.parametrize(
    ("objective", "limit"),
    [
        (MeanFlow(), 10),
        (SoFlow(), 10),
        (ContinuousConsistency(), 1),
        (SplitMeanFlow(), 10),
        (ProgressiveMap(), None),
        (Eulerian(), 10),
    ],
)
def test_an_objective_says_what_scale_of_times_it_tolerates(objective, limit):
    """Those that learn from a slope in time or a short difference a small one (docs/training.md)."""
    said = unsteady(objective, 100)
    assert said is None if limit is None else f"above {limit} training may diverge or draw noise" in str(said)
    assert unsteady(objective, limit or 1e3) is None
