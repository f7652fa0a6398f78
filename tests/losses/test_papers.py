"""Every successor's loss equals its paper's formula (papers.py), values and gradients, at an arbitrary field, all options on.

Noise, times, step sizes and dropped labels are handed to the losses.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
import papers
from eqx_shortcut import Batch, losses
from eqx_shortcut.guidance import Guidance, Scales
from papers import NULL, SIZE, N, Recorded, Rows, field_of, given, in_steps, log_variance, parameters, same, weight

pytestmark = pytest.mark.usefixtures("x64")
GUIDANCE = (1.7, 0.3, (0.2, 0.75))
LABEL = jnp.int32(NULL)


def batch_of(rows: Rows) -> Batch:
    return Batch(rows.data, rows.cond, rows.noise)


def handed(rows: Rows) -> dict[str, Any]:
    """Options that make a loss on pairs use these times and step sizes, each in the rows that it is for."""

    def pairs(key, n, dtype):
        return jnp.where(rows.d > 0, rows.t, 0.11), jnp.where(rows.d > 0, rows.d, 0.07)

    return {"pairs": pairs, "velocity_times": lambda *_: jnp.where(rows.d > 0, 0.13, rows.t), "null": LABEL}


def intervals(rows: Rows, every: int) -> losses.Intervals:
    own = handed(rows)
    return losses.Intervals(own["pairs"], every, own["velocity_times"])


def told(guidance):
    return None if guidance is None else Guidance(None, 0.0, *guidance)


WEIGHTS: dict[str, dict[str, Any]] = {
    "plain": {"power": 0.0},
    "adaptive": {"power": 1.0, "eps": 0.3},
    "adaptive by half, and learned": {"power": 0.5, "eps": 0.3, "learned": True},
    "everything": {"power": 1.0, "eps": 0.3, "learned": True, "weight": weight},
}
weights = pytest.mark.parametrize("weighing", WEIGHTS.values(), ids=WEIGHTS.keys())
guidances = pytest.mark.parametrize("guidance", [None, GUIDANCE], ids=["free", "guided"])
cases = pytest.mark.parametrize(
    ("guidance", "weighing"),
    [(None, WEIGHTS["plain"]), *((GUIDANCE, weighing) for weighing in WEIGHTS.values())],
    ids=["free", *WEIGHTS],
)


def options_of(weighing, p) -> dict[str, Any]:
    """As a loss takes them."""
    given = {k: v for k, v in weighing.items() if k != "learned"}
    return given | ({"log_variance": log_variance(p)} if "learned" in weighing else {})


def weighed(error, rows: Rows, weighing, p, **more):
    """As the paper has them."""
    given = weighing | ({"learned": log_variance(p)} if "learned" in weighing else {})
    return papers.weighed(error, rows.t, rows.d, **given, **more)


# MeanFlow's family


@cases
def test_mean_flow(key, guidance, weighing):
    rows = given(4)

    def loss(p, **options):
        options |= handed(rows) | options_of(weighing, p)
        return flat.mean_flow(field_of(p), batch_of(rows), key, bootstrap_every=4, guidance=told(guidance), **options)

    same(loss, lambda p: weighed(papers.mean_flow(field_of(p), rows, guidance), rows, weighing, p), parameters(0))


def test_mean_flow_without_a_share_of_the_own_velocity(key):
    """Then the network is not asked for it, which another branch of the code does."""
    rows, guidance = given(3), (2.0, 0.0, (0.0, 1.0))

    def loss(p, **options):
        options |= handed(rows) | {"bootstrap_every": 3, "guidance": told(guidance), "power": 0.0}
        return flat.mean_flow(field_of(p), batch_of(rows), key, **options)

    same(loss, lambda p: papers.mean_flow(field_of(p), rows, guidance), parameters(0))


def test_esc_learns_from_the_lines_of_its_batch(key):
    """Every second row of either kind."""
    rows = given(4)
    batch, options = Batch(rows.data, rows.cond), {**handed(rows), "bootstrap_every": 4}
    rows = rows._replace(noise=intervals(rows, 4).draw(batch, key).noise)
    flow = np.arange(N) % 4 > 0
    which = np.zeros(N, bool)
    which[np.flatnonzero(flow)[::2]] = which[np.flatnonzero(~flow)[::2]] = True
    moved = papers.posterior(rows, which)

    def loss(p, **more):
        return flat.mean_flow(field_of(p), batch, key, posterior_every=2, power=0.0, **options, **more)

    same(loss, lambda p: papers.mean_flow(field_of(p), moved), parameters(0))


def head_of(p):
    return field_of({name: leaf[..., ::-1] / 2 for name, leaf in p.items()} | {"labels": p["labels"], "into": p["into"] / 2})


def improved(p, rows: Rows, guidance, weighing, head: bool):
    """The formula, with the error of the head beside it."""
    average, velocity = papers.improved_mean_flow(field_of(p), rows, guidance, head_of(p) if head else None)
    loss = weighed(average, rows, weighing, p)
    return loss + weighed(velocity, rows._replace(d=0 * rows.d), weighing, p) if head else loss


heads = pytest.mark.parametrize("head", [False, True], ids=["own", "head"])


@heads
@cases
def test_improved_mean_flow(key, guidance, weighing, head):
    """With a second head this one guides, gives the tangent's direction, and is trained beside by the same weights."""
    rows, weighing = given(2), {k: v for k, v in weighing.items() if k != "learned"}

    def loss(p, **options):
        options |= handed(rows) | weighing | {"guidance": told(guidance), "velocity": head_of(p) if head else None}
        return flat.improved_mean_flow(field_of(p), batch_of(rows), key, bootstrap_every=2, **options)

    same(loss, lambda p: improved(p, rows, guidance, weighing, head), parameters(0))
    if head:
        _, velocity = papers.improved_mean_flow(field_of(parameters(0)), rows, guidance, head_of(parameters(0)))
        np.testing.assert_allclose(loss(parameters(0))[1]["loss_velocity"], jnp.mean(velocity), rtol=1e-9)


