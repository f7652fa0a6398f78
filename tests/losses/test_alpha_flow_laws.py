"""Alpha-Flow, SplitMeanFlow and SoFlow: exact where both steps are, else biased by O(alpha), and MeanFlow in the limit."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
from eqx_shortcut import losses, times, weights
from eqx_shortcut.rows import expand
from eqx_shortcut.types import Regression
from exact import CASES, M, S, case, case_at, case_points, distances, gaussian_batch, gaussian_field, gaussian_lines, mean_of

pytestmark = pytest.mark.usefixtures("x64")


def target(field, draws, alpha, *, asked=None, **options):
    """What alpha-Flow says `asked`, by default the exact field, should answer."""
    asked = field if asked is None else asked
    return losses.alpha_flow_target(asked, losses.velocity_target(field, draws), alpha, **options).u


# Both steps of the field: exact row by row


@pytest.mark.parametrize("name", CASES)
def test_a_split_of_both_own_steps_is_exact_at_any_share(name):
    def build(at):
        shares = jnp.resize(jnp.array([0.5, 0.1, 0.9, 0.37, 1.0, 0.0]), at.draws.t.shape)
        return target(at.field, at.draws, shares, own_first=True)

    assert distances(name, build)[1] < (1e-6 if name == "mixture" else 1e-12)


def wrong_split(*, time: float = 1.0, step: float = 1.0, moved: float = 1.0, swapped: bool = False, of: float = 1.0):
    """A step of a share and one of the rest with one of their constants changed."""

    def split_steps(field, x, t, d, cond, share, *, first=None, clip):
        share = jnp.broadcast_to(jnp.asarray(share), t.shape)
        first = field(x, t, share * d, cond) if first is None else first
        middle = x + expand(moved * share * d, x) * first
        second = field(middle, t + time * share * d, step * (1 - share) * d, cond)
        share = 1 - share if swapped else share
        return of * (expand(share, x) * first + expand(1 - share, x) * second)

    return split_steps


WRONG_SPLITS = {
    "second step at the start": {"time": 0.0},
    "second step later": {"time": 2.0},
    "second step backwards": {"step": -1.0},
    "second step over the whole": {"step": 2.0},
    "first step backwards": {"moved": -1.0},
    "first step not taken": {"moved": 0.0},
    "shares swapped": {"swapped": True},
    "velocity of the other sign": {"of": -1.0},
}
SPLIT_STEPS = "eqx_shortcut.losses._alpha_flow.split_steps"


@pytest.mark.parametrize("own_first", [True, False])
@pytest.mark.parametrize("wrong", [{}, *WRONG_SPLITS.values()], ids=["none", *WRONG_SPLITS.keys()])
def test_a_planted_error_breaks_the_law_of_both(monkeypatch, wrong, own_first):
    """Of own steps at any share; of a first step along the line in the mean, in units of a small share."""
    monkeypatch.setattr(SPLIT_STEPS, wrong_split(**wrong))
    at, share = case("labels"), 0.3 if own_first else 1e-3
    error = float(at.in_the_mean(target(at.field, at.draws, share, own_first=own_first))) / share
    assert error > 5e-2 if wrong else error < 1e-2


# The first step along the line: O(alpha) in the mean


@pytest.mark.parametrize("name", ["dict", "mixture"])
def test_the_bias_of_alpha_flow_is_of_first_order_in_alpha(name):
    """In units of alpha, as the loss weighs it, from where SoFlow ends; of the mixture, whose map is steep at a divide."""

    @jax.jit
    def bias(alpha):
        at = case_at(name, case_points(name), to_data=False)
        return at.in_the_mean(target(at.field, at.draws, alpha)) / alpha

    found = [float(bias(alpha)) for alpha in (0.002, 0.001, 0.0005)]
    assert found[0] > 1e-4
    np.testing.assert_allclose([found[0] / found[1], found[1] / found[2]], 2, rtol=0.1)


def test_alpha_one_is_flow_matching_of_the_trajectory():
    at = case("labels")
    np.testing.assert_allclose(target(at.field, at.draws, 1.0), at.draws.x - at.draws.noise, atol=1e-12)


def test_alpha_zero_is_the_target_of_mean_flow_traced_or_not():
    at = case("labels")
    exact = losses.mean_flow_target(at.field, losses.velocity_target(at.field, at.draws))[1].u
    np.testing.assert_array_equal(target(at.field, at.draws, 0.0), exact)
    traced = jax.jit(lambda alpha: target(at.field, at.draws, alpha))
    np.testing.assert_allclose(traced(jnp.array(0.0)), exact, atol=1e-12)
    np.testing.assert_allclose(traced(jnp.array(0.3)), target(at.field, at.draws, 0.3), atol=1e-12)


# Alpha-Flow's gradient tends to MeanFlow's


def bent(p):
    """No exact field."""
    exact = gaussian_field(M, S)
    return lambda x, t, d, cond: exact(x, t, d, None) + p[0] * jnp.sin(x) + p[1] * expand(d, x) + p[2] * expand(t, x)


P = np.array([0.3, -0.5, 0.2])


@pytest.mark.parametrize("power", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_the_gradient_tends_to_that_of_mean_flow(key, power):
    """On the same draws; halving alpha halves the difference. At 0 it is MeanFlow's."""
    batch = gaussian_batch(key, 32)
    exact = jax.jit(jax.grad(lambda p: flat.mean_flow(bent(p), batch, key, power=power)[0]))(P)

    @jax.jit
    def gradient(alpha):
        def loss(p):
            return flat.alpha_flow(bent(p), batch, key, target=bent(P), alpha=alpha, power=power)[0]

        return jax.grad(loss)(jnp.asarray(P))

    away = [float(jnp.abs(gradient(alpha) - exact).max()) for alpha in (0.02, 0.01, 0.005)]
    assert 1e-5 < away[0] < 0.1 * float(jnp.abs(exact).max())
    np.testing.assert_allclose([away[0] / away[1], away[1] / away[2]], 2, rtol=0.1)
    np.testing.assert_allclose(gradient(0.0), exact, rtol=1e-9)


