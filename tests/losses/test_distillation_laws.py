"""Progressive distillation, consistency distillation and consistency training at the exact field."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import losses, paths
from eqx_shortcut.rows import expand
from eqx_shortcut.types import Batch, Draws, Regression
from exact import (
    MEAN,
    SPREAD,
    WRONG_TWO_STEPS,
    M,
    S,
    gaussian_batch,
    gaussian_field,
    gaussian_velocity,
    mean_gradient,
    mixture_batch,
    mixture_field,
    mixture_velocity,
    quadrature,
    wrong_two_steps,
)

pytestmark = pytest.mark.usefixtures("x64")
EXACT, VELOCITY = gaussian_field(MEAN, SPREAD), gaussian_velocity(MEAN, SPREAD)
DATA = {"gaussian": (EXACT, gaussian_batch), "mixture": (mixture_field, mixture_batch)}
BOUND = {"gaussian": 1e-12, "mixture": 1e-8}


def residual(field, target: Regression) -> jax.Array:
    """Largest `|target - field|` of each row."""
    return jnp.abs(target.u - field(target.x, target.t, target.d, target.cond)).max(axis=1)


# Progressive distillation: two exact steps of the teacher are one exact step of the student


def progressive_residual(data: str, key) -> float:
    """At every level from 6 to 0."""
    field, make = DATA[data]
    parts = [losses.level_draws(make(k, 4), k, level=level) for level, k in enumerate(jax.random.split(key, 7))]
    draws = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
    assert np.unique(draws.d).size == 7
    return float(residual(field, losses.progressive_target(field, draws, clip=None, floor=0)).max())


@pytest.mark.parametrize("data", DATA)
def test_progressive_targets_are_exact_at_every_level(key, data):
    assert progressive_residual(data, key) < BOUND[data]


@pytest.mark.parametrize("wrong", WRONG_TWO_STEPS.values(), ids=WRONG_TWO_STEPS.keys())
def test_a_planted_error_breaks_the_progressive_law(key, monkeypatch, wrong):
    monkeypatch.setattr("eqx_shortcut.losses._shortcut.two_steps", wrong_two_steps())
    assert progressive_residual("gaussian", key) < 1e-12
    monkeypatch.setattr("eqx_shortcut.losses._shortcut.two_steps", wrong_two_steps(**wrong))
    assert progressive_residual("gaussian", key) > 1e-2


def test_the_student_learns_from_its_teacher_alone(key):
    draws = losses.level_draws(gaussian_batch(key), key, level=2)
    other = gaussian_field(MEAN, 1.5 * SPREAD)
    target = losses.progressive_target(other, draws, clip=None, floor=0)
    assert float(residual(other, target).max()) < 1e-12 and float(residual(EXACT, target).min()) > 1e-3


# Consistency distillation: exact with an exact step of the teacher, of second order in the gap with its velocity


def draws_at(batch: Batch, key, t: float) -> Draws:
    n = batch.x.shape[0]
    noise = jax.random.normal(key, batch.x.shape, dtype=float)
    return Draws(batch.x, noise, jnp.full((n,), t), jnp.full((n,), 1 - t))


def distillation_error(field, teacher, draws: Draws, gap: float) -> float:
    target = losses.consistency_distillation_target(field, teacher, draws, gap=gap, clip=None, floor=0)
    np.testing.assert_array_equal(target.d, 1 - target.t)
    return float(residual(field, target).max())


@pytest.mark.parametrize("data", DATA)
def test_distillation_targets_are_exact_with_an_exact_teacher(key, data):
    """The last cell, at whose end nothing is left to go, included."""
    field, make = DATA[data]
    draws = losses.consistency_draws(make(key), key, level=3)
    assert set(np.unique(draws.t)) >= {0, 7 / 8}
    assert distillation_error(field, field, draws, 1 / 8) < BOUND[data]


def ratios(errors: list[float]) -> np.ndarray:
    return np.array(errors[:-1]) / np.array(errors[1:])


def mixture_teacher(x, t, d, cond):
    return jnp.asarray(mixture_velocity(np.asarray(x), np.asarray(t)[:, None]))


@pytest.mark.parametrize("data", DATA)
@pytest.mark.parametrize("t", [0.0, 0.5])
def test_distillation_with_the_velocity_is_of_second_order_in_the_gap(key, data, t):
    (field, make), teacher = DATA[data], {"gaussian": VELOCITY, "mixture": mixture_teacher}[data]
    draws = draws_at(make(key, 8), key, t)
    errors = [distillation_error(field, teacher, draws, 1 / n) for n in (32, 64, 128)]
    assert errors[0] > 1e-4
    np.testing.assert_allclose(ratios(errors), 4, rtol=0.15)


def test_distillation_in_the_last_cell_is_of_first_order(key):
    batch = gaussian_batch(key, 8)
    errors = [distillation_error(EXACT, VELOCITY, draws_at(batch, key, 1 - 1 / n), 1 / n) for n in (32, 64, 128)]
    np.testing.assert_allclose(ratios(errors), 2, rtol=0.1)


def test_the_whole_distillation_loss_vanishes_with_an_exact_teacher(key):
    options: dict[str, Any] = {"target": EXACT, "teacher": EXACT, "steps": 16, "clip": None, "floor": 0}
    loss, _ = losses.consistency_distillation(EXACT, gaussian_batch(key), key, **options)
    assert float(loss) < 1e-24
    for changed in ("target", "teacher"):
        wrong: dict[str, Any] = options | {changed: gaussian_field(MEAN, 1.5 * SPREAD)}
        assert float(losses.consistency_distillation(EXACT, gaussian_batch(key), key, **wrong)[0]) > 1e-3


def wrong_towards(*, time: float = 1.0, left: float = 1.0, asked: float = 1.0, start: float = 1.0, whole: float = 1.0):
    """The target from a point a gap later, with one of its constants changed."""

    def towards(target, later, x, draws, gap):
        t = draws.t + time * gap
        rest = 1 - draws.t - left * gap
        answer = target(later, t, jnp.maximum(1 - draws.t - asked * gap, gap), draws.cond)
        data = later + expand(rest, x) * answer
        return Regression(x, draws.t, draws.d, draws.cond, (data - start * x) / expand(1 - whole * draws.t, x))

    return towards


def wrong_step(sign: float):
    return lambda field, x, t, d, cond: x + sign * expand(d, x) * field(x, t, d, cond)


TOWARDS = "eqx_shortcut.losses._consistency._towards"
WRONG_TOWARDS = {
    "asked at the time before": {"time": 0.0},
    "asked two gaps later": {"time": 2.0},
    "asked at the step before": {"asked": 0.0},
    "goes the way of the point before": {"left": 0.0},
    "goes too short": {"left": 2.0},
    "point added": {"start": -1.0},
    "not divided by the way": {"whole": 0.0},
}


def test_the_consistency_target_rewritten_keeps_the_laws(key, monkeypatch):
    monkeypatch.setattr(TOWARDS, wrong_towards())
    monkeypatch.setattr("eqx_shortcut.losses._consistency.step", wrong_step(1.0))
    draws = losses.consistency_draws(gaussian_batch(key), key, level=3)
    assert distillation_error(EXACT, EXACT, draws, 1 / 8) < 1e-12
    assert np.abs(training_bias(0.25, 1 / 256)).max() < 2e-5


@pytest.mark.parametrize("wrong", WRONG_TOWARDS.values(), ids=WRONG_TOWARDS.keys())
def test_a_planted_error_breaks_both_consistency_laws(key, monkeypatch, wrong):
    monkeypatch.setattr(TOWARDS, wrong_towards(**wrong))
    draws = losses.consistency_draws(gaussian_batch(key), key, level=3)
    assert distillation_error(EXACT, EXACT, draws, 1 / 8) > 1e-2
    assert np.abs(training_bias(0.25, 1 / 256)).max() > 2e-3


def test_a_teacher_stepped_backwards_breaks_the_distillation_law(key, monkeypatch):
    monkeypatch.setattr("eqx_shortcut.losses._consistency.step", wrong_step(-1.0))
    draws = losses.consistency_draws(gaussian_batch(key), key, level=3)
    assert distillation_error(EXACT, EXACT, draws, 1 / 8) > 1e-2


# Consistency training: no mean gradient up to the square of the gap


def training_bias(t: float, gap: float) -> np.ndarray:
    """Mean gradient at the exact field, exact over noise and data."""
    draws, weight = quadrature(np.array([t]), 1 - t)
    field = gaussian_field(M, S)
    return mean_gradient(field, losses.consistency_training_target(field, draws, gap=gap, floor=0), weight)


@pytest.mark.parametrize("t", [0.0, 0.25, 0.5, 0.75])
def test_the_bias_of_consistency_training_is_of_second_order_in_the_gap(t):
    bias = [np.abs(training_bias(t, 1 / n)).max() for n in (32, 64, 128)]
    assert bias[0] > 1e-5
    np.testing.assert_allclose(ratios(bias), 4, rtol=0.2)
    assert abs(ratios(bias)[1] - 4) < abs(ratios(bias)[0] - 4)


def test_the_bias_of_consistency_training_in_the_last_cell_is_of_first_order():
    bias = [np.abs(training_bias(1 - 1 / n, 1 / n)).max() for n in (32, 64, 128)]
    assert bias[0] > 1e-3
    np.testing.assert_allclose(ratios(bias), 2, rtol=0.1)


def test_consistency_training_is_distillation_from_the_velocity_in_the_mean():
    """Of a Gaussian, whose map is linear, with no error at any gap (Song et al. 2023, theorem 2, in the limit)."""
    draws, weight = quadrature(np.array([0.25]), 0.75)
    field, velocity = gaussian_field(M, S), gaussian_velocity(M, S)
    distilled = losses.consistency_distillation_target(field, velocity, draws, gap=1 / 4, clip=None, floor=0)
    found = mean_gradient(field, distilled, weight)
    np.testing.assert_allclose(training_bias(0.25, 1 / 4), found, atol=1e-12)
    assert np.abs(found).max() > 1e-3


linear = paths.linear
WRONG_LINES = {
    "ends swapped": lambda noise, x, t, *, floor: linear(x, noise, t, floor=floor),
    "gap of the wrong sign": lambda noise, x, t, *, floor: linear(noise, x, jnp.where(t == 0.25, t, 0.5 - t), floor=floor),
    "other data later": lambda noise, x, t, *, floor: linear(noise, jnp.where(t[0] == 0.25, x, x[::-1]), t, floor=floor),
}


@pytest.mark.parametrize("wrong", WRONG_LINES.values(), ids=WRONG_LINES.keys())
def test_a_planted_error_on_the_line_breaks_the_training_law(monkeypatch, wrong):
    """With a gap of 1/256 from t = 1/4, at which the right line is unbiased to 2e-5."""
    assert np.abs(training_bias(0.25, 1 / 256)).max() < 2e-5
    monkeypatch.setattr(paths, "linear", wrong)
    assert np.abs(training_bias(0.25, 1 / 256)).max() > 2e-3