@heads
def test_improved_mean_flow_is_told_its_scale(key, head):
    """`v + (1 - 1/w)(v_label - v_none)` in the interval that is told; what is drawn is read from what is asked."""
    rows, weighing = given(2), {"power": 1.0, "eps": 0.3}
    scales = Scales(1.0, 8.0, intervals=True)

    def run(field, velocity, **options):
        options |= handed(rows) | weighing | {"guidance": scales, "velocity": velocity}
        return flat.improved_mean_flow(field, batch_of(rows), key, bootstrap_every=2, **options)

    field, velocity = Recorded(field_of(parameters(0))), Recorded(head_of(parameters(0)))
    run(field, velocity if head else None)
    _, _, _, cond = (velocity if head else field).first(2 * N)
    scale, start, stop = (a[::2] for a in (cond.scale, cond.start, cond.stop))
    assert np.all((scale >= 1) & (scale <= 8) & (start <= 0.5) & (stop >= 0.5)) and len(set(np.asarray(scale))) == N
    with_told = rows._replace(cond=papers.Told(rows.cond, scale, start, stop))
    same(
        lambda p, **options: run(field_of(p), head_of(p) if head else None, **options),
        lambda p: improved(p, with_told, (1.0, 1 - 1 / scale, (start, stop)), weighing, head),
        parameters(0),
    )


TARGET = 5
"""Seed of the parameters of a target that is another network."""


