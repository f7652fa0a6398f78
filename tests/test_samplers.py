import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import samplers
from eqx_shortcut.rows import rows

MEAN, SPREAD = 0.7, 0.3


def scale(t):
    return jnp.sqrt((1 - t) ** 2 + (t * SPREAD) ** 2)


def average_velocity(x, t, d, cond):
    """Of data N(MEAN, SPREAD^2): the flow map carries `x` to `(t + d) MEAN + scale(t + d) / scale(t) (x - t MEAN)`."""
    t, d = rows(t, x), rows(d, x)
    return ((t + d) * MEAN + scale(t + d) / scale(t) * (x - t * MEAN) - x) / d


def velocity(x, t, d, cond):
    t = rows(t, x)
    return MEAN + (t * SPREAD**2 - (1 - t)) / scale(t) ** 2 * (x - t * MEAN)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 3, 1), (1, 2, 3, 2)])
@pytest.mark.parametrize("steps", [1, 2, 7, 128])
def test_average_velocities_land_on_the_same_point(x64, key, shape, steps):
    noise = jax.random.normal(key, (5, *shape), dtype=float)
    found = samplers.euler(average_velocity, noise, steps=steps)
    np.testing.assert_allclose(found, MEAN + SPREAD * noise, atol=1e-12)


def test_instantaneous_velocities_converge_at_first_order(x64, key):
    noise = jax.random.normal(key, (5, 3), dtype=float)
    error = [jnp.abs(samplers.euler(velocity, noise, steps=n) - MEAN - SPREAD * noise).max() for n in (64, 128, 256)]
    np.testing.assert_allclose([error[0] / error[1], error[1] / error[2]], 2, rtol=0.05)


@pytest.mark.parametrize("steps", [1, 2, 5, 8])
def test_steps_start_at_multiples_of_d(steps):
    def field(x, t, d, cond):
        return jnp.stack([t, d], axis=1)

    found = samplers.euler(field, jnp.zeros((3, 2)), steps=steps)
    np.testing.assert_allclose(found, np.tile([(steps - 1) / (2 * steps), 1 / steps], (3, 1)), rtol=1e-6)


def test_one_compilation_serves_every_number_of_steps(key):
    traces = []

    def field(x, t, d, cond):
        traces.append(x.shape)
        return average_velocity(x, t, d, cond)

    sample = jax.jit(lambda noise, steps: samplers.euler(field, noise, steps=steps))
    noise = jax.random.normal(key, (4, 3))
    sample(noise, 1)
    compiled = len(traces)
    for steps in (2, 7, 128):
        np.testing.assert_allclose(sample(noise, steps), MEAN + SPREAD * noise, atol=1e-4)
    assert len(traces) == compiled


def test_conditions_reach_the_field():
    cond = {"shift": jnp.arange(2.0)}
    found = samplers.euler(lambda x, t, d, cond: jnp.zeros_like(x) + rows(cond["shift"], x), jnp.zeros((2, 3)), cond, steps=4)
    np.testing.assert_allclose(found, [[0, 0, 0], [1, 1, 1]])


def test_samples_keep_the_dtype_of_the_noise(key):
    noise = jax.random.normal(key, (2, 3), jnp.bfloat16)
    assert samplers.euler(lambda x, t, d, cond: x.astype(jnp.float32), noise, steps=3).dtype == jnp.bfloat16


# Consistency sampling


def whole_way(x, t, d, cond):
    return average_velocity(x, t, 1 - t, cond)


