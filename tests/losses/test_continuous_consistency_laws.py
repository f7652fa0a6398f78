"""Continuous-time consistency on the trigonometric path: exact in the mean (sCT), and line by line with a teacher (sCD)."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import losses, paths, tangents
from eqx_shortcut.rows import expand
from exact import CASES, M, S, case, distances, gaussian_field, monte_carlo, wrong_jvp, wrong_place

pytestmark = pytest.mark.usefixtures("x64")
STD = 0.5


def target(at, *, taught: bool = False, asked=None, std: float = STD, **options):
    """What the method says `asked`, by default the exact field, should answer; the exact field teaches."""
    asked = at.field if asked is None else asked
    options = {"normalise": None, "teacher": at.field if taught else None, "std": std} | options
    return losses.continuous_consistency_target(asked, at.draws, **options)[1].u


@pytest.mark.parametrize(
    ("taught", "name"),
    [*((False, name) for name in CASES), (True, "dict"), pytest.param(True, "mixture", marks=pytest.mark.slow)],
)
def test_the_target_is_exact(taught, name):
    in_the_mean, line_by_line = distances(name, lambda at: target(at, taught=taught), to_data=True)
    bound = 1e-6 if name == "mixture" else 1e-12
    assert in_the_mean < bound
    assert line_by_line < bound if taught else line_by_line > 0.1


def test_at_half_of_the_warm_up_it_is_not_and_normalised_it_is_with_a_teacher():
    at = case("labels", to_data=True)
    assert at.in_the_mean(target(at, warmup=0.5)) > 1e-2
    assert at.line_by_line(target(at, taught=True, normalise=0.1)) < 1e-12


# Planted errors

WRONG_TANGENTS = {
    "tangent of the other sign": wrong_jvp(slope=-1.0),
    "no tangent": wrong_jvp(slope=0.0),
    "point stands still": wrong_jvp(0.0, 1.0),
    "point runs backwards": wrong_jvp(-1.0, 1.0),
    "angle stands still": wrong_jvp(1.0, 0.0),
    "angle runs backwards": wrong_jvp(1.0, -1.0),
}


@pytest.mark.parametrize("wrong", WRONG_TANGENTS.values(), ids=WRONG_TANGENTS.keys())
@pytest.mark.parametrize("taught", [False, True])
def test_a_planted_error_of_the_tangent_breaks_the_law(wrong, taught):
    at = case("labels", to_data=True)
    assert at.in_the_mean(target(at, taught=taught, jvp=wrong)) > 1e-2


angle, trigonometric, velocity = paths.angle, paths.trigonometric, paths.trigonometric_velocity
WRONG_PATHS = {
    "velocity of the other sign": ("trigonometric", lambda *a, **k: (trigonometric(*a, **k)[0], -trigonometric(*a, **k)[1])),
    "ends swapped": ("trigonometric", lambda noise, x, s, *, std: trigonometric(x, noise, s, std=std)),
    "angle from the other end": ("angle", lambda t, std: jnp.pi / 2 - angle(t, std)),
    "network of the other sign": ("trigonometric_velocity", lambda u, x, s, *, std: -velocity(u, x, s, std=std)),
    "network of the velocity's sign": ("trigonometric_velocity", lambda u, x, s, *, std: velocity(-u, x, s, std=std)),
}


@pytest.mark.parametrize(("name", "wrong"), WRONG_PATHS.values(), ids=WRONG_PATHS.keys())
def test_a_planted_error_of_the_path_breaks_the_law(monkeypatch, name, wrong):
    at = case("labels", to_data=True)
    monkeypatch.setattr(paths, name, wrong)
    assert at.in_the_mean(target(at)) > 1e-2


@pytest.mark.parametrize("wrong", [{"time": 0.5}, {"step": 0.5}], ids=["asked later", "asked for half the way"])
def test_a_planted_error_of_time_breaks_the_law(wrong):
    at = case("labels", to_data=True)
    assert at.in_the_mean(target(at, asked=wrong_place(at.field, **wrong))) > 1e-2


def test_a_teacher_of_other_data_is_followed():
    at = case("scalars", to_data=True)
    assert at.line_by_line(target(at, teacher=gaussian_field(M, 1.3 * S))) > 1e-2


# On the path of the paper


@pytest.mark.parametrize("std", [0.5, 1.0])
def test_the_path_and_its_network_are_those_of_the_paper(std):
    """Lu and Song (2025): `x = cos(s) data + sin(s) z` with `z` of that spread, data `cos(s) x - sin(s) F`."""
    at = case("labels", to_data=True)
    draws, s = at.draws, paths.angle(at.draws.t, std)
    c, n = expand(jnp.cos(s), draws.x), expand(jnp.sin(s), draws.x)
    point, along = paths.trigonometric(draws.noise, draws.x, s, std=std)
    np.testing.assert_allclose(point, c * draws.x + n * std * draws.noise, atol=1e-12)
    np.testing.assert_allclose(along, c * std * draws.noise - n * draws.x, atol=1e-12)
    scale = paths.trigonometric_scale(s, std)
    x = point / expand(scale, point)
    np.testing.assert_allclose(x, paths.linear(draws.noise, draws.x, draws.t, floor=0)[0], atol=1e-12)
    np.testing.assert_allclose(jnp.cos(s) / scale, draws.t, atol=1e-12)
    np.testing.assert_allclose(paths.trigonometric_velocity(draws.x - draws.noise, point, s, std=std), along, atol=1e-12)
    u = at.field(x, draws.t, draws.d, draws.cond)
    network = paths.trigonometric_velocity(u, point, s, std=std)
    np.testing.assert_allclose(c * point - n * network, x + expand(draws.d, x) * u, atol=1e-12)


def bent(x, t, d, cond):
    """No exact field."""
    return jnp.sin(x) + expand(t - 2 * d * t, x)


def test_the_tangent_is_that_of_mean_flow_at_the_whole_way_to_the_data():
    """`g = std cos(s) / scale^2` times MeanFlow's residual, at any field: the two regress alike but for the weight."""
    at = case("labels", to_data=True)
    u, average = losses.mean_flow_target(bent, losses.velocity_target(bent, at.draws))
    _, _, g = losses.continuous_consistency_target(bent, at.draws, std=STD, normalise=None)
    s = paths.angle(at.draws.t, STD)
    weight = expand(STD * jnp.cos(s) / paths.trigonometric_scale(s, STD) ** 2, u)
    np.testing.assert_allclose(g, weight * (u - average.u), atol=1e-12)


