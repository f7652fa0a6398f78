"""The losses of the reference equal the formulas of their papers (papers.py), values and gradients, at an arbitrary field.

They draw their times: these are read from what the trained field is asked, and held to the grid that they are drawn from.
"""

from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

import flat
import papers
from eqx_shortcut import Batch
from papers import NULL, SIZE, N, Recorded, Rows, field_of, given, in_steps, parameters, same, weight

pytestmark = pytest.mark.usefixtures("x64")
LABEL = jnp.int32(NULL)
TARGET = 5
"""Seed of the parameters of a target that is another network."""


def batch_of(rows: Rows) -> Batch:
    return Batch(rows.data, rows.cond, rows.noise)


FLOOR = 0.1


def drawn(loss, key, rows: Rows, steps: int) -> Rows:
    """The rows with the times, step sizes and labels that the loss asks the trained field about; times are on the grid."""
    field = Recorded(field_of(parameters(0)))
    loss(field, batch_of(rows), key)
    _, t, d, cond = field.first(N)
    np.testing.assert_allclose(t * steps, np.round(t * steps), atol=1e-12)
    assert len(set(np.asarray(t))) > 1 and np.all(t >= 0) and np.all(t < 1)
    assert np.all((cond == rows.cond) | (cond == NULL))
    return rows._replace(t=t, d=d, cond=cond)


@pytest.mark.parametrize("dropout", [0.0, 1.0])
@pytest.mark.parametrize("name", ["flow_matching", "diffusion"])
def test_flow_matching_and_diffusion(key, name, dropout):
    """Told the finest step at every time; no label is left where all drop."""
    floor: dict[str, Any] = {"floor": FLOOR} if name == "flow_matching" else {}

    def run(field, batch, key, **options):
        return getattr(flat, name)(field, batch, key, steps=8, null=LABEL, dropout=dropout, weight=weight, **floor, **options)

    rows = drawn(run, key, given(4), 8)
    np.testing.assert_array_equal(rows.d, np.full(N, 1 / 8))
    np.testing.assert_array_equal(rows.cond, np.full(N, NULL) if dropout else given(4).cond)
    formula = {
        "flow_matching": lambda p: papers.flow_matching(field_of(p), rows, FLOOR),
        "diffusion": lambda p: papers.diffusion(field_of(p), rows),
    }[name]
    same(
        lambda p, **options: run(field_of(p), batch_of(given(4)), key, **options),
        lambda p: weight(rows.t, rows.d) * formula(p),
        parameters(0),
    )


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("guidance", ["free", "finest", "all"])
def test_shortcut(key, guidance, clip):
    """Every third row a step of two halves, of which the finest alone are guided, or all; conditions drop elsewhere."""
    target, scale = field_of(parameters(TARGET)), 1.0 if guidance == "free" else 2.5

    def run(field, batch, key, **options):
        options |= {"steps": 8, "bootstrap_every": 3, "null": LABEL, "dropout": 1.0, "clip": clip, "floor": FLOOR}
        options |= {"guidance": scale, "guide_all": guidance == "all", "weight": weight}
        return flat.shortcut(field, batch, key, target=target, **options)

    rows = drawn(run, key, given(3), 8)
    steps = np.arange(N) % 3 == 0
    assert sorted(np.asarray(rows.d[steps]), reverse=True) == [1, 1, 1 / 2, 1 / 4]
    np.testing.assert_array_equal(rows.t[steps] / rows.d[steps], np.round(rows.t[steps] / rows.d[steps]))
    np.testing.assert_array_equal(rows.d[~steps], np.full(N - 4, 1 / 8))
    np.testing.assert_array_equal(rows.cond, np.where(steps, given(3).cond, NULL))
    guided = {"free": rows.d < 0, "finest": rows.d == 1 / 4, "all": rows.d > 0}[guidance]

    def formula(p):
        error = papers.shortcut(field_of(p), target, rows, floor=FLOOR, clip=clip, scale=scale, guided=guided)
        return weight(rows.t, rows.d) * in_steps(rows, 3, error, papers.flow_matching(field_of(p), rows, FLOOR))

    same(lambda p, **options: run(field_of(p), batch_of(given(3)), key, **options), formula, parameters(0))


