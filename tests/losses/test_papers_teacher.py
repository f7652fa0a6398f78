"""Losses with a teacher equal their papers' formulas (papers.py), values and gradients, labels dropped and guidance told."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
import papers
from eqx_shortcut import Batch, losses
from eqx_shortcut.guidance import Guidance, Guided, autoguided, unlabelled
from papers import N, Rows, field_of, given, in_steps, parameters, same
from test_papers import LABEL, TARGET, WEIGHTS, batch_of, handed, options_of, weighed

pytestmark = pytest.mark.usefixtures("x64")
WEAK = 6
"""Seed of the parameters of the weak network."""


def taught():
    """Rows of which each is told its guidance, some of them outside of its times, and the teacher twice: ours and by hand."""
    rng = np.random.default_rng(3)
    rows = given(4)
    told = papers.Told(rows.cond, *map(jnp.asarray, (rng.uniform(1, 3, N), rng.uniform(0, 0.4, N), rng.uniform(0.6, 1, N))))
    strong, weak = field_of(parameters(TARGET)), field_of(parameters(WEAK))
    return rows._replace(cond=told), autoguided(strong, weak), papers.autoguided(strong, weak)


def batch_told(rows: Rows) -> Batch:
    return Batch(rows.data, Guided(*rows.cond), rows.noise)


LOSSES = {
    "mean_flow": ({}, lambda u, target, teacher, rows: papers.eulerian(u, rows, through="value", teacher=teacher)),
    "lagrangian": ({}, lambda u, target, teacher, rows: papers.lagrangian(u, teacher, rows)),
    "eulerian": ({}, lambda u, target, teacher, rows: papers.eulerian(u, rows, through="time", teacher=teacher)),
    "eulerian through all": (
        {"stop_space": False},
        lambda u, target, teacher, rows: papers.eulerian(u, rows, through="all", teacher=teacher),
    ),
    "alpha_flow": ({"alpha": 0.3}, lambda u, target, teacher, rows: papers.alpha_flow(u, target, rows, 0.3, teacher)),
}


@pytest.mark.parametrize(
    ("name", "weighing"),
    [
        *((name, "plain") for name in LOSSES),
        ("alpha_flow", "adaptive"),
        *(pytest.param(name, "everything", marks=pytest.mark.slow) for name in ("mean_flow", "lagrangian", "eulerian")),
    ],
)
def test_a_teacher_that_is_guided_as_each_row_is_told(key, name, weighing):
    """`target`, where there is one, is a third network."""
    (rows, teacher, by_hand), (options, error) = taught(), LOSSES[name]
    target, unit = field_of(parameters(9)), options.get("alpha", 1.0)
    needs = {"target": target} if name in ("lagrangian", "alpha_flow") else {}

    def loss(p, **more):
        more |= handed(rows) | options_of(WEIGHTS[weighing], p) | options | needs
        return getattr(flat, name.split()[0])(field_of(p), batch_told(rows), key, teacher=teacher, bootstrap_every=4, **more)

    def formula(p):
        steps = weighed(error(field_of(p), target, by_hand, rows), rows, WEIGHTS[weighing], p, unit=unit)
        flow = weighed(papers.flow(field_of(p), rows, by_hand), rows, WEIGHTS[weighing], p)
        return in_steps(rows, 4, steps, flow)

    same(loss, formula, parameters(0))


def test_a_teacher_that_its_unlabelled_answers_guide(key):
    """Rows without a label learn it unguided."""
    rows, strong = given(4), field_of(parameters(TARGET))
    teacher = autoguided(strong, unlabelled(strong, LABEL), 2.5)

    def loss(p, **options):
        options |= handed(rows) | {"power": 0.0, "teacher": teacher}
        return flat.mean_flow(field_of(p), batch_of(rows), key, bootstrap_every=4, **options)

    same(loss, lambda p: papers.mean_flow(field_of(p), rows, papers.extrapolated(strong, 2.5)), parameters(0))


def test_mid_training(key):
    rows, strong = given(4), field_of(parameters(TARGET))

    def loss(p, **options):
        return losses.mid_training(field_of(p), batch_of(rows), key, teacher=strong, rollout=4, **options)

    same(loss, lambda p: papers.mid_training(field_of(p), strong, rows.noise[::4], rows.cond[::4], 4), parameters(0))
    assert np.any(np.asarray(rows.cond[::4]) == papers.NULL)


def test_no_gradient_passes_a_teacher(key):
    rows = given(4)

    def run(p, name):
        options = {"rollout": 4} if name == "mid_training" else handed(rows) | {"bootstrap_every": 4}
        return getattr(flat, name)(field_of(parameters(0)), batch_of(rows), key, teacher=field_of(p), **options)[0]

    for name in ("mean_flow", "eulerian", "mid_training"):
        assert not any(np.any(leaf) for leaf in jax.tree.leaves(jax.grad(run)(parameters(TARGET), name)))


def test_guidance_by_the_network_that_learns_is_refused_beside_a_teacher(key):
    field = field_of(parameters(0))
    with pytest.raises(ValueError, match=r"scale=2.0, mix=0.0 guide a line's velocity .*guide the teacher by guidance.guided"):
        flat.mean_flow(field, batch_of(given(4)), key, teacher=field, guidance=Guidance(LABEL, scale=2.0))
    with pytest.raises(
        ValueError, match=r"batch 12 is not a multiple of rollout=5: use a batch of 10 or 15, or rollout=4 or 6"
    ):
        losses.mid_training(field, batch_of(given(4)), key, teacher=field, rollout=5)
