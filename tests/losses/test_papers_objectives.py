"""The gradient of every objective is that of its paper's formula on the network it is said to learn from, and no other's.

Each loss is called as its objective calls it, but for the draws: times and step sizes are handed to it, and no label drops.
Losses that draw times themselves are read from what the trained network is asked.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import papers
from eqx_shortcut import Batch, losses
from eqx_shortcut.objectives import (
    ESC,
    OBJECTIVES,
    AlphaFlow,
    ConsistencyDistillation,
    ConsistencyTraining,
    ContinuousConsistency,
    Diffusion,
    Eulerian,
    FlowMatching,
    ImprovedMeanFlow,
    Lagrangian,
    LiveReflow,
    MeanFlow,
    MidTraining,
    Networks,
    Objective,
    ProgressiveDistillation,
    ProgressiveMap,
    Shortcut,
    SoFlow,
    SplitMeanFlow,
    TerminalVelocity,
)
from eqx_shortcut.types import Draws
from papers import NULL, N, Recorded, Rows, field_of, given, in_steps, parameters

pytestmark = pytest.mark.usefixtures("x64")
FLOOR, STEPS = 1e-5, 8


class TwoHeads(eqx.Module):
    """The field of papers.py as a network of one example with a second head, without dropout."""

    p: dict[str, jax.Array]
    head: dict[str, jax.Array]

    @property
    def velocity(self):
        return TwoHeads(self.head, self.head)

    def __call__(self, x, t, d, cond, *, key=None):
        return field_of(self.p)(*jax.tree.map(lambda a: a[None], (x, t, d, cond)))[0]


def network(seed: int) -> TwoHeads:
    return TwoHeads(parameters(seed), parameters(seed + 10))


def networks(objective: Objective) -> Networks:
    """Four that differ; what is learned of the weight is not nothing."""
    extra = jax.tree.map(lambda c: c.astype(float) + 0.03, objective.extra(jax.random.key(0)))
    return Networks(network(0), network(1), network(2), extra, jnp.int32(NULL))


class Case(NamedTuple):
    """An objective, the loss below it, and the formula of (networks, rows)."""

    objective: Objective
    loss: str
    formula: Callable[[Networks, Rows], Any]
    every: int = 4
    progress: float = 0.5


GUIDANCE = (1.7, 0.3, (0.2, 0.75))
ADAPTIVE: dict[str, Any] = {"power": 1.0, "eps": 0.3}
PAIRS: dict[str, Any] = {"guidance": 1.7, "mix": 0.3, "interval": (0.2, 0.75), **ADAPTIVE}
TAUGHT = PAIRS | {"mix": 0.0, "distil": True}


def online(all: Networks):
    return field_of(all.online.p)


def held(all: Networks):
    """The online network as a target of itself."""
    return field_of(jax.lax.stop_gradient(all.online.p))


def ema(all: Networks):
    return field_of(all.ema.p)


def teacher(all: Networks):
    return field_of(all.teacher.p)


def weighed(error, rows, all: Networks, **more):
    return papers.weighed(error, rows.t, rows.d, learned=learned(all), **ADAPTIVE | more)


def learned(all: Networks):
    """The learned weight as a function of times and step sizes."""
    return None if all.extra is None else all.extra.of


def guided_teacher(all: Networks, rows: Rows):
    """By its unlabelled answers, between two times."""

    def field(x, t, d, cond):
        within = papers.over((t >= 0.2) & (t <= 0.75))
        return jnp.where(within, papers.extrapolated(teacher(all), 1.7)(x, t, d, cond), teacher(all)(x, t, d, cond))

    return field


def taught(error: Callable[..., Any]):
    """A loss whose velocities are those of the guided teacher, in rows of `d = 0`, too."""

    def formula(all, rows):
        velocity = guided_teacher(all, rows)
        flow = papers.flow(online(all), rows, velocity)
        return weighed(in_steps(rows, 4, error(all, rows, velocity), flow), rows, all)

    return formula


def mid_training(all, rows):
    velocity = papers.extrapolated(teacher(all), 2.5)
    return papers.mid_training(online(all), velocity, rows.noise[::3], rows.cond[::3], 3)


def mean_flow(all, rows):
    return weighed(papers.mean_flow(online(all), rows, GUIDANCE), rows, all)


def improved_mean_flow(all, rows):
    return weighed(papers.improved_mean_flow(online(all), rows, GUIDANCE)[0], rows, all)


def improved_mean_flow_with_a_head(all, rows):
    average, velocity = papers.improved_mean_flow(online(all), rows, GUIDANCE, field_of(all.online.head))
    return weighed(average, rows, all) + weighed(velocity, rows, all)


def alpha_flow(alpha: float, **more):
    def formula(all, rows):
        error = papers.alpha_flow(online(all), held(all), rows, alpha, GUIDANCE)
        flow = papers.flow(online(all), rows, GUIDANCE, held(all))
        return in_steps(rows, 4, weighed(error, rows, all, unit=alpha or 1.0), weighed(flow, rows, all))

    return formula


def so_flow(all, rows):
    error = papers.so_flow(online(all), held(all), rows, (0.1 * 0.002) ** 0.5, GUIDANCE)
    flow = papers.flow(online(all), rows, GUIDANCE, held(all))
    steps = papers.so_weighed(error, rows, unit=(0.1 * 0.002) ** 0.5, **ADAPTIVE)
    return in_steps(rows, 4, steps, papers.so_weighed(flow, rows, **ADAPTIVE))


def lagrangian(of):
    def formula(all, rows):
        error = papers.lagrangian(online(all), of(all), rows)
        return weighed(in_steps(rows, 4, error, papers.flow(online(all), rows, GUIDANCE, of(all))), rows, all)

    return formula


def eulerian(through: str):
    def formula(all, rows):
        error = papers.eulerian(online(all), rows, through=through)
        return weighed(in_steps(rows, 4, error, papers.flow(online(all), rows, GUIDANCE)), rows, all)

    return formula


def progressive_map(of):
    def formula(all, rows):
        error = papers.progressive_map(online(all), of(all), rows, 0.4)
        return weighed(in_steps(rows, 4, error, papers.flow(online(all), rows, GUIDANCE, of(all))), rows, all)

    return formula


def continuous_consistency(distil: bool):
    def formula(all, rows):
        velocity = papers.extrapolated(teacher(all), 2.5) if distil else None
        options: dict[str, Any] = {"sd": 0.7, "warmup": 0.6, "normalise": 0.2, "teacher": velocity}
        error, _ = papers.continuous_consistency(online(all), rows, **options)
        return papers.weighed(error, rows.t, rows.d, learned=learned(all))

    return formula


def shortcut(of):
    def formula(all, rows):
        options: dict[str, Any] = {"floor": FLOOR, "clip": None, "scale": 2.5, "guided": rows.d == 2 / STEPS}
        error = papers.shortcut(online(all), of(all), rows, **options)
        return in_steps(rows, 3, error, papers.flow_matching(online(all), rows, FLOOR))

    return formula


def live_reflow(all, rows):
    options: dict[str, Any] = {"floor": FLOOR, "steps": STEPS, "rollout": 3, "scale": 2.5}
    error = papers.live_reflow(online(all), held(all), rows, **options)
    return in_steps(rows, 3, error, papers.flow_matching(online(all), rows, FLOOR))


def progressive(scale: float):
    return lambda all, rows: papers.progressive(online(all), teacher(all), rows, floor=FLOOR, clip=None, scale=scale)


def consistency(of, gap: float, **options):
    def formula(all, rows):
        helped = {"teacher": teacher(all), "scale": 2.5} if options else {}
        return papers.consistency(online(all), of(all), rows, gap=gap, floor=FLOOR, **helped)

    return formula


DISTIL: dict[str, Any] = {"steps": STEPS, "guidance": 2.5, "clip": None}
CONTINUOUS: dict[str, Any] = {"std": 0.7, "normalise": 0.2, "warmup_share": 0.1}
ALPHA: dict[str, Any] = {"start": 0.25, "stop": 0.75, "sharpness": 12.0, "snap": 0.005}
HALVES: dict[str, Any] = DISTIL | {"bootstrap_every": 3, "label_dropout": 0.0}
CASES = {
    "MeanFlow": Case(MeanFlow(**PAIRS), "mean_flow", mean_flow),
    "MeanFlow, learned": Case(MeanFlow(**PAIRS, log_variance=True), "mean_flow", mean_flow),
    "ESC": Case(ESC(**PAIRS, posterior_every=None), "mean_flow", mean_flow),
    "ImprovedMeanFlow": Case(ImprovedMeanFlow(**PAIRS), "improved_mean_flow", improved_mean_flow, every=2),
    "ImprovedMeanFlow, two heads": Case(
        ImprovedMeanFlow(**PAIRS, velocity_head=True), "improved_mean_flow", improved_mean_flow_with_a_head, every=2
    ),
    "AlphaFlow": Case(AlphaFlow(**PAIRS, **ALPHA), "alpha_flow", alpha_flow(0.5)),
    "AlphaFlow, at its end": Case(AlphaFlow(**PAIRS, **ALPHA), "alpha_flow", alpha_flow(0.0), progress=1.0),
    "SoFlow": Case(SoFlow(**PAIRS, first=0.1, last=0.002), "so_flow", so_flow),
    "SplitMeanFlow": Case(SplitMeanFlow(**PAIRS), "split_mean_flow", progressive_map(held)),
    "Lagrangian": Case(Lagrangian(**PAIRS, log_variance=False), "lagrangian", lagrangian(held)),
    "Lagrangian of the average, learned": Case(
        Lagrangian(**PAIRS, target_ema=True, log_variance=True), "lagrangian", lagrangian(ema)
    ),
    "TerminalVelocity": Case(TerminalVelocity(**PAIRS), "lagrangian", lagrangian(ema)),
    "Eulerian": Case(Eulerian(**PAIRS, log_variance=True), "eulerian", eulerian("time")),
    "Eulerian, its tangent stopped": Case(Eulerian(**PAIRS, stop_tangent=True), "eulerian", eulerian("value")),
    "Eulerian, none of it stopped": Case(Eulerian(**PAIRS, stop_space=False, log_variance=False), "eulerian", eulerian("all")),
    "ProgressiveMap": Case(ProgressiveMap(**PAIRS, share=0.4, log_variance=False), "progressive_map", progressive_map(held)),
    "ProgressiveMap of the average, learned": Case(
        ProgressiveMap(**PAIRS, share=0.4, target_ema=True, log_variance=True), "progressive_map", progressive_map(ema)
    ),
    "ContinuousConsistency": Case(
        ContinuousConsistency(**CONTINUOUS, log_variance=True),
        "continuous_consistency",
        continuous_consistency(False),
        progress=0.06,
    ),
    "ContinuousConsistency from a teacher": Case(
        ContinuousConsistency(**CONTINUOUS, log_variance=False, distil=True, guidance=2.5),
        "continuous_consistency",
        continuous_consistency(True),
        progress=0.06,
    ),
    "FlowMatching": Case(
        FlowMatching(steps=STEPS), "flow_matching", lambda all, rows: papers.flow_matching(online(all), rows, FLOOR)
    ),
    "Diffusion": Case(Diffusion(steps=STEPS), "diffusion", lambda all, rows: papers.diffusion(online(all), rows)),
    "Shortcut of the average": Case(Shortcut(**HALVES, bootstrap_ema=True), "shortcut", shortcut(ema), every=3),
    "Shortcut": Case(Shortcut(**HALVES, bootstrap_ema=False), "shortcut", shortcut(held), every=3),
    "LiveReflow": Case(
        LiveReflow(steps=STEPS, bootstrap_every=3, rollout=3, guidance=2.5), "live_reflow", live_reflow, every=3
    ),
    "ProgressiveDistillation": Case(
        ProgressiveDistillation(**DISTIL), "progressive_distillation", progressive(2.5), progress=0.2
    ),
    "ProgressiveDistillation, later": Case(ProgressiveDistillation(**DISTIL), "progressive_distillation", progressive(1.0)),
    "ConsistencyDistillation": Case(
        ConsistencyDistillation(**DISTIL), "consistency_distillation", consistency(ema, 1 / STEPS, taught=True)
    ),
    "MidTraining": Case(MidTraining(guidance=2.5, rollout=3), "mid_training", mid_training),
    "MeanFlow from a teacher": Case(
        MeanFlow(**TAUGHT), "mean_flow", taught(lambda all, rows, v: papers.mean_flow(online(all), rows, v))
    ),
    "AlphaFlow from a teacher, at its end": Case(
        AlphaFlow(**TAUGHT, **ALPHA),
        "alpha_flow",
        taught(lambda all, rows, v: papers.alpha_flow(online(all), held(all), rows, 0.0, v)),
        progress=1.0,
    ),
    "Lagrangian from a teacher": Case(
        Lagrangian(**TAUGHT), "lagrangian", taught(lambda all, rows, v: papers.lagrangian(online(all), v, rows))
    ),
    "Eulerian from a teacher": Case(
        Eulerian(**TAUGHT),
        "eulerian",
        taught(lambda all, rows, v: papers.eulerian(online(all), rows, through="time", teacher=v)),
    ),
    "ConsistencyTraining": Case(ConsistencyTraining(steps=STEPS), "consistency_training", consistency(ema, 1 / 2)),
}


def observe(monkeypatch, case: Case, rows: Rows) -> dict[str, Recorded]:
    """Hand `rows` to the loss below the objective; what its fields are asked is kept."""
    loss, seen = getattr(losses, case.loss), {}

    def watched(field, batch, key, **said):
        if "intervals" in said:
            own = {"pairs": lambda *_: (rows.t, rows.d), "velocity_times": lambda *_: rows.t}
            said |= {"intervals": dataclasses.replace(said["intervals"], **own)}
        if case.loss == "continuous_consistency":
            said |= {"at": lambda *_: rows.t}
        if "guidance" in said:
            said |= {"guidance": said["guidance"]._replace(dropout=0.0)}
        fields = {name: Recorded(said[name]) for name in ("target", "teacher") if said.get(name) is not None}
        seen.update(fields, field=Recorded(field))
        return loss(seen["field"], batch, key, **{**said, **fields})

    monkeypatch.setattr(losses, case.loss, watched)
    return seen


DRAWN = ("flow_matching", "diffusion", "shortcut", "live_reflow", "consistency_training")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_gradient_is_that_of_the_formula(key, monkeypatch, case):
    objective, rows = case.objective, given(case.every, steps_to_data=case.loss == "continuous_consistency")
    if isinstance(objective, SplitMeanFlow):  # its shares are all that is left to be drawn
        monkeypatch.setattr(jax.random, "uniform", lambda key, shape, *rest, **more: jnp.full(shape, 0.4))
    seen, all, batch = observe(monkeypatch, case, rows), networks(objective), Batch(rows.data, rows.cond, rows.noise)

    def loss(all):
        return objective(all, batch, key, jnp.asarray(case.progress))[0]

    value, found = eqx.filter_value_and_grad(loss)(all)
    if case.loss in DRAWN or "distillation" in case.loss:
        _, t, d, _ = seen["field"].first(N)
        rows = rows._replace(t=t, d=d)
    expected, gradient = eqx.filter_value_and_grad(lambda all: jnp.mean(case.formula(all, rows)))(all)
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    for part in ("online", "extra"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-12), getattr(found, part), getattr(gradient, part)
        )
    assert all_zero(found.ema) and all_zero(found.teacher) and not all_zero(found.online)


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if not case.objective.continuous])
def test_the_terms_of_an_objective_are_its_formula_at_any_time_of_their_grids(name):
    """Each in the rows that it is for."""
    case, all = CASES[name], networks(CASES[name].objective)
    for term in case.objective.terms(all, jnp.asarray(case.progress)):
        which = (np.arange(N) % case.every == 0) == (term.name != "flow") if term.share < 1 else np.ones(N, bool)
        for n in np.asarray(term.sections, float):
            rows = given(case.every)
            rows = rows._replace(t=jnp.floor(rows.t * n) / n, d=jnp.full(N, 1 / n))
            asked = term.target(Draws(rows.data, rows.noise, rows.t, rows.d, rows.cond))
            found = papers.mean_square(online(all)(asked.x, asked.t, asked.d, asked.cond) - asked.u)
            expected = case.formula(all, rows._replace(d=asked.d))
            np.testing.assert_allclose(found[which], expected[which], rtol=1e-9)


def all_zero(tree) -> bool:
    return not any(np.any(leaf) for leaf in jax.tree.leaves(tree))


SETS = {"sinkhorn-flow", "drifting", "frechet", "reward", "inductive-moment-matching"}
"""Those on samples as sets: test_sets_laws.py, test_frechet_laws.py, test_reward_laws.py, test_moment_matching_laws.py."""


def test_every_objective_is_here():
    kinds = {kind for name, kind in OBJECTIVES.items() if name not in SETS}
    assert kinds == {type(case.objective) for case in CASES.values()}
