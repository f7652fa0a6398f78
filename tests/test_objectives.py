import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

import flat
from eqx_shortcut import Batch, samplers
from eqx_shortcut.data.sources import ImageSource
from eqx_shortcut.experiment.config import AnyObjective, AnyOptimizer
from eqx_shortcut.experiment.main import members
from eqx_shortcut.models import NetworkField
from eqx_shortcut.objectives import (
    ESC,
    AtEnds,
    AtStep,
    ConsistencyDistillation,
    ConsistencyTraining,
    Diffusion,
    FlowMatching,
    Lagrangian,
    LiveReflow,
    MeanFlow,
    Objective,
    ProgressiveDistillation,
    Shortcut,
    TerminalVelocity,
    ToData,
    named,
)
from toy import Linear, networks

N = 24
PROGRESS = jnp.float32(0.5)


def batch() -> Batch:
    x = np.random.default_rng(0).standard_normal((N, 3))
    return Batch(jnp.asarray(x, jnp.float32), jnp.arange(N) % 9)


def asked(field, d, t=None):
    """The step size that the network under `field` is told."""
    x, d = jnp.zeros((len(d), 1)), jnp.asarray(d, jnp.float32)
    t = jnp.zeros_like(d) if t is None else jnp.asarray(t, jnp.float32)
    return np.asarray(t) - np.asarray(field(x, t, d, jnp.zeros(len(d), int)))[:, 0]


ALL = [
    FlowMatching(steps=8),
    Shortcut(steps=8),
    ProgressiveDistillation(steps=8),
    ConsistencyDistillation(steps=8),
    ConsistencyTraining(steps=8),
    LiveReflow(steps=8),
    Diffusion(steps=8),
]
each = pytest.mark.parametrize("objective", ALL, ids=lambda objective: type(objective).__name__)


@each
def test_satisfies_the_protocol(objective):
    assert isinstance(objective, Objective)
    assert not objective.continuous


@dataclasses.dataclass(frozen=True)
class Bare(Objective):
    """An objective that says no more than it must."""

    def __call__(self, networks, batch, key, progress):
        return jnp.zeros(()), {}

    def sampling(self, network):
        return NetworkField(network)


@dataclasses.dataclass(frozen=True)
class Chosen:
    objective: AnyObjective


@pytest.mark.parametrize("default", [ESC(bootstrap_every=8), TerminalVelocity(gap_mean=1.0), MeanFlow(power=0.5)])
@pytest.mark.parametrize("chosen", [MeanFlow, ESC, Lagrangian])
def test_the_objective_that_is_named_is_trained_whatever_the_default(default, chosen):
    """A default of a subclass would stand for its base: tyro takes the default for what it is an instance of."""
    found = tyro.cli(Chosen, default=Chosen(default), args=[f"objective:{named(chosen)}"]).objective
    assert type(found) is chosen


@pytest.mark.parametrize("choice", [AnyObjective, AnyOptimizer, ImageSource], ids=["objectives", "optimizers", "sources"])
def test_no_choice_of_the_command_line_is_a_kind_of_another(choice):
    pairs = itertools.permutations(members(choice).values(), 2)
    assert not [(kind, other) for kind, other in pairs if issubclass(kind, other)]


def test_an_objective_inherits_what_it_does_not_say(key):
    bare = Bare()
    assert isinstance(bare, Objective) and bare.stages == 0 and not bare.continuous and bare.guides(1)
    assert bare.teacher_step is bare.velocity_step is bare.only_step is bare.sets is bare.told is bare.memory((3,)) is None
    assert not (bare.second_head or bare.trained_in() or bare.terms(networks(), PROGRESS))
    assert bare.snapshot(networks()).weight == networks().ema.weight
    bare.check(1)
    noise, field = jax.random.normal(key, (4, 3)), bare.sampling(networks().online)
    found = bare.sample(field, noise, jnp.arange(4), steps=3, renoise=lambda i: noise)
    np.testing.assert_array_equal(found, samplers.euler(field, noise, jnp.arange(4), steps=3))


