"""With a teacher its exact map is what is learnt, line by line, whatever the data."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
from eqx_shortcut import losses
from eqx_shortcut.guidance import Guided, autoguided, unlabelled
from exact import MEAN, SPREAD, WRONG_TANGENTS, M, S, case, distances, gaussian_batch, gaussian_field, gaussian_velocity

pytestmark = pytest.mark.usefixtures("x64")
DATA = gaussian_field(MEAN, SPREAD)
MAP, TEACHER = gaussian_field(-0.8, 1.4), gaussian_velocity(-0.8, 1.4)
"""Of other data than those that the losses see."""


def builds(at, teacher):
    """What each loss says that the field should answer."""
    lines = losses.velocity_target(at.field, at.draws, teacher=teacher)
    return {
        "mean_flow": lambda: losses.mean_flow_target(at.field, lines)[1],
        "alpha_flow": lambda: losses.alpha_flow_target(at.field, lines, 0.0),
        "lagrangian": lambda: losses.lagrangian_error(at.field, teacher, at.draws)[1],
        "eulerian": lambda: losses.eulerian_error(at.field, at.draws, velocity=teacher)[1],
    }


@pytest.mark.parametrize(
    ("method", "name"),
    [
        ("mean_flow", "labels"),
        ("alpha_flow", "labels"),
        ("lagrangian", "labels"),
        ("eulerian", "labels"),
        pytest.param("mean_flow", "mixture", marks=pytest.mark.slow),
    ],
)
def test_with_the_exact_teacher_the_residual_vanishes_line_by_line(method, name):
    """Without one, MeanFlow's vanishes in the mean alone."""
    _, line_by_line = distances(name, lambda at: builds(at, at.field)[method]().u)
    assert line_by_line < (1e-6 if name == "mixture" else 1e-12)


@pytest.mark.parametrize("wrong", ["tangent of the other sign", "x stands still", "d grows"])
def test_a_planted_error_of_the_tangent_breaks_the_law(wrong):
    at = case("labels")
    lines = losses.velocity_target(at.field, at.draws, teacher=at.field)
    assert at.line_by_line(losses.mean_flow_target(at.field, lines, jvp=WRONG_TANGENTS[wrong])[1].u) > 1e-2


WHOLE = {
    "mean_flow": partial(flat.mean_flow, power=0.0),
    "alpha_flow": partial(flat.alpha_flow, target=MAP, alpha=0.0, power=0.0),
    "lagrangian": partial(flat.lagrangian, target=DATA),
    "eulerian": flat.eulerian,
    "eulerian through its tangent": partial(flat.eulerian, stop_space=False),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_map_of_a_wrong_teacher_is_the_minimum_and_not_that_of_the_data(key, name):
    """Rows of `d = 0`, too, are free of the lines' variance: the whole loss is 0 there, and 0 nowhere else."""

    @jax.jit
    def found(share):
        field = lambda x, t, d, cond: (1 - share) * MAP(x, t, d, cond) + share * DATA(x, t, d, cond)  # noqa: E731
        return WHOLE[name](field, gaussian_batch(key, 16), key, teacher=TEACHER)[1]

    at_teacher, at_data, near = found(0.0), found(1.0), found(0.05)
    assert float(at_teacher["loss_bootstrap"]) < 1e-24 and float(at_teacher["loss_flow"]) < 1e-24
    for metrics in (at_data, near):
        assert float(metrics["loss_bootstrap"]) > 1e-5 and float(metrics["loss_flow"]) > 1e-5


def test_the_bias_of_alpha_flow_with_a_teacher_is_of_first_order():
    """In units of alpha, in which its errors are measured."""
    at = case("labels")
    lines = losses.velocity_target(at.field, at.draws, teacher=at.field)
    errors = [float(at.line_by_line(losses.alpha_flow_target(at.field, lines, a).u)) for a in (0.02, 0.01)]
    np.testing.assert_allclose(errors[0] / errors[1], 4, rtol=0.1)


def test_mid_training_learns_the_ends_of_paths_to_second_order(key):
    """The average velocity over the last step is the teacher's at its start, first order: that step is Euler's."""

    def error(rollout):
        found = losses.mid_training_target(TEACHER, gaussian_batch(key, 32), key, rollout=rollout)
        np.testing.assert_array_equal(found.d, 1 - found.t)
        return float(jnp.abs(found.d[:, None] * (found.u - MAP(found.x, found.t, found.d, None))).max())

    errors = [error(8), error(16)]
    assert errors[0] < 0.1 and 3 < errors[0] / errors[1] < 5


def test_an_autoguided_teacher_of_gaussians_is_a_gaussian_of_no_data():
    """`weak + scale (strong - weak)`, by the row's own scale where it is told one, within its times."""
    strong, weak = gaussian_velocity(M, S), gaussian_velocity(M, 2 * S)
    x, t, d = jnp.linspace(-1.0, 2.0, 4)[:, None], jnp.array([0.1, 0.4, 0.6, 0.9]), jnp.zeros(4)
    a, b = strong(x, t, d, None), weak(x, t, d, None)
    np.testing.assert_allclose(autoguided(strong, weak, 3.0)(x, t, d, jnp.arange(4)), b + 3 * (a - b), rtol=1e-12)
    told = Guided(jnp.arange(4), jnp.array([1.0, 2.0, 3.0, 4.0]), jnp.full(4, 0.2), jnp.full(4, 0.7))
    expected = jnp.array([a[0], (b + 2 * (a - b))[1], (b + 3 * (a - b))[2], a[3]])
    np.testing.assert_allclose(autoguided(strong, weak)(x, t, d, told), expected, rtol=1e-12)


def test_a_scale_of_1_asks_the_teacher_alone():
    def never(x, t, d, cond):
        raise AssertionError

    field = lambda x, t, d, cond: x  # noqa: E731
    x, t = jnp.ones((2, 1)), jnp.zeros(2)
    assert autoguided(field, never)(x, t, t, jnp.arange(2)) is x
    seen = unlabelled(lambda x, t, d, cond: cond[:, None].astype(x.dtype), jnp.asarray(7))(x, t, t, jnp.arange(2))
    np.testing.assert_array_equal(seen, jnp.full((2, 1), 7.0))