@pytest.mark.parametrize("alpha", [0.3, 0.0])
@cases
def test_alpha_flow(key, guidance, weighing, alpha):
    """Rows of either kind are guided by the target, in units of alpha where there is one."""
    rows, weighing = given(4), {k: v for k, v in weighing.items() if k != "learned"}
    target = field_of(parameters(TARGET))

    def loss(p, **options):
        options |= handed(rows) | weighing | {"guidance": told(guidance), "clip": None, "per_alpha": True}
        return flat.alpha_flow(field_of(p), batch_of(rows), key, target=target, alpha=alpha, bootstrap_every=4, **options)

    def formula(p):
        error = weighed(papers.alpha_flow(field_of(p), target, rows, alpha, guidance), rows, weighing, p, unit=alpha or 1.0)
        return in_steps(rows, 4, error, weighed(papers.flow(field_of(p), rows, guidance, target), rows, weighing, p))

    same(loss, formula, parameters(0))


@pytest.mark.parametrize("per_alpha", [False, True], ids=["plain units", "units of alpha"])
@pytest.mark.parametrize("weighing", [{"power": 0.0, "eps": 0.3}, {"power": 1.0, "eps": 0.3}], ids=["plain", "adaptive"])
@guidances
def test_so_flow(key, guidance, weighing, per_alpha):
    """By its own account: one solution from two points of the line, in its own weights."""
    rows, target = given(4), field_of(parameters(TARGET))

    def loss(p, **options):
        options |= handed(rows) | weighing | {"guidance": told(guidance), "per_alpha": per_alpha, "weight": weight}
        return flat.so_flow(field_of(p), batch_of(rows), key, target=target, alpha=0.1, bootstrap_every=4, **options)

    def formula(p):
        error = papers.so_flow(field_of(p), target, rows, 0.1, guidance)
        flow = papers.flow(field_of(p), rows, guidance, target)
        steps = papers.so_weighed(error, rows, unit=0.1 if per_alpha else 1.0, **weighing)
        return weight(rows.t, rows.d) * in_steps(rows, 4, steps, papers.so_weighed(flow, rows, **weighing))

    same(loss, formula, parameters(0))


# Flow maps


@cases
@pytest.mark.parametrize("name", ["lagrangian", "terminal_velocity"])
def test_lagrangian(key, name, guidance, weighing):
    rows, target = given(4), field_of(parameters(TARGET))

    def loss(p, **options):
        options |= handed(rows) | options_of(weighing, p) | {"guidance": told(guidance), "target": target}
        return getattr(flat, name)(field_of(p), batch_of(rows), key, bootstrap_every=4, **options)

    def formula(p):
        error = papers.lagrangian(field_of(p), target, rows)
        flow = papers.flow(field_of(p), rows, guidance, target)
        return weighed(in_steps(rows, 4, error, flow), rows, weighing, p)

    same(loss, formula, parameters(0))


STOPS: dict[str, dict[str, bool]] = {"time": {}, "value": {"stop_tangent": True}, "all": {"stop_space": False}}
"""What Eulerian's gradient passes through, by the options that say so."""


@pytest.mark.parametrize("through", STOPS)
@cases
def test_eulerian(key, guidance, weighing, through):
    rows = given(4)

    def loss(p, **options):
        options |= handed(rows) | options_of(weighing, p) | {"guidance": told(guidance)} | STOPS[through]
        return flat.eulerian(field_of(p), batch_of(rows), key, bootstrap_every=4, **options)

    def formula(p):
        error = papers.eulerian(field_of(p), rows, through=through)
        return weighed(in_steps(rows, 4, error, papers.flow(field_of(p), rows, guidance)), rows, weighing, p)

    same(loss, formula, parameters(0))


@cases
def test_progressive_map(key, guidance, weighing):
    rows, target = given(4), field_of(parameters(TARGET))

    def loss(p, **options):
        options |= handed(rows) | options_of(weighing, p) | {"guidance": told(guidance), "target": target, "share": 0.4}
        return flat.progressive_map(field_of(p), batch_of(rows), key, bootstrap_every=4, clip=None, **options)

    def formula(p):
        error = papers.progressive_map(field_of(p), target, rows, 0.4)
        flow = papers.flow(field_of(p), rows, guidance, target)
        return weighed(in_steps(rows, 4, error, flow), rows, weighing, p)

    same(loss, formula, parameters(0))