def test_what_is_trained_goes_back_where_it_came_from():
    both = networks()
    assert both.trained is both.online
    assert both.with_trained(both.ema).online is both.ema and both.with_trained(both.ema).ema is both.ema
    both = networks(extra=both.teacher)
    found = both.with_trained((both.extra, both.ema))
    assert found.trained == (both.extra, both.ema) and found.teacher is both.teacher


KNOWN = {  # stages, the step its teacher is asked at, the step of its velocity, its only step
    "FlowMatching": (0, None, 1 / 8, 1 / 8),
    "Shortcut": (0, None, 1 / 8, None),
    "ProgressiveDistillation": (3, 1 / 8, None, None),
    "ConsistencyDistillation": (1, 1 / 8, None, None),
    "ConsistencyTraining": (0, None, None, None),
    "LiveReflow": (0, None, 1 / 8, None),
    "Diffusion": (0, None, None, 1 / 8),
}


@each
def test_what_each_teaches_and_is_taught(objective):
    found = (objective.stages, objective.teacher_step, objective.velocity_step, objective.only_step)
    assert found == KNOWN[type(objective).__name__]


def test_flow_matching_is_sampled_at_its_one_step():
    field = FlowMatching(steps=8).sampling(networks().online)
    np.testing.assert_allclose(asked(field, [1.0, 0.5, 1 / 8, 1 / 100]), np.full(4, 1 / 8), rtol=1e-6)


def test_shortcut_is_sampled_no_finer_than_trained():
    field = Shortcut(steps=8).sampling(networks().online)
    np.testing.assert_allclose(asked(field, [1.0, 0.3, 1 / 8, 1 / 100]), [1.0, 0.3, 1 / 8, 1 / 8], rtol=1e-6)


VIEWS = [
    (ProgressiveDistillation(steps=8), [1.0, 0.3, 1 / 4, 1 / 8], [1.0, 0.3, 1 / 4, 1 / 4]),
    (LiveReflow(steps=8), [1.0, 0.5, 1 / 7, 1 / 8, 1 / 100], [1, 1, 1, 1 / 8, 1 / 8]),
    (LiveReflow(steps=8, trained_steps=False), [1.0, 0.3, 1 / 8, 1 / 100], [1.0, 0.3, 1 / 8, 1 / 8]),
]


@pytest.mark.parametrize(("objective", "d", "told"), VIEWS)
def test_views_ask_at_steps_that_were_trained(objective, d, told):
    np.testing.assert_allclose(asked(objective.sampling(networks().online), d), told, rtol=1e-6)


@pytest.mark.parametrize("objective", [ConsistencyDistillation(steps=8), ConsistencyTraining(steps=8)])
def test_consistency_is_asked_for_the_whole_way_whatever_the_step(objective):
    field = objective.sampling(networks().online)
    for d in (1.0, 1 / 100):
        found = asked(field, [d] * 5, t=[0, 0.25, 0.875, 0.99, 1])
        np.testing.assert_allclose(found, [1, 0.75, 1 / 8, 1 / 8, 1 / 8], rtol=1e-5)


def test_diffusion_is_sampled_as_ddim_at_its_one_step(key):
    noise, labels = jax.random.normal(key, (4, 3)), jnp.arange(4)
    objective, network = Diffusion(steps=8, clip=1.0), networks().online
    told = lambda x, t, d, cond: NetworkField(network)(x, t, jnp.full_like(d, 1 / 8), cond)  # noqa: E731
    found = objective.sample(objective.sampling(network), noise, labels, steps=3, renoise=lambda i: noise)
    np.testing.assert_allclose(found, samplers.ddim(told, noise, labels, steps=3, clip=1.0), rtol=1e-6)


