"""Flow maps by self-distillation: each of the three residuals vanishes line by line at the exact field."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
from eqx_shortcut import losses, steps, tangents, times
from eqx_shortcut.rows import expand
from exact import (
    CASES,
    WRONG_TANGENTS,
    M,
    S,
    case,
    distances,
    gaussian_batch,
    gaussian_field,
    gaussian_velocity,
    mean_of,
    wrong_jvp,
    wrong_place,
)

pytestmark = pytest.mark.usefixtures("x64")
EXACT = gaussian_field(M, S)
ERRORS = {
    "lagrangian": lambda field, draws, **options: losses.lagrangian_error(field, field, draws, **options),
    "eulerian": losses.eulerian_error,
}


@pytest.mark.parametrize(
    ("method", "name"),
    [
        *(("lagrangian", name) for name in CASES),
        ("eulerian", "dict"),
        pytest.param("eulerian", "mixture", marks=pytest.mark.slow),
    ],
)
def test_the_residual_vanishes_line_by_line(method, name):
    """Not in the mean alone: neither sees the line, but at `d = 0`."""
    _, line_by_line = distances(name, lambda at: ERRORS[method](at.field, at.draws)[1].u)
    assert line_by_line < (1e-6 if name == "mixture" else 1e-12)


@pytest.mark.parametrize("stop_tangent", [True, False])
def test_the_error_is_that_of_what_it_says_u_should_be(stop_tangent):
    at = case("labels")
    field = lambda x, t, d, cond: at.field(x, t, d, cond) + 0.3 * expand(d, x) * x  # noqa: E731
    u = field(at.points(), at.draws.t, at.draws.d, at.draws.cond)
    for error, asked in (
        losses.lagrangian_error(field, at.field, at.draws),
        losses.eulerian_error(field, at.draws, stop_tangent=stop_tangent),
    ):
        np.testing.assert_allclose(error, jnp.mean(jnp.square(u - asked.u), axis=1), atol=1e-12)
        assert float(error.max()) > 1e-2


# Planted errors


@pytest.mark.parametrize("wrong", WRONG_TANGENTS.values(), ids=WRONG_TANGENTS.keys())
def test_a_planted_error_of_the_tangent_breaks_the_eulerian_law(wrong):
    at = case("labels")
    assert at.line_by_line(losses.eulerian_error(at.field, at.draws, jvp=wrong)[1].u) > 1e-2


@pytest.mark.parametrize("slope", [-1.0, 0.0, 2.0])
def test_a_planted_error_of_the_tangent_breaks_the_lagrangian_law(slope):
    at = case("labels")
    found = losses.lagrangian_error(at.field, at.field, at.draws, jvp=wrong_jvp(slope=slope))[1].u
    assert at.line_by_line(found) > 1e-2


def test_the_lines_velocity_in_the_eulerian_tangent_breaks_its_law(monkeypatch):
    """Line by line, and in the mean where the gradient passes through its part in x."""
    at = case("labels")

    def pull(**options):
        def loss(p):
            field = lambda x, t, d, cond: at.field(x, t, d, cond) + expand(d, x) * (p[0] + p[1] * jnp.sin(3 * x))  # noqa: E731
            return jnp.sum(jnp.mean(mean_of(losses.eulerian_error(field, at.draws, **options)[0], at.shares)))

        return float(jnp.abs(jax.grad(loss)(jnp.zeros(2))).max())

    assert pull(stop_space=False) < 1e-12
    line = at.draws.x - at.draws.noise
    monkeypatch.setattr("eqx_shortcut.losses._flow_map.velocity_of", lambda *asked: line)
    assert at.line_by_line(losses.eulerian_error(at.field, at.draws)[1].u) > 1e-2
    assert pull() < 1e-12 and pull(stop_tangent=True) < 1e-12
    assert pull(stop_space=False) > 1e-2


def wrong_end(*, time: float = 1.0, at: float = 0.0, moved: float = 1.0, sign: float = 1.0):
    """`velocity_of` at the end of a step, with one of its constants changed."""

    def of(draws, start):
        def velocity_of(field, there, t, cond):
            t = draws.t + time * draws.d
            return sign * steps.predict(field, start + moved * (there - start), t, at * draws.d, cond)

        return velocity_of

    return of


WRONG_ENDS = {
    "at the time of the start": {"time": 0.0},
    "at the point of the start": {"moved": 0.0},
    "a step backwards": {"moved": -1.0},
    "the average and not the velocity": {"at": 1.0},
    "velocity of the other sign": {"sign": -1.0},
}


@pytest.mark.parametrize("wrong", [{}, *WRONG_ENDS.values()], ids=["none", *WRONG_ENDS.keys()])
def test_a_planted_error_of_the_end_breaks_the_lagrangian_law(monkeypatch, wrong):
    at = case("labels")
    monkeypatch.setattr("eqx_shortcut.losses._flow_map.velocity_of", wrong_end(**wrong)(at.draws, at.points()))
    found = at.line_by_line(losses.lagrangian_error(at.field, at.field, at.draws)[1].u)
    assert found > 1e-2 if wrong else found < 1e-12


@pytest.mark.parametrize("wrong", [{"time": 1.0}, {"step": 2.0}], ids=["asked at the end", "asked for twice the step"])
@pytest.mark.parametrize("method", ERRORS)
def test_a_planted_error_of_time_breaks_the_law(method, wrong):
    at = case("labels")
    assert at.line_by_line(ERRORS[method](wrong_place(at.field, **wrong), at.draws)[1].u) > 1e-2


# Gradients


def test_the_gradient_passes_through_the_tangent_of_the_lagrangian_and_not_through_its_end():
    """By hand: for `field = p d`, `u + d du/dd = 2 p d`, and the end is `q (x + d u)` with `q` held fixed."""
    draws = case("scalars").draws
    held = lambda x, t, d, cond: 0.7 * x  # noqa: E731
    point = case("scalars").points()

    def loss(p):
        return jnp.mean(losses.lagrangian_error(lambda x, t, d, cond: p * d, held, draws)[0])

    residual = 2 * 0.4 * draws.d - 0.7 * (point + 0.4 * draws.d**2)
    np.testing.assert_allclose(jax.grad(loss)(0.4), jnp.mean(2 * residual * 2 * draws.d), rtol=1e-9)


def test_finite_differences_tend_to_the_tangent_at_second_order():
    at = case("labels")
    exact = losses.lagrangian_error(at.field, at.field, at.draws)[1].u
    found = [
        losses.lagrangian_error(at.field, at.field, at.draws, jvp=tangents.finite_difference(h))[1].u for h in (0.04, 0.02)
    ]
    errors = [float(jnp.abs(u - exact).max()) for u in found]
    assert errors[0] > 1e-5
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.1)


# The whole losses, and where they stand in the family

WHOLE = {
    "lagrangian": partial(flat.lagrangian, target=EXACT),
    "terminal_velocity": partial(flat.terminal_velocity, target=EXACT),
    "eulerian": flat.eulerian,
    "eulerian through its tangent": partial(flat.eulerian, stop_space=False),
    "eulerian through none": partial(flat.eulerian, stop_tangent=True),
    "split_mean_flow": partial(flat.split_mean_flow, target=EXACT),
    "progressive_map": partial(flat.progressive_map, target=EXACT),
    "progressive_map at any share": partial(flat.progressive_map, target=EXACT, share=None),
}


@pytest.mark.parametrize("name", ["lagrangian", *(pytest.param(name, marks=pytest.mark.slow) for name in list(WHOLE)[1:])])
def test_the_whole_loss_vanishes_on_bootstrap_rows_of_the_exact_field_alone(key, name):
    batch = gaussian_batch(key, 32)

    @jax.jit
    def found(bend):
        return WHOLE[name](lambda x, t, d, cond: EXACT(x, t, d, cond) + bend * expand(d, x) * jnp.sin(x), batch, key)[1]

    assert float(found(0.0)["loss_bootstrap"]) < 1e-24 and float(found(0.0)["loss_flow"]) > 0.1
    assert float(found(0.3)["loss_bootstrap"]) > 1e-4


def test_the_progressive_map_at_the_midpoint_is_the_target_of_shortcut():
    at = case("labels")
    draws = at.draws
    bent = lambda x, t, d, cond: jnp.sin(x) + expand(t - d, x)  # noqa: E731
    halves = losses.alpha_flow_target(bent, losses.velocity_target(bent, draws), 0.5, own_first=True)
    shortcut = losses.bootstrap_target(bent, draws, clip=None, floor=0)
    np.testing.assert_array_equal(halves.u, shortcut.u)
    np.testing.assert_array_equal(halves.x, shortcut.x)


def test_flow_rows_learn_the_velocity():
    """The regression at `d = 0`, whose minimum is the exact velocity."""
    at = case("scalars")
    lines = losses.velocity_target(at.field, at.draws)
    np.testing.assert_allclose(mean_of(lines.u, at.shares), gaussian_velocity(M, S)(at.x, at.t, at.d, None), atol=1e-12)


def test_the_gradient_of_eulerian_passes_through_time_alone_if_told_so(key):
    """Against a residual written out: `d` and `t` by finite differences of the field that is trained, `x` of a frozen one."""
    batch, p0 = gaussian_batch(key, 8), jnp.array([0.3, -0.5, 0.2])

    def of(p):
        return lambda x, t, d, cond: p[0] * jnp.sin(x) + p[1] * expand(d, x) * x + p[2] * expand(t, x) * x

    draws = losses.Intervals(times.uniform_pairs, 2).draw(batch, key)
    x, t, d = (1 - expand(draws.t, draws.x)) * draws.noise + expand(draws.t, draws.x) * draws.x, draws.t, draws.d
    own, step, h = of(p0)(x, t, 0 * d, None), expand(d, x), 1e-5

    def residual(p):
        in_time = (of(p)(x, t + h, d - h, None) - of(p)(x, t - h, d + h, None)) / (2 * h)
        in_space = (of(p0)(x + h * own, t, d, None) - of(p0)(x - h * own, t, d, None)) / (2 * h)
        return jnp.mean(jnp.square(of(p)(x, t, d, None) - step * (in_time + in_space) - own), axis=1).sum()

    def error(p, **stops):
        return losses.eulerian_error(of(p), draws, **stops)[0].sum()

    found, whole = (jax.grad(lambda p, s=s: error(p, stop_space=s))(p0) for s in (True, False))
    np.testing.assert_allclose(found, jax.grad(residual)(p0), rtol=1e-6)
    assert float(jnp.abs(found - whole).max()) > 1e-2
