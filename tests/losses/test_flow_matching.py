import jax
import jax.numpy as jnp
import numpy as np
import pytest

import flat
from eqx_shortcut import Batch, losses
from eqx_shortcut.rows import expand
from eqx_shortcut.steps import predict
from plain import PARAMETERS, SHAPES, SHAPES_AND_KINDS, N, Recorded, batch_of, conditions, field_of


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["none", "dict"])
def test_loss_is_the_mean_squared_velocity_error(key, shape, kind):
    batch = batch_of(key, shape, kind)
    draws = losses.flow_draws(batch, key, steps=16)
    t, noise, x = (np.asarray(a, np.float64) for a in (draws.t, draws.noise, draws.x))
    s = t.reshape(N, *(1,) * len(shape))
    points = jnp.asarray((1 - (1 - 1e-5) * s) * noise + s * x, jnp.float32)
    answer = np.asarray(predict(field_of(PARAMETERS), points, draws.t, draws.d, batch.cond))
    expected = np.mean((answer - (x - (1 - 1e-5) * noise)) ** 2)
    loss, metrics = flat.flow_matching(field_of(PARAMETERS), batch, key, steps=16)
    np.testing.assert_allclose([loss, metrics["loss"]], expected, rtol=1e-5)
    np.testing.assert_allclose(metrics["velocity"], np.sqrt(np.mean((x - noise) ** 2)), rtol=1e-4)


@pytest.mark.parametrize(("shape", "kind"), SHAPES_AND_KINDS)
def test_gradient_is_the_errors(key, shape, kind):
    """d/da mean |a x_t + ... - v|^2 = 2 mean (error x_t), through a dict of parameters."""
    batch = batch_of(key, shape, kind)
    target = losses.flow_target(losses.flow_draws(batch, key, steps=16))
    error = field_of(PARAMETERS)(target.x, target.t, target.d, target.cond) - target.u
    grad = jax.grad(lambda p: flat.flow_matching(field_of(p), batch, key, steps=16)[0])(PARAMETERS)
    np.testing.assert_allclose(grad["a"], 2 * jnp.mean(error * target.x), rtol=1e-4)
    np.testing.assert_allclose(grad["b"], 2 * jnp.mean(error * expand(target.t - target.d, error)), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES)
def test_without_reduction_one_value_a_row(key, shape):
    batch = batch_of(key, shape)
    values, metrics = flat.flow_matching(field_of(PARAMETERS), batch, key, reduction=None)
    loss, _ = flat.flow_matching(field_of(PARAMETERS), batch, key)
    assert values.shape == (N,)
    np.testing.assert_allclose([jnp.mean(values), metrics["loss"]], loss, rtol=1e-6)


def test_weight_scales_rows_by_their_time_and_step(key):
    batch = batch_of(key)
    draws = losses.flow_draws(batch, key, steps=16)
    weight = lambda t, d: 1 + t + 100 * d  # noqa: E731
    plain, _ = flat.flow_matching(field_of(PARAMETERS), batch, key, steps=16, reduction=None)
    found, _ = flat.flow_matching(field_of(PARAMETERS), batch, key, steps=16, reduction=None, weight=weight)
    np.testing.assert_allclose(found, plain * (1 + draws.t + 100 / 16), rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 10, 128])
def test_one_step_size_and_times_on_its_grid(key, steps):
    recorded = Recorded()
    flat.flow_matching(recorded, batch_of(key), key, steps=steps)
    ((_, t, d, _),) = recorded.asked
    np.testing.assert_array_equal(d, np.full(N, np.float32(1 / steps)))
    np.testing.assert_allclose(t * steps, np.round(t * steps), atol=1e-5)
    assert np.all((0 <= t) & (t < 1))


def test_conditions_drop_to_null(key):
    batch, (_, null) = batch_of(key, kind="dict"), conditions("dict")
    recorded = Recorded()
    flat.flow_matching(recorded, batch, key, null=null, dropout=1.0)
    ((_, _, _, cond),) = recorded.asked
    np.testing.assert_array_equal(cond["label"], np.full(N, 3))
    np.testing.assert_array_equal(cond["text"], np.zeros((N, 2)))


def test_dropout_without_null_is_refused(key):
    with pytest.raises(ValueError, match=r"dropout=0.1 needs `null`"):
        flat.flow_matching(field_of(PARAMETERS), batch_of(key), key, dropout=0.1)


def test_pairs_keep_their_noise(key):
    batch = batch_of(key)
    paired = Batch(batch.x, batch.cond, noise=jnp.full_like(batch.x, 7.0))
    np.testing.assert_array_equal(losses.flow_draws(paired, key, steps=16).noise, paired.noise)
    with_other_key = losses.flow_draws(paired, jax.random.key(1), steps=16)
    np.testing.assert_array_equal(with_other_key.noise, paired.noise)


def test_noise_is_standard_and_independent_between_rows_and_elements(key):
    noise = np.asarray(losses.flow_draws(Batch(jnp.zeros((16, 4096))), key, steps=16).noise)
    correlation = noise @ noise.T / 4096
    np.testing.assert_allclose(correlation, np.eye(16), atol=6 / np.sqrt(4096))
    assert np.unique(noise).size > 0.99 * noise.size


def test_times_and_noise_are_independent(key):
    draws = losses.flow_draws(Batch(jnp.zeros((8192, 1))), key, steps=128)
    correlation = np.corrcoef(np.asarray(draws.t), np.asarray(draws.noise[:, 0]))[0, 1]
    assert abs(correlation) < 5 / np.sqrt(8192)


def test_draws_are_a_function_of_the_key(key):
    first, again, other = (losses.flow_draws(batch_of(key), k, steps=128) for k in (key, key, jax.random.key(5)))
    np.testing.assert_array_equal(first.noise, again.noise)
    np.testing.assert_array_equal(first.t, again.t)
    assert not np.any(first.noise == other.noise)


@pytest.mark.parametrize("floor", [0, 0.5])
def test_floor_is_the_paths(key, floor):
    draws = losses.flow_draws(batch_of(key), key, steps=16)
    np.testing.assert_allclose(losses.flow_target(draws, floor=floor).u, draws.x - (1 - floor) * draws.noise, rtol=1e-6)


def test_target_is_stopped(key):
    """A regression whose target depends on the parameter passes no gradient through it."""

    def loss(parameter):
        rows = losses.flow_target(losses.flow_draws(Batch(parameter * jnp.ones((N, 3))), key, steps=16))
        return jnp.mean(losses.regress(lambda x, t, d, cond: jnp.zeros_like(x), rows))

    assert float(jax.grad(loss)(jnp.float32(2.0))) == 0.0
