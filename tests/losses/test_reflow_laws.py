"""Reflow on stored pairs and live reflow: straight lines from noise to where the flow leads are their fixed point."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import losses, paths
from eqx_shortcut.rows import expand
from eqx_shortcut.types import Batch
from exact import MEAN, SPREAD, M, S, gaussian_batch, gaussian_field, gaussian_velocity, mean_gradient, quadrature

pytestmark = pytest.mark.usefixtures("x64")
EXACT, VELOCITY = gaussian_field(MEAN, SPREAD), gaussian_velocity(MEAN, SPREAD)
STEPS = 32


def straight(x, t, d, cond):
    """Velocity of the lines from `z` to `MEAN + SPREAD z`, whose points are `t MEAN + (1 - t + t SPREAD) z`."""
    t = expand(t, x)
    return MEAN + (SPREAD - 1) * (x - t * MEAN) / (1 - t + t * SPREAD)


def reflow_residual(target, key, *, rollout: int, field=straight, **options) -> float:
    """Largest `|target - field|` over the reflow rows of a batch, which the field is asked at `d = 1` and `t >= 0`."""
    draws, _ = losses.live_reflow_draws(gaussian_batch(key, 32), key, steps=STEPS, bootstrap_every=2)
    assert np.unique(draws.t).size > 5
    found = losses.live_reflow_target(target, draws, steps=STEPS, rollout=rollout, floor=0, **options)
    np.testing.assert_array_equal(found.d, np.ones(16))
    return float(jnp.abs(found.u - field(found.x, found.t, found.d, None)).max())


def test_straight_lines_to_the_end_of_the_flow_are_the_fixed_point_of_an_exact_rollout(key):
    """The exact average velocity at `d = 1/STEPS` in so many steps."""
    assert reflow_residual(EXACT, key, rollout=STEPS) < 1e-12


@pytest.mark.parametrize("rollout", [1, 8])
def test_straight_lines_reproduce_themselves_in_any_rollout(key, rollout):
    assert reflow_residual(straight, key, rollout=rollout) < 1e-12


def test_the_error_of_the_fixed_point_is_of_first_order_in_the_rollout(key):
    errors = [reflow_residual(VELOCITY, key, rollout=n) for n in (32, 64, 128)]
    assert errors[0] > 1e-3
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 2, rtol=0.1)


def test_the_whole_reflow_loss_vanishes_on_reflow_rows(key):
    def field(x, t, d, cond):
        return jnp.where(expand(d, x) == 1, straight(x, t, d, cond), VELOCITY(x, t, d, cond))

    options: dict[str, Any] = {"steps": STEPS, "rollout": STEPS, "bootstrap_every": 2, "floor": 0}
    _, metrics = losses.live_reflow(field, gaussian_batch(key, 32), key, target=EXACT, **options)
    assert float(metrics["loss_bootstrap"]) < 1e-24 and float(metrics["loss_flow"]) > 0.1


def test_flow_rows_have_no_mean_gradient_at_the_velocity(key):
    """Of the builder that they share with flow matching, at times of the grid."""
    draws, weight = quadrature(np.arange(STEPS) / STEPS, 1 / STEPS)
    field = gaussian_velocity(M, S)
    np.testing.assert_allclose(mean_gradient(field, losses.flow_target(draws, floor=0), weight), 0, atol=1e-12)
    batch = Batch(jnp.tile(draws.x[:1], (32, 1)))
    _, rest = losses.live_reflow_draws(batch, key, steps=STEPS, bootstrap_every=2)
    np.testing.assert_array_equal(rest.d, np.full(16, 1 / STEPS))
    np.testing.assert_array_equal(rest.t * STEPS, np.round(rest.t * STEPS))


def wrong_euler(*, sign: float = 1.0, short: int = 0, late: float = 0.0):
    """The rollout with one of its constants changed."""

    def euler(field, noise, cond, *, steps):
        x, d = noise, jnp.full(noise.shape[:1], 1 / steps)
        for i in range(steps - short):
            x = x + sign / steps * field(x, (i + late) * d, d, cond)
        return x

    return euler


def wrong_linear(noise, x, t, *, floor):
    return linear(noise, x, 1 - t, floor=floor)


linear = paths.linear
WRONG = {
    "velocity of the other sign": {"sign": -1.0},
    "a step too few": {"short": 1},
    "asked at the end of each step": {"late": 1.0},
}


def test_the_rollout_rewritten_keeps_the_law(key, monkeypatch):
    monkeypatch.setattr("eqx_shortcut.samplers.euler", wrong_euler())
    assert reflow_residual(EXACT, key, rollout=STEPS) < 1e-12


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_a_planted_error_breaks_the_reflow_law(key, monkeypatch, wrong):
    monkeypatch.setattr("eqx_shortcut.samplers.euler", wrong_euler(**wrong))
    assert reflow_residual(EXACT, key, rollout=STEPS) > 1e-2


def test_a_line_run_backwards_breaks_both_reflow_laws(key, monkeypatch):
    monkeypatch.setattr(paths, "linear", wrong_linear)
    assert reflow_residual(EXACT, key, rollout=STEPS) > 1e-2
    assert float(pair_errors(straight, key).max()) > 1e-2


# Reflow: flow matching on pairs of noise and the data it leads to


def pair_errors(field, key) -> jax.Array:
    """Error of each row of flow matching on pairs from noise to `MEAN + SPREAD noise`."""
    noise = jax.random.normal(key, (64, 3), dtype=float)
    batch = Batch(jnp.asarray(MEAN) + jnp.asarray(SPREAD) * noise, noise=noise)
    return losses.flow_matching(field, batch, key, steps=STEPS, floor=0, reduction=None)[0]


def test_straight_lines_have_no_error_on_pairs_in_any_row(key):
    assert float(pair_errors(straight, key).max()) < 1e-24


def test_the_curved_flow_that_made_the_pairs_has_an_error(key):
    assert float(jnp.median(pair_errors(EXACT, key))) > 1e-3