@pytest.mark.parametrize("kind", [ConsistencyDistillation, ConsistencyTraining])
def test_consistency_samples_with_new_noise_or_by_euler_steps(key, kind):
    noise, labels, renoise = jax.random.normal(key, (4, 3)), jnp.arange(4), lambda i: jnp.full((4, 3), 2.0)
    for anew in (True, False):
        objective = kind(steps=8, renoise=anew)
        field = objective.sampling(networks().online)
        found = objective.sample(field, noise, labels, steps=3, renoise=renoise)
        again = samplers.consistency(field, noise, labels, steps=3, renoise=renoise)
        plain = samplers.euler(field, noise, labels, steps=3)
        np.testing.assert_array_equal(found, again if anew else plain)
        assert float(jnp.abs(again - plain).max()) > 1e-3


@each
def test_views_take_the_network_without_dropout(objective):
    field = objective.sampling(networks().online)
    if isinstance(field, AtStep | AtEnds | ToData):
        assert field.field.key is None
    x, t = jnp.ones((2, 3)), jnp.array([0.0, 0.5])
    np.testing.assert_array_equal(field(x, t, t + 0.25, t.astype(int)), field(x, t, t + 0.25, t.astype(int)))


@pytest.mark.parametrize(
    ("objective", "steps", "applies"),
    [
        (FlowMatching(), 1, True),
        (FlowMatching(), 128, True),
        (Shortcut(steps=32), 1, True),
        (Shortcut(steps=32, guidance=1.5), 1, False),
        (Shortcut(steps=32, guidance=1.5), 16, False),
        (Shortcut(steps=32, guidance=1.5), 32, True),
        (Shortcut(steps=32, guidance=1.5), 64, True),
        (ProgressiveDistillation(steps=32), 1, False),
        (ProgressiveDistillation(steps=32), 128, False),
        (ConsistencyDistillation(steps=32), 1, False),
        (ConsistencyTraining(steps=32), 32, False),
        (LiveReflow(steps=32), 1, True),
        (LiveReflow(steps=32, guidance=4.0), 31, False),
        (LiveReflow(steps=32, guidance=4.0), 32, True),
        (Diffusion(), 1, True),
    ],
)
def test_guidance_applies_where_the_network_does_not_contain_it(objective, steps, applies):
    assert objective.guides(steps) is applies


def test_any_batch_serves_where_no_row_is_set_apart():
    for objective in (FlowMatching(steps=100), Diffusion(steps=100), *(o for o in ALL if "Dist" in type(o).__name__)):
        objective.check(3)
    ConsistencyTraining().check(3)
    LiveReflow(steps=100, bootstrap_every=3).check(6)


def test_shortcut_accepts_the_smallest_batch():
    Shortcut(steps=128, bootstrap_every=8).check(56)
    Shortcut(steps=128, bootstrap_every=8, guidance=1.5).check(56)
    Shortcut(steps=128, bootstrap_every=8, guidance=1.5, dt_bias=True).check(112)


@pytest.mark.parametrize(
    ("objective", "rows", "message"),
    [
        (Shortcut(steps=128, bootstrap_every=8), 32, r"batch 32 .*4 bootstrap rows for the 7 step sizes .*at least 56"),
        (Shortcut(steps=96), 64, r"steps=96 is not a power of two: .*64 or 128"),
        (ProgressiveDistillation(steps=96), 64, r"steps=96 is not a power of two: .*64 or 128"),
        (ConsistencyDistillation(steps=96), 64, r"steps=96 is not a power of two: .*64 or 128"),
        (ConsistencyTraining(steps=96), 64, r"steps=96 is not a power of two: .*64 or 128"),
        (
            LiveReflow(),
            20,
            r"batch 20 is not a multiple of bootstrap_every=8: use a batch of 16 or 24, or bootstrap_every=5 or 10",
        ),
        (Shortcut(), 60, r"batch 60 is not a multiple of bootstrap_every=8: use a batch of 56 or 64, or bootstrap_every=6$"),
        (Shortcut(guidance=1.5, dt_bias=True), 104, r"and dt_bias has 13 bootstrap rows .*d = 1, 1/2 alone: .*at least 112"),
        (
            Shortcut(dt_bias=True, steps=4),
            24,
            r"3 bootstrap rows for the 2 step sizes of steps=4, .*d = 1 alone: .*at least 32",
        ),
    ],
    ids=["rows", "steps", "progressive", "distillation", "training", "indivisible", "both", "guidance", "four"],
)
def test_check_names_value_and_remedy(objective, rows, message):
    with pytest.raises(ValueError, match=message):
        objective.check(rows)