@pytest.mark.parametrize("warmup", [0.0, 0.4, 1.0])
def test_the_tangent_is_that_of_the_paper_by_finite_differences(warmup):
    """`g = -cos^2 (F - dx/ds) - r cos sin (x + dF/ds)`, `F` being followed along the trigonometric path by a small angle."""
    at = case("labels", to_data=True)
    draws, s, h = at.draws, paths.angle(at.draws.t, STD), 1e-5
    point, along = paths.trigonometric(draws.noise, draws.x, s, std=STD)

    def network(point, s):
        left = jnp.sin(s) * STD / (jnp.cos(s) + jnp.sin(s) * STD)
        x = point / expand(jnp.cos(s) + jnp.sin(s) * STD, point)
        data = x + expand(left, x) * bent(x, 1 - left, left, draws.cond)
        return (expand(jnp.cos(s), x) * point - data) / expand(jnp.sin(s), x)

    slope = (network(point + h * along, s + h) - network(point - h * along, s - h)) / (2 * h)
    c, n = expand(jnp.cos(s), point), expand(jnp.sin(s), point)
    expected = -(c**2) * (network(point, s) - along) - warmup * c * n * (point + slope)
    found = losses.continuous_consistency_target(bent, draws, warmup=warmup, std=STD, normalise=None)[2]
    np.testing.assert_allclose(found, expected, atol=1e-8)


def test_the_loss_is_that_of_the_paper_row_by_row():
    """`mean |F - sg(F) - g / (rms(g) + c)|^2` is the mean square of the normalised tangent."""
    at = case("labels", to_data=True)
    u, asked, g = losses.continuous_consistency_target(bent, at.draws, std=STD, normalise=0.1)
    scale = paths.trigonometric_scale(paths.angle(at.draws.t, STD), STD)
    size = jnp.sqrt(jnp.mean(g**2, axis=1))
    np.testing.assert_allclose(losses.row_error(u, asked.u) / scale**2, (size / (size + 0.1)) ** 2, atol=1e-12)


def test_finite_differences_tend_to_the_tangent_at_second_order():
    at = case("labels", to_data=True)
    exact = target(at)
    errors = [float(jnp.abs(target(at, jvp=tangents.finite_difference(h)) - exact).max()) for h in (0.02, 0.01)]
    assert errors[0] > 1e-5
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.1)


# The whole loss


@pytest.mark.slow
def test_the_mean_gradient_vanishes_at_the_exact_field_alone(key):
    gradient = monte_carlo(partial(losses.continuous_consistency, normalise=None), batches=1024, rows=16)
    mean, error = gradient(key, S)
    assert np.all(error < 0.02)
    assert np.all(np.abs(mean) < 4.5 * error)
    mean, error = gradient(key, 1.3 * S)
    assert np.any(np.abs(mean) > 10 * error)