def test_weights_are_those_of_the_documentation():
    """`alpha/(error + alpha^2 eps)`, and `alpha/(error + c)` with `eps = c/alpha^2`; the error is a sum over elements."""
    error, alpha = jnp.array([0.01, 0.3, 2.0]), 0.2
    rows = Regression(jnp.zeros((3, 5)), jnp.zeros(3), jnp.zeros(3), None, jnp.zeros((3, 5)))

    def weighed(**options):
        return weights.Adaptive(unit=alpha, **options)(error / 5, rows)

    np.testing.assert_allclose(weighed(power=0.0), error / 5 / alpha, rtol=1e-9)
    np.testing.assert_allclose(weighed(power=1.0, eps=0.01), error * alpha / (error + alpha**2 * 0.01), rtol=1e-9)
    np.testing.assert_allclose(weighed(power=1.0, eps=0.5 / alpha**2), error * alpha / (error + 0.5), rtol=1e-9)


@pytest.mark.parametrize("clip", [None, 4.0])
def test_velocities_of_any_size_are_learnt_and_a_limit_that_cuts_them_biases_by_their_cut_over_alpha(clip):
    """Of data at 6; by default there is no limit."""
    x, t, d, alpha = jnp.array([[0.5], [3.0]]), jnp.array([0.1, 0.5]), jnp.array([0.9, 0.3]), 0.002
    field, (draws, shares) = gaussian_field(6.0, S), gaussian_lines(x, t, d, 6.0, S)
    found = target(field, draws, alpha, **({} if clip is None else {"clip": clip}))
    bias = float(jnp.abs(mean_of(found, shares) - field(x, t, d, None)).max()) / alpha
    assert bias < 0.1 if clip is None else bias > 100


def test_so_flow_weighs_by_the_mean_of_the_error_and_steps_by_half(key):
    batch, asked = gaussian_batch(key, 32), bent(P)

    def run(**options):
        return flat.so_flow(asked, batch, key, target=asked, alpha=0.1, reduction=None, **options)[0]

    at = partial(times.logit_normal, mean=0.2)
    draws = losses.Intervals(times.logit_normal_ends, 4, at).draw(batch, key)
    unit = jnp.where(jnp.arange(32) % 4 == 0, 0.1, 1.0) * jnp.where(draws.d > 0, 0.5, 1.0)
    error = run(power=0.0) * jnp.where(jnp.arange(32) % 4 == 0, 1 / 0.1, 1.0) / jnp.where(draws.d > 0, 0.5, 1.0)
    expected = unit * error / (error + 0.3)
    np.testing.assert_allclose(run(eps=0.3), expected, rtol=1e-9)
    np.testing.assert_allclose(run(eps=0.3, weight=lambda t, d: 1 + t), expected * (1 + draws.t), rtol=1e-9)


def test_the_target_is_clipped_in_units_of_x():
    at = case("labels")
    lines = losses.velocity_target(at.field, at.draws)
    found = losses.alpha_flow_target(at.field, lines, 0.5, clip=0.3).u
    np.testing.assert_allclose(found, np.clip(target(at.field, at.draws, 0.5), -0.3, 0.3), atol=1e-12)