def test_shortcut_biased_to_large_steps(key):
    """Of 12 step rows and 3 sizes: 2 of the finest in their half, then a quarter for each of the two largest and the rest."""
    sizes = {}
    for bias in (False, True):
        field = Recorded(field_of(parameters(0)))
        many = Batch(jnp.zeros((24, SIZE)), jnp.zeros(24, int))
        options: dict[str, Any] = {"steps": 8, "bootstrap_every": 2, "dt_bias": bias, "clip": None}
        flat.shortcut(field, many, key, target=field_of(parameters(TARGET)), **options)
        sizes[bias] = [int(np.sum(np.asarray(field.asked[0][2])[::2] == d)) for d in (1 / 4, 1 / 2, 1)]
    assert sizes == {False: [4, 4, 4], True: [2, 3, 7]}


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_progressive_distillation(key, scale, clip):
    teacher = field_of(parameters(TARGET))

    def run(field, batch, key, **options):
        options |= {"level": 2, "guidance": scale, "null": LABEL, "clip": clip, "floor": FLOOR, "weight": weight}
        return flat.progressive_distillation(field, batch, key, teacher=teacher, **options)

    rows = drawn(run, key, given(3), 4)
    np.testing.assert_array_equal(rows.d, np.full(N, 1 / 4))
    np.testing.assert_array_equal(rows.cond, given(3).cond)

    def formula(p):
        error = papers.progressive(field_of(p), teacher, rows, floor=FLOOR, clip=clip, scale=scale)
        return weight(rows.t, rows.d) * error

    same(lambda p, **options: run(field_of(p), batch_of(given(3)), key, **options), formula, parameters(0))


@pytest.mark.parametrize("clip", [None, 0.7])
@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_consistency_distillation(key, scale, clip):
    target, teacher = field_of(parameters(TARGET)), field_of(parameters(TARGET + 1))

    def run(field, batch, key, **options):
        options |= {"steps": 4, "guidance": scale, "null": LABEL, "clip": clip, "floor": FLOOR, "weight": weight}
        return flat.consistency_distillation(field, batch, key, target=target, teacher=teacher, **options)

    rows = drawn(run, key, given(3), 4)
    np.testing.assert_allclose(rows.d, 1 - rows.t, rtol=1e-12)
    assert 3 / 4 in rows.t

    def formula(p):
        shared: dict[str, Any] = {"gap": 1 / 4, "floor": FLOOR, "clip": clip, "scale": scale}
        return weight(rows.t, rows.d) * papers.consistency(field_of(p), target, rows, teacher=teacher, **shared)

    same(lambda p, **options: run(field_of(p), batch_of(given(3)), key, **options), formula, parameters(0))


def test_consistency_training(key):
    target = field_of(parameters(TARGET))

    def run(field, batch, key, **options):
        return flat.consistency_training(field, batch, key, target=target, level=2, floor=FLOOR, weight=weight, **options)

    rows = drawn(run, key, given(3), 4)
    np.testing.assert_allclose(rows.d, 1 - rows.t, rtol=1e-12)
    assert 3 / 4 in rows.t

    def formula(p):
        return weight(rows.t, rows.d) * papers.consistency(field_of(p), target, rows, gap=1 / 4, floor=FLOOR)

    same(lambda p, **options: run(field_of(p), batch_of(given(3)), key, **options), formula, parameters(0))


@pytest.mark.parametrize("scale", [1.0, 2.5])
def test_live_reflow(key, scale):
    target = field_of(parameters(TARGET))

    def run(field, batch, key, **options):
        options |= {"steps": 8, "bootstrap_every": 3, "rollout": 3, "guidance": scale, "floor": FLOOR, "weight": weight}
        return flat.live_reflow(field, batch, key, target=target, null=LABEL, dropout=1.0, **options)

    rows = drawn(run, key, given(3), 8)
    steps = np.arange(N) % 3 == 0
    np.testing.assert_array_equal(rows.d, np.where(steps, 1, 1 / 8))
    np.testing.assert_array_equal(rows.cond, np.where(steps, given(3).cond, NULL))

    def formula(p):
        error = papers.live_reflow(field_of(p), target, rows, floor=FLOOR, steps=8, rollout=3, scale=scale)
        return weight(rows.t, rows.d) * in_steps(rows, 3, error, papers.flow_matching(field_of(p), rows, FLOOR))

    same(lambda p, **options: run(field_of(p), batch_of(given(3)), key, **options), formula, parameters(0))
