"""What the targets of distillation, consistency, live reflow and diffusion draw and ask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
from eqx_shortcut import Batch, losses
from eqx_shortcut.guidance import Guidance
from plain import NULL, PARAMETERS, TEACHER, N, Recorded, batch_of, field_of

STEPS, LEVEL, EVERY, ROLLOUT = 8, 2, 4, 3
TARGET = {"a": jnp.float32(0.7), "b": jnp.float32(0.2)}


@pytest.mark.parametrize("level", [0, 1, 5])
def test_one_level_has_one_step_and_its_grid_of_times(key, level):
    draws = losses.level_draws(Batch(jnp.zeros((512, 1))), key, level=level)
    np.testing.assert_array_equal(draws.d, np.full(512, 0.5**level, np.float32))
    np.testing.assert_array_equal(np.unique(draws.t), np.arange(2**level) / 2**level)
    whole = losses.consistency_draws(Batch(jnp.zeros((512, 1))), key, level=level)
    np.testing.assert_array_equal(whole.t, draws.t)
    np.testing.assert_array_equal(whole.d, 1 - draws.t)


def test_progressive_targets_are_two_half_steps_of_the_teacher_and_not_clipped_at_the_end(key):
    draws = losses.level_draws(batch_of(key), key, level=LEVEL)
    teacher = Recorded(TEACHER)
    found = losses.progressive_target(teacher, draws, clip=0.5)
    (x1, t1, d1, _), (x2, t2, d2, _) = teacher.asked
    np.testing.assert_array_equal([d1, d2], np.full((2, N), 1 / 8))
    np.testing.assert_array_equal(t1, draws.t)
    np.testing.assert_array_equal(t2, draws.t + 1 / 8)
    first = field_of(TEACHER)(x1, t1, d1, draws.cond)
    np.testing.assert_allclose(x2, np.clip(x1 + first / 8, -0.5, 0.5), rtol=1e-6)
    second = field_of(TEACHER)(x2, t2, d2, draws.cond)
    np.testing.assert_allclose(found.u, (first + second) / 2, rtol=1e-6)
    assert float(jnp.abs(found.u).max()) > 0.5


def test_distillation_asks_the_teacher_one_step_and_the_target_the_rest(key):
    teacher, target = Recorded(TEACHER), Recorded(TARGET)
    draws = losses.consistency_draws(batch_of(key), key, level=3)
    found = losses.consistency_distillation_target(target, teacher, draws, gap=1 / STEPS, clip=0.5, floor=0)
    ((x, t, d, _),), ((later, after, rest, _),) = teacher.asked, target.asked
    np.testing.assert_array_equal(t, draws.t)
    np.testing.assert_array_equal(d, np.full(N, 1 / STEPS))
    np.testing.assert_allclose(later, np.clip(x + field_of(TEACHER)(x, t, d, draws.cond) / STEPS, -0.5, 0.5), rtol=1e-6)
    np.testing.assert_array_equal(after, draws.t + 1 / STEPS)
    np.testing.assert_array_equal(rest, np.maximum(1 - after, 1 / STEPS))
    left = np.asarray(1 - after)[:, None]
    data = later + left * field_of(TARGET)(later, after, rest, draws.cond)
    np.testing.assert_allclose(found.u, (data - x) / (1 - np.asarray(t)[:, None]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("level", [0, 2])
def test_training_asks_the_target_at_the_later_point_of_the_same_line(key, level):
    target, draws, gap = Recorded(), losses.consistency_draws(batch_of(key), key, level=level), 0.5**level
    losses.consistency_training_target(target, draws, gap=gap, floor=0)
    ((later, after, rest, cond),) = target.asked
    s = np.asarray(draws.t)[:, None] + gap
    np.testing.assert_allclose(later, (1 - s) * draws.noise + s * draws.x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after, draws.t + gap)
    np.testing.assert_array_equal(rest, np.maximum(1 - after, gap))
    np.testing.assert_array_equal(cond, draws.cond)
    assert float(rest.min()) > 0


def test_in_the_last_cell_the_target_network_does_not_count(key):
    draws = losses.consistency_draws(batch_of(key), key, level=0)
    found = losses.consistency_training_target(lambda x, t, d, cond: jnp.full_like(x, 1e30), draws, gap=1.0, floor=0)
    np.testing.assert_allclose(found.u, draws.x - draws.noise, rtol=1e-6)


def test_live_reflow_walks_the_network_at_its_finest_step(key):
    target = Recorded(TEACHER)
    first, rest = losses.live_reflow_draws(batch_of(key), key, steps=STEPS, bootstrap_every=EVERY, guidance=Guidance(NULL, 1.0))
    np.testing.assert_array_equal(first.cond, np.arange(0, N, EVERY))
    np.testing.assert_array_equal(rest.cond, np.full(N - N // EVERY, 99))
    with jax.disable_jit():
        found = losses.live_reflow_target(target, first, steps=STEPS, rollout=ROLLOUT, floor=0)
    assert len(target.asked) == ROLLOUT
    x = first.noise
    for i, (asked, t, d, _) in enumerate(target.asked):
        np.testing.assert_allclose(asked, x, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(t, np.full(N // EVERY, i / ROLLOUT), rtol=1e-6)
        np.testing.assert_array_equal(d, np.full(N // EVERY, 1 / STEPS))
        x = x + field_of(TEACHER)(x, t, d, first.cond) / ROLLOUT
    np.testing.assert_allclose(found.u, x - first.noise, rtol=1e-5, atol=1e-6)
    s = np.asarray(found.t)[:, None]
    np.testing.assert_allclose(found.x, (1 - s) * first.noise + s * x, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.d, np.ones(N // EVERY))


def test_live_reflow_does_not_look_at_the_data_of_its_reflow_rows(key):
    batch = batch_of(key)
    other = Batch(batch.x.at[::EVERY].set(50.0), batch.cond)
    options = {"target": field_of(TEACHER), "steps": STEPS, "bootstrap_every": EVERY, "reduction": None}
    values = [flat.live_reflow(field_of(PARAMETERS), b, key, **options)[0] for b in (batch, other)]
    np.testing.assert_array_equal(values[0], values[1])


def test_diffusion_regresses_the_noise_of_the_path(key):
    draws = losses.flow_draws(batch_of(key), key, steps=STEPS)
    found, left = losses.diffusion_target(draws), 1 - np.asarray(draws.t, np.float64)[:, None]
    a = np.exp(-0.25 * left**2 * 19.9 - 0.05 * left)
    np.testing.assert_allclose(found.x, a * draws.x + np.sqrt(1 - a**2) * draws.noise, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(found.u, draws.noise)
    np.testing.assert_array_equal(found.d, np.full(N, 1 / STEPS))
