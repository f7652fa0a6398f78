import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

from eqx_shortcut.rows import expand
from eqx_shortcut.steps import clipped, predict, split_steps, step, two_steps

T, D = jnp.array([0.0, 0.25, 0.5]), jnp.array([1.0, 0.5, 0.25])


def ones(*shape: int):
    return jnp.arange(3.0 * np.prod(shape, dtype=int)).reshape(3, *shape)


@pytest.mark.parametrize("shape", [(3, 1), (3,), (1, 4), (3, 4, 1), (3, 5)])
def test_predict_refuses_an_output_of_another_shape(shape):
    with pytest.raises(TypeCheckError):
        predict(lambda x, t, d, cond: jnp.ones(shape), ones(4), T, D, None)


@pytest.mark.parametrize("output", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_predict_answers_in_the_dtype_of_x(dtype, output):
    found = predict(lambda x, t, d, cond: x.astype(output), ones(4).astype(dtype), T, D, None)
    assert found.dtype == dtype


def test_predict_passes_every_input_on():
    found = predict(lambda x, t, d, cond: x + expand(t + 10 * d, x) + cond["a"], ones(4), T, D, {"a": jnp.full((3, 1), 100.0)})
    np.testing.assert_allclose(found, ones(4) + np.asarray(T + 10 * D)[:, None] + 100)


def test_step_adds_d_times_the_field():
    np.testing.assert_allclose(step(lambda x, t, d, cond: 2 * x, ones(4), T, D, None), ones(4) * (1 + 2 * expand(D, ones(4))))


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), (1, 2, 3)])
@pytest.mark.parametrize("clip", [None, 4.0])
def test_two_steps_keeps_a_constant_velocity(shape, clip):
    u = jnp.ones((3, *shape)) * 1.5
    np.testing.assert_array_equal(two_steps(lambda x, t, d, cond: u, ones(*shape), T, D, None, clip=clip), u)


def test_two_steps_asks_at_t_and_at_the_middle_for_half_the_step():
    asked = []

    def field(x, t, d, cond):
        asked.append((x, t, d))
        return x + expand(t, x)

    x = ones(4)
    u = two_steps(field, x, T, D, None, clip=None)
    (x1, t1, d1), (x2, t2, d2) = asked
    np.testing.assert_array_equal(x1, x)
    np.testing.assert_array_equal(t1, T)
    np.testing.assert_array_equal(t2, T + D / 2)
    np.testing.assert_array_equal([d1, d2], [D / 2, D / 2])
    np.testing.assert_allclose(x2, x + expand(D / 2, x) * (x + expand(T, x)), rtol=1e-6)
    np.testing.assert_allclose(x + expand(D, x) * u, x2 + expand(D / 2, x) * (x2 + expand(T + D / 2, x)), rtol=1e-6)


def test_the_middle_point_is_clipped():
    asked = []

    def field(x, t, d, cond):
        asked.append(x)
        return jnp.full_like(x, 10.0)

    two_steps(field, jnp.zeros((3, 2)), T, D, None, clip=2.0)
    np.testing.assert_array_equal(asked[1], np.minimum(5 * np.asarray(D), 2.0)[:, None] * np.ones((3, 2)))


def test_clipped_limits_both_sides_or_nothing():
    x = jnp.array([-5.0, -1.0, 0.5, 9.0])
    np.testing.assert_array_equal(clipped(x, 1.0), [-1.0, -1.0, 0.5, 1.0])
    assert clipped(x, None) is x


@pytest.mark.parametrize("share", [0.25, jnp.array([0.25, 0.5, 1.0])])
def test_a_split_takes_a_step_of_its_share_and_one_of_the_rest(share):
    asked = []

    def field(x, t, d, cond):
        asked.append((x, t, d))
        return x + expand(t, x)

    x, given = ones(4), jnp.full((3, 4), 2.0)
    for first in (None, given):
        asked.clear()
        u = split_steps(field, x, T, D, None, share, first=first, clip=None)
        part = share * np.asarray(D)
        begun = given if first is not None else x + expand(T, x)
        middle, t, d = asked[-1]
        assert len(asked) == (1 if first is not None else 2)
        np.testing.assert_allclose(middle, x + part[:, None] * begun, rtol=1e-6)
        np.testing.assert_allclose([t, d], [T + part, D - part], rtol=1e-6)
        np.testing.assert_allclose(x + expand(D, x) * u, middle + expand(d, x) * (middle + expand(t, x)), rtol=1e-5)