def test_split_mean_flow(key):
    """At a share of each row, which is read from the first of the two steps that the target is asked for."""
    rows, target = given(4), Recorded(field_of(parameters(TARGET)))

    def loss(p, **options):
        options |= handed(rows) | {"power": 1.0, "eps": 0.3, "guidance": told(GUIDANCE), "clip": None}
        return flat.split_mean_flow(field_of(p), batch_of(rows), key, target=target, bootstrap_every=4, **options)

    loss(parameters(0))
    steps = rows.d > 0
    _, _, d, _ = target.first(N // 4)
    share = jnp.full(N, 0.5).at[np.flatnonzero(steps)].set(d / rows.d[steps])
    drawn = np.asarray(share[steps])
    assert np.all((drawn > 0) & (drawn < 1)) and len(set(drawn)) == len(drawn)

    def formula(p):
        error = papers.progressive_map(field_of(p), field_of(parameters(TARGET)), rows, share)
        flow = papers.flow(field_of(p), rows, GUIDANCE, target)
        return weighed(in_steps(rows, 4, error, flow), rows, {"power": 1.0, "eps": 0.3}, p)

    same(loss, formula, parameters(0))


@pytest.mark.parametrize("name", ["alpha_flow", "progressive_map", "split_mean_flow"])
def test_targets_are_clipped_in_units_of_the_data(key, name):
    """Rows of a step alone: what regresses on a target far away regresses on the limit."""
    rows = given(4)
    far = lambda x, t, d, cond: jnp.full_like(x, 50.0)  # noqa: E731
    options = handed(rows) | {"target": far, "power": 0.0, "clip": 2.5, "bootstrap_every": 4}
    options |= {"alpha": 0.5, "per_alpha": False} if name == "alpha_flow" else {}
    found, _ = getattr(flat, name)(field_of(parameters(0)), batch_of(rows), key, reduction=None, **options)
    answer = field_of(parameters(0))(rows.point, rows.t, rows.d, rows.cond)
    np.testing.assert_allclose(found[::4], papers.mean_square(answer - 2.5)[::4], rtol=1e-9)


def opposite(function, primals, tangents):
    """A `jax.jvp` of the other sign."""
    value, slope = jax.jvp(function, primals, tangents)
    return value, jax.tree.map(jnp.negative, slope)


@pytest.mark.parametrize(
    "name",
    ["mean_flow", "improved_mean_flow", "alpha_flow", "lagrangian", "terminal_velocity", "eulerian", "continuous_consistency"],
)
def test_tangents_are_taken_by_the_function_that_is_given(key, name):
    rows = given(4)
    options = {"at": lambda *_: rows.t} if name == "continuous_consistency" else handed(rows) | {"bootstrap_every": 4}
    options |= {"target": field_of(parameters(TARGET))} if name in ("alpha_flow", "lagrangian", "terminal_velocity") else {}
    options |= {"alpha": 0.0} if name == "alpha_flow" else {}
    values = [
        getattr(flat, name)(field_of(parameters(0)), batch_of(rows), key, power=0.0, **more, **options)[0]
        for more in ({}, {"jvp": jax.jvp}, {"jvp": opposite})
    ]
    assert values[0] == values[1] and abs(values[2] - values[0]) > 1e-3


def test_magnitudes_of_velocities_are_those_of_the_targets(key):
    """A network that answers nothing has no tangent: MeanFlow's target is the line's velocity in rows of either kind."""
    rows, nothing = given(4), lambda x, t, d, cond: jnp.zeros_like(x)
    _, metrics = flat.mean_flow(nothing, batch_of(rows), key, bootstrap_every=4, **handed(rows))
    steps = np.arange(N) % 4 == 0
    for name, which in {"velocity": ~steps, "velocity_bootstrap": steps}.items():
        np.testing.assert_allclose(metrics[name], np.sqrt(np.mean(np.square(rows.line[which]))), rtol=1e-9)


# Continuous-time consistency


@weights
@pytest.mark.parametrize("teacher", [False, True], ids=["sCT", "sCD"])
def test_continuous_consistency(key, teacher, weighing):
    """On the trigonometric path with the network `F` of the paper; the teacher is guided."""
    rows = given(4, steps_to_data=True)
    settings: dict[str, Any] = {"warmup": 0.6, "normalise": 0.2}
    helped = {"teacher": field_of(parameters(TARGET)), "guidance": 2.5} if teacher else {}
    velocity = papers.extrapolated(field_of(parameters(TARGET)), 2.5) if teacher else None

    def loss(p, **options):
        options |= options_of(weighing, p) | settings | helped | {"std": 0.7, "null": LABEL}
        return flat.continuous_consistency(field_of(p), batch_of(rows), key, at=lambda *_: rows.t, **options)

    def formula(p):
        error, _ = papers.continuous_consistency(field_of(p), rows, sd=0.7, teacher=velocity, **settings)
        return weighed(error, rows, weighing, p)

    same(loss, formula, parameters(0))
    _, raw = papers.continuous_consistency(field_of(parameters(0)), rows, sd=0.7, teacher=velocity, **settings)
    np.testing.assert_allclose(loss(parameters(0))[1]["error"], raw, rtol=1e-9)


def test_continuous_consistency_with_its_tangent_as_it_is(key):
    rows = given(4, steps_to_data=True)

    def loss(p, **options):
        options |= {"std": 0.5, "warmup": 1.0, "normalise": None, "power": 0.0}
        return flat.continuous_consistency(field_of(p), batch_of(rows), key, at=lambda *_: rows.t, **options)

    def formula(p):
        return papers.continuous_consistency(field_of(p), rows, sd=0.5, warmup=1.0, normalise=None)[0]

    same(loss, formula, parameters(0))


@pytest.mark.parametrize("dropout", [0.0, 0.5, 1.0])
def test_continuous_consistency_drops_labels(key, dropout):
    field, n = Recorded(field_of(parameters(0))), 600
    options: dict[str, Any] = {"at": lambda *_: jnp.full(n, 0.5), "null": LABEL, "dropout": dropout}
    flat.continuous_consistency(field, Batch(jnp.zeros((n, SIZE)), jnp.zeros(n, int)), key, **options)
    share = np.mean(np.asarray(field.asked[0][3] == NULL))
    assert abs(share - dropout) <= 5 * np.sqrt(dropout * (1 - dropout) / n)


# What learns nothing


def says(name: str, rows: Rows, p):
    """What the builder of a loss says that the field should answer, all networks being of the parameters `p`."""
    field, draws = field_of(p), intervals(rows, 2).draw(batch_of(rows), jax.random.key(0))
    lines = losses.velocity_target(field, draws, Guidance(LABEL, 0.0, *GUIDANCE))
    return {
        "velocity_target": lambda: lines,
        "mean_flow_target": lambda: losses.mean_flow_target(field, lines, along=field)[1],
        "lagrangian_error": lambda: losses.lagrangian_error(field, field, draws)[1],
        "eulerian_error": lambda: losses.eulerian_error(field, draws, stop_tangent=False)[1],
        "continuous_consistency_target": lambda: losses.continuous_consistency_target(field, draws, teacher=field)[1],
    }[name]().u


@pytest.mark.parametrize(
    "name", ["velocity_target", "mean_flow_target", "lagrangian_error", "eulerian_error", "continuous_consistency_target"]
)
def test_no_gradient_passes_what_a_field_should_answer(name):
    gradient = jax.grad(lambda p: jnp.sum(says(name, given(2), p)))(parameters(0))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