def test_flow_matching_is_its_loss_with_dropout_on(key):
    k_draws, k_mask = jax.random.split(key)
    online = networks().online
    found, metrics = FlowMatching(steps=8, label_dropout=0.5)(networks(), batch(), key, PROGRESS)
    field = NetworkField(online, k_mask)
    expected, _ = flat.flow_matching(field, batch(), k_draws, steps=8, null=9, dropout=0.5)
    np.testing.assert_allclose([found, metrics["loss"]], expected, rtol=1e-6)


SETTINGS = {"guidance": 2.0, "dt_bias": True, "clip": 1.0}


@pytest.mark.parametrize("average", [True, False])
def test_shortcut_is_its_loss_on_targets_without_dropout(key, average):
    k_draws, k_mask = jax.random.split(key)
    both = networks()
    settings = SETTINGS | {"guide_all": not average}
    objective = Shortcut(steps=4, bootstrap_every=4, bootstrap_ema=average, label_dropout=0.5, **settings)
    found, metrics = objective(both, batch(), key, PROGRESS)
    expected, _ = flat.shortcut(
        NetworkField(both.online, k_mask),
        batch(),
        k_draws,
        target=NetworkField(both.ema if average else both.online),
        steps=4,
        bootstrap_every=4,
        null=both.null,
        dropout=0.5,
        **settings,
    )
    np.testing.assert_allclose([found, metrics["loss"]], expected, rtol=1e-6)


def test_a_bootstrap_row_of_shortcut_counts_its_weight_beside_one_of_flow_matching(key):
    loss, metrics = Shortcut(steps=4, bootstrap_every=4, bootstrap_weight=3.0)(networks(), batch(), key, PROGRESS)
    np.testing.assert_allclose(loss, 0.75 * metrics["loss_flow"] + 0.25 * 3 * metrics["loss_bootstrap"], rtol=1e-6)
    assert metrics["loss_bootstrap"] > 0


def called(objective, key, progress=0.5):
    """Its loss, with the networks, the key and the trained field that the loss below it was given."""
    both = networks()
    k_draws, k_mask = jax.random.split(key)
    return objective(both, batch(), key, jnp.float32(progress))[0], both, k_draws, NetworkField(both.online, k_mask)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
@pytest.mark.parametrize(("progress", "level"), [(0, 2), (0.33, 2), (0.34, 1), (0.66, 1), (0.67, 0), (0.99, 0)])
def test_progressive_distillation_is_its_loss_at_the_stage_s_level_guided_in_the_first(key, progress, level, guidance):
    found, both, k_draws, field = called(ProgressiveDistillation(steps=8, guidance=guidance, clip=1.0), key, progress)
    expected, _ = flat.progressive_distillation(
        field,
        batch(),
        k_draws,
        teacher=NetworkField(both.teacher),
        level=level,
        guidance=guidance if level == 2 else 1.0,
        null=both.null,
        clip=1.0,
    )
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("progress", [0.0, 0.9])
def test_consistency_distillation_is_its_loss_from_one_teacher(key, progress):
    found, both, k_draws, field = called(ConsistencyDistillation(steps=8, guidance=2.0, clip=1.0), key, progress)
    helpers = {"target": NetworkField(both.ema), "teacher": NetworkField(both.teacher), "null": both.null}
    expected, _ = flat.consistency_distillation(field, batch(), k_draws, steps=8, guidance=2.0, clip=1.0, **helpers)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("progress", "level"), [(0, 0), (0.33, 0), (0.34, 1), (0.67, 2), (0.99, 2)])
