"""MeanFlow and its improvement: in the mean over the lines through a point, the target is the exact field."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
from eqx_shortcut import losses, tangents, times, weights
from eqx_shortcut.rows import expand
from eqx_shortcut.types import Draws, Regression
from exact import (
    CASES,
    TIMES,
    WRONG_TANGENTS,
    M,
    S,
    case,
    distances,
    gaussian_field,
    gaussian_lines,
    mean_of,
    monte_carlo,
    wrong_place,
)

pytestmark = pytest.mark.usefixtures("x64")
METHODS = ["mean_flow", "improved_mean_flow"]


def target(method: str, field, draws, *, jvp=jax.jvp, asked=None):
    """What the method says `asked`, by default the exact field, should answer."""
    asked = field if asked is None else asked
    along = asked if method == "improved_mean_flow" else None
    return losses.mean_flow_target(asked, losses.velocity_target(field, draws), along=along, jvp=jvp)[1].u


@pytest.mark.parametrize(
    ("method", "name"),
    [*(("mean_flow", name) for name in CASES), ("improved_mean_flow", "dict"), ("improved_mean_flow", "mixture")],
)
def test_the_target_is_exact_in_the_mean(method, name):
    in_the_mean, line_by_line = distances(name, lambda at: target(method, at.field, at.draws))
    assert in_the_mean < (1e-6 if name == "mixture" else 1e-12)
    assert line_by_line > 0.1


@pytest.mark.parametrize("wrong", WRONG_TANGENTS.values(), ids=WRONG_TANGENTS.keys())
@pytest.mark.parametrize("method", METHODS)
def test_a_planted_error_of_the_tangent_breaks_the_law(method, wrong):
    at = case("labels")
    assert at.in_the_mean(target(method, at.field, at.draws, jvp=wrong)) > 1e-2


WRONG_PLACES = {"asked at the end": {"time": 1.0}, "asked for twice the step": {"step": 2.0}}


@pytest.mark.parametrize("wrong", WRONG_PLACES.values(), ids=WRONG_PLACES.keys())
@pytest.mark.parametrize("method", METHODS)
def test_a_planted_error_of_time_breaks_the_law(method, wrong):
    at = case("labels")
    assert at.in_the_mean(target(method, at.field, at.draws, asked=wrong_place(at.field, **wrong))) > 1e-2


def test_the_time_of_the_papers_breaks_the_law():
    """Their velocity is from data to noise, and their time runs from the data."""
    at = case("labels")
    lines = losses.velocity_target(at.field, at.draws)
    backwards = Regression(lines.x, lines.t, lines.d, lines.cond, -lines.u)
    assert at.in_the_mean(losses.mean_flow_target(at.field, backwards)[1].u) > 1e-2
    draws = Draws(at.draws.noise, at.draws.x, 1 - at.draws.t, at.draws.d, at.draws.cond)
    np.testing.assert_allclose(losses.velocity_target(at.field, draws).x, lines.x, atol=1e-12)
    assert at.in_the_mean(losses.mean_flow_target(at.field, losses.velocity_target(at.field, draws))[1].u) > 1e-2


# Finite differences for the tangent


@pytest.mark.parametrize("method", METHODS)
def test_finite_differences_tend_to_the_tangent_at_second_order(method):
    at = case("labels")
    exact = target(method, at.field, at.draws)
    found = [target(method, at.field, at.draws, jvp=tangents.finite_difference(h)) for h in (0.04, 0.02, 0.01)]
    errors = [float(jnp.abs(u - exact).max()) for u in found]
    assert errors[0] > 1e-4
    np.testing.assert_allclose([errors[0] / errors[1], errors[1] / errors[2]], 4, rtol=0.1)


# The whole losses

WHOLE = {
    "mean_flow": flat.mean_flow,
    "improved_mean_flow": flat.improved_mean_flow,
    "esc": partial(flat.mean_flow, posterior_every=2, pairs=times.to_end(times.logit_normal_pairs, 0.5)),
}


@pytest.mark.parametrize(
    "name", ["esc", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mean_flow", "improved_mean_flow"))]
)
def test_the_mean_gradient_vanishes_at_the_exact_field_alone(key, name):
    gradient = monte_carlo(partial(WHOLE[name], power=0.0), batches=1024, rows=16)
    mean, error = gradient(key, S)
    assert np.all(error < 0.02)
    assert np.all(np.abs(mean) < 4.5 * error)
    mean, error = gradient(key, 1.3 * S)
    assert np.any(np.abs(mean) > 10 * error)


def test_an_adaptive_weight_biases_where_errors_are_not_symmetric():
    """Two values of probability 0.8 and 0.2: the exact mean is no stationary point once rows weigh by their error."""
    values, shares = jnp.array([[-0.25], [1.0]]), jnp.array([0.8, 0.2])

    def pull(power):
        def loss(p):
            error = losses.row_error(jnp.broadcast_to(p, values.shape), values)
            rows = Regression(values, jnp.zeros(2), jnp.zeros(2), None, values)
            return jnp.sum(shares * weights.Adaptive(power, 0.01)(error, rows))

        return float(jax.grad(loss)(0.0))

    assert abs(pull(0.0)) < 1e-12 < 0.1 < abs(pull(1.0))


# The batch's posterior mean in place of the line's velocity


def test_the_posterior_mean_of_a_batch_is_the_mean_of_its_lines(key):
    """Through any point: lines weighed by the density of the noise they need."""
    data = jax.random.normal(key, (5, 2), dtype=float)
    x, t = jnp.array([[0.3, -0.2]]), 0.4
    noise = (x - t * data) / (1 - t)
    density = np.exp(-0.5 * np.sum(np.square(noise), axis=1))
    velocity = np.sum(density[:, None] * (data - noise), axis=0) / density.sum()
    draws = jax.jit(losses.posterior_draws)(
        Draws(data, noise, jnp.full(5, t), jnp.zeros(5)), jnp.array([True, False, True, False, True])
    )
    np.testing.assert_allclose((draws.x - draws.noise)[::2], np.tile(velocity, (3, 1)), atol=1e-12)
    np.testing.assert_allclose((1 - t) * draws.noise + t * draws.x, np.tile(x, (5, 1)), atol=1e-12)
    np.testing.assert_array_equal(draws.x[1::2], data[1::2])


def test_the_posterior_mean_takes_data_of_the_same_condition(key):
    data = jnp.arange(6.0)[:, None]
    draws = Draws(data, jnp.zeros((6, 1)), jnp.zeros(6), jnp.zeros(6), {"label": jnp.array([0, 1, 0, 1, 2, 0])})
    found = jax.jit(losses.posterior_draws)(draws, jnp.ones(6, bool))
    np.testing.assert_allclose(found.x[:, 0], [7 / 3, 2, 7 / 3, 2, 4, 7 / 3], atol=1e-12)


# Where MeanFlow stands in the family


def bent(x, t, d, cond):
    """Exact at `d = 0` and wrong elsewhere."""
    return gaussian_field(M, S)(x, t, d, None) + 0.3 * expand(d, x) * jnp.sin(x)


def test_the_eulerian_residual_is_that_of_mean_flow_in_the_mean():
    """At any field whose velocity is exact: the line's velocity enters linearly."""
    t, d = jnp.asarray(TIMES), 1 - jnp.asarray(TIMES)
    x = jnp.linspace(-1, 2, 6)[:, None]
    draws, shares = gaussian_lines(x, t, d, M, S)
    own = losses.eulerian_error(bent, draws)[1].u
    np.testing.assert_allclose(mean_of(target("mean_flow", bent, draws), shares), mean_of(own, shares), atol=1e-12)
    assert float(jnp.abs(own - bent(draws.x, draws.t, draws.d, None)).max()) > 0.1