def noises(key, shape):
    return lambda i: jax.random.normal(jax.random.fold_in(key, i), shape, float)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_consistency_samples_of_the_exact_field_have_the_data_s_mean_and_spread(x64, key, steps):
    shape = (1024, 16)
    start = jax.random.normal(jax.random.key(9), shape, dtype=float)
    found = np.asarray(samplers.consistency(whole_way, start, steps=steps, renoise=noises(key, shape)))
    n = found.size
    assert abs(found.mean() - MEAN) < 4.5 * SPREAD / np.sqrt(n)
    assert abs(found.std() - SPREAD) < 4.5 * SPREAD / np.sqrt(2 * n)
    if steps == 1:
        np.testing.assert_allclose(found, MEAN + SPREAD * start, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
def test_consistency_is_its_loop_and_adds_no_noise_at_the_end(x64, key, steps):
    """Each jump asked at `d = 1 - t`, each point put back to the next multiple of `1/steps`."""
    shape, asked = (4, 2), []

    def field(x, t, d, cond):
        asked.append((t, d))
        return 0.3 * x + rows(t - 2 * d + cond["shift"], x)

    def renoise(i):
        return jnp.where(i == steps - 1, 1e30, noises(key, shape)(i))

    start, cond = jax.random.normal(jax.random.key(9), shape, dtype=float), {"shift": jnp.arange(4.0)}
    x = np.asarray(start)
    for i in range(steps):
        t, later = i / steps, (i + 1) / steps
        data = x + (1 - t) * (0.3 * x + t - 2 * (1 - t) + np.arange(4.0)[:, None])
        x = later * data + (1 - later) * np.asarray(noises(key, shape)(i))
    np.testing.assert_allclose(samplers.consistency(field, start, cond, steps=steps, renoise=renoise), x, atol=1e-12)
    traced = jax.jit(lambda n: samplers.consistency(field, start, cond, steps=n, renoise=noises(key, shape)))
    np.testing.assert_allclose(traced(steps), x, atol=1e-12)


def test_noise_kept_between_consistency_steps_would_be_seen(x64, key):
    """A sampler that puts points back with the noise it started from spoils the spread."""
    shape = (1024, 16)
    start = jax.random.normal(jax.random.key(9), shape, dtype=float)
    wrong = np.asarray(samplers.consistency(whole_way, start, steps=4, renoise=lambda i: 1.2 * noises(key, shape)(i)))
    assert abs(wrong.std() - SPREAD) > 10 * SPREAD / np.sqrt(2 * wrong.size)


def test_ddim_is_euler_on_its_field_and_serves_every_number_of_steps(key):
    field = lambda x, t, d, cond: 0.5 * x + rows(cond, x)  # noqa: E731
    noise, cond = jax.random.normal(key, (4, 3)), jnp.arange(4.0)
    sample = jax.jit(lambda steps: samplers.ddim(field, noise, cond, steps=steps, clip=2.0))
    for steps in (1, 5):
        expected = samplers.euler(samplers.ddim_field(field, clip=2.0), noise, cond, steps=steps)
        np.testing.assert_allclose(sample(steps), expected, rtol=1e-4, atol=1e-4)
        assert float(jnp.abs(expected).max()) <= 2.01


def test_ddim_ends_at_the_data_where_rounding_goes_beyond_them(key):
    x, t = jax.random.normal(key, (2, 3)), jnp.full(2, 0.75)
    field = samplers.ddim_field(lambda x, t, d, cond: 0.3 * x)
    found, beyond = (field(x, t, jnp.full(2, d), None) for d in (0.25, 0.2500002))
    np.testing.assert_allclose(beyond, found, rtol=1e-5)


# Parts


@pytest.mark.parametrize("sampler", ["euler", "consistency", "ddim"])
def test_parts_one_after_another_are_the_whole_to_the_bit(key, sampler):
    """Of a field that depends on time, in three parts of which one is empty; with numbers known when tracing, and not."""
    field, noise = lambda x, t, d, cond: 0.3 * x + rows(t - 2 * d, x), jax.random.normal(key, (4, 3))
    more = {"renoise": lambda i: jax.random.normal(jax.random.fold_in(key, i), (4, 3))} if sampler == "consistency" else {}

    def advance(x, steps):
        return getattr(samplers, sampler)(field, x, steps=steps, **more)

    traced = jax.jit(lambda x, *numbers: advance(x, samplers.StepRange(*numbers)))
    for run in (lambda x, *numbers: advance(x, samplers.StepRange(*numbers)), traced):
        whole, x = run(noise, 7, 0, 7), noise
        for first, last in ((0, 3), (3, 3), (3, 7)):
            x = run(x, 7, first, last)
        np.testing.assert_array_equal(x, whole)
        np.testing.assert_allclose(whole, advance(noise, 7), rtol=1e-5, atol=1e-5)


def test_a_known_part_can_be_differentiated(key):
    noise = jax.random.normal(key, (2, 3))
    slope = jax.grad(lambda x: samplers.euler(lambda x, t, d, cond: x, x, steps=samplers.StepRange(4, 1, 3)).sum())(noise)
    np.testing.assert_allclose(slope, 1.25**2, rtol=1e-6)