def test_consistency_training_is_its_loss_with_the_gap_halved_at_equal_intervals(key, progress, level):
    found, both, k_draws, field = called(ConsistencyTraining(steps=8), key, progress)
    expected, _ = flat.consistency_training(field, batch(), k_draws, target=NetworkField(both.ema), level=level)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_live_reflow_is_its_loss_on_the_network_itself(key):
    settings = {"steps": 8, "bootstrap_every": 4, "rollout": 3, "guidance": 2.0}
    found, both, k_draws, field = called(LiveReflow(label_dropout=0.5, **settings), key)
    helpers = {"target": NetworkField(both.online), "null": both.null}
    expected, _ = flat.live_reflow(field, batch(), k_draws, dropout=0.5, **helpers, **settings)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_diffusion_is_its_loss(key):
    found, both, k_draws, field = called(Diffusion(steps=8, label_dropout=0.5), key)
    expected, _ = flat.diffusion(field, batch(), k_draws, steps=8, null=both.null, dropout=0.5)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(("ema", "name"), [(True, "ema"), (False, "online")])
def test_the_next_teacher_is_the_average_or_the_network(ema, name):
    both = networks()
    assert ProgressiveDistillation(teacher_ema=ema).snapshot(both) is getattr(both, name)


@each
def test_terms_are_all_of_the_rows_on_the_grids_of_training(objective):
    """Shares of 1 in all; the number of sections is the inverse of the step at which the rows start, early in training."""
    sections = {
        "FlowMatching": [8],
        "Shortcut": [8, 1, 2, 4],
        "ProgressiveDistillation": [4],
        "ConsistencyDistillation": [8],
        "ConsistencyTraining": [1],
        "LiveReflow": [8, 8],
        "Diffusion": [8],
    }
    terms = objective.terms(networks(), jnp.float32(0.1))
    assert sum(term.share for term in terms) == 1
    np.testing.assert_array_equal(np.concatenate([term.sections for term in terms]), sections[type(objective).__name__])
    assert [term.share for term in terms if term.name in ("bootstrap", "reflow")] in ([], [1 / 8])


@pytest.mark.parametrize(
    ("steps", "guide_all", "expected"), [(8, False, [[8], [4], [1, 2]]), (8, True, [[8], [1, 2, 4]]), (2, False, [[2], [1]])]
)
def test_guided_terms_of_a_shortcut_are_those_of_the_finest_step_unless_all_are(steps, guide_all, expected):
    terms = Shortcut(steps=steps, guidance=2.0, guide_all=guide_all).terms(networks(), PROGRESS)
    assert [np.asarray(term.sections).tolist() for term in terms] == expected


@pytest.mark.parametrize("more", [{}, {"guidance": 1.5}, {"guidance": 1.5, "guide_all": True}])
def test_every_step_size_has_a_row_whatever_is_guided(more):
    Shortcut(dt_bias=True, **more).check(112)
    with pytest.raises(ValueError, match="13 bootstrap rows"):
        Shortcut(dt_bias=True, **more).check(104)


@each
def test_only_the_online_network_is_trained(key, objective):
    grad = eqx.filter_grad(lambda networks: objective(networks, batch(), key, PROGRESS)[0])(networks())
    assert float(jnp.abs(grad.online.weight)) > 0
    assert float(grad.ema.weight) == float(grad.teacher.weight) == 0


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        (LiveReflow(steps=8, bootstrap_every=4), flat.live_reflow),
        (Shortcut(steps=8, bootstrap_every=4, bootstrap_ema=False), flat.shortcut),
    ],
    ids=["reflow", "shortcut"],
)
def test_a_network_that_is_its_own_target_is_trained_as_on_a_copy(key, objective, loss):
    both, (k_draws, k_mask) = networks(), jax.random.split(key)
    copy = NetworkField(Linear(jnp.array(both.online.weight)))

    def frozen(online):
        field, options = NetworkField(online, k_mask), {"steps": 8, "bootstrap_every": 4, "dropout": 0.1}
        return loss(field, batch(), k_draws, target=copy, null=both.null, **options)[0]

    found = eqx.filter_grad(lambda networks: objective(networks, batch(), key, PROGRESS)[0])(both)
    expected = eqx.filter_grad(frozen)(both.online)
    np.testing.assert_allclose(found.online.weight, expected.weight, rtol=1e-5)
