import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import samplers
from eqx_shortcut.rows import expand

MEAN, SPREAD = 0.7, 0.3


def scale(t):
    return jnp.sqrt((1 - t) ** 2 + (t * SPREAD) ** 2)


def average_velocity(x, t, d, cond):
    """Of data N(MEAN, SPREAD^2): the flow map carries `x` to `(t + d) MEAN + scale(t + d) / scale(t) (x - t MEAN)`."""
    t, d = expand(t, x), expand(d, x)
    return ((t + d) * MEAN + scale(t + d) / scale(t) * (x - t * MEAN) - x) / d


def velocity(x, t, d, cond):
    t = expand(t, x)
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
    found = samplers.euler(lambda x, t, d, cond: jnp.zeros_like(x) + expand(cond["shift"], x), jnp.zeros((2, 3)), cond, steps=4)
    np.testing.assert_allclose(found, [[0, 0, 0], [1, 1, 1]])


def test_samples_keep_the_dtype_of_the_noise(key):
    noise = jax.random.normal(key, (2, 3), jnp.bfloat16)
    assert samplers.euler(lambda x, t, d, cond: x.astype(jnp.float32), noise, steps=3).dtype == jnp.bfloat16


# Velocities at second order, and times that are not those of equal steps

WARPS = [
    None,
    samplers.Shifted(3.0),
    samplers.PowerSteps(3.0, 0.01, 40.0),
    samplers.Through((0.0, 0.2, 0.7, 1.0)),
]


@pytest.mark.parametrize("times", WARPS, ids=str)
@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_errors_fall_with_the_order_of_the_sampler_at_any_times(x64, key, sampler, order, times):
    """Of `x' = -(1 + t) x^3`: the way of one Gaussian is a conic section, of which a midpoint step errs at third order."""
    noise = jax.random.normal(key, (5, 3), dtype=float)
    bent = lambda x, t, d, cond: -expand(1 + t, x) * x**3  # noqa: E731
    # Numbers of which each divides the next, for a table of times has corners.
    run = jax.jit(lambda n: getattr(samplers, sampler)(bent, noise, steps=n, times=times))
    error = [float(jnp.abs(run(n) - noise / jnp.sqrt(1 + 3 * noise**2)).max()) for n in (192, 384, 768)]
    np.testing.assert_allclose([error[0] / error[1], error[1] / error[2]], 2**order, rtol=0.15)


@pytest.mark.parametrize("times", WARPS[1:], ids=str)
@pytest.mark.parametrize("steps", [1, 3, 8])
def test_average_velocities_land_on_the_same_point_at_any_times(x64, key, times, steps):
    noise = jax.random.normal(key, (5, 3), dtype=float)
    np.testing.assert_allclose(
        samplers.euler(average_velocity, noise, steps=steps, times=times), MEAN + SPREAD * noise, atol=1e-12
    )


@pytest.mark.parametrize("sampler", [samplers.heun, samplers.midpoint])
def test_second_order_asks_the_velocity_twice_a_step_and_never_at_the_data(sampler):
    asked = []

    def field(x, t, d, cond):
        jax.debug.callback(lambda t, d: asked.append((float(t[0]), float(d[0]))), t, d, ordered=True)
        return jnp.ones_like(x) * expand(t, x)

    found = sampler(field, jnp.zeros((1, 1)), steps=2)
    jax.effects_barrier()
    second = {"heun": [(0, 0), (0.5, 0), (0.5, 0)], "midpoint": [(0, 0), (0.25, 0), (0.5, 0), (0.75, 0)]}
    assert asked == second[sampler.__name__]
    # Of x' = t exact in a step of second order; the last of Heun's is Euler's.
    np.testing.assert_allclose(found, {"heun": 0.125 + 0.25, "midpoint": 0.5}[sampler.__name__], rtol=1e-6)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_heun_leaves_no_noise_beside_the_data(x64, key, steps):
    """Data that lie on a line: noise across it moves by `-x / (1 - t)`, of which the last step leaves nothing."""
    noise, across = jax.random.normal(key, (5, 2), dtype=float), jnp.array([0.0, 1.0])
    field = lambda x, t, d, cond: jnp.where(across == 1, -x / expand(1 - t, x), average_velocity(x, t, d, cond))  # noqa: E731
    np.testing.assert_allclose(samplers.heun(field, noise, steps=steps)[:, 1], 0, atol=1e-12)


@pytest.mark.parametrize("times", WARPS[1:], ids=str)
def test_times_rise_from_noise_to_data(times):
    found = jax.vmap(times)(jnp.linspace(0, 1, 33))
    np.testing.assert_allclose([found[0], found[-1]], [0, 1], atol=1e-6)
    assert bool(jnp.all(jnp.diff(found) > 0))
    assert times(jnp.bfloat16(0.5)).dtype == jnp.bfloat16


def test_times_are_those_of_their_papers():
    share = jnp.array(0.25)
    np.testing.assert_allclose(samplers.Shifted(3.0)(share), 1 - 3 * 0.75 / (1 + 2 * 0.75), rtol=1e-6)
    sigma = (80 ** (1 / 7) + 0.25 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    stretched = (1 / (1 + sigma) - 1 / 81) / (1 / 1.002 - 1 / 81)
    np.testing.assert_allclose(samplers.PowerSteps()(share), stretched, rtol=1e-4)
    np.testing.assert_allclose(samplers.Through((0.0, 0.3, 1.0))(jnp.array(0.75)), 0.65, rtol=1e-6)
    np.testing.assert_allclose(samplers.Through((0.0, 1.0))(share), share)
    # On the trigonometric path x = cos(s) data + sin(s) std noise the noise over data is std tan(s).
    t = samplers.trigonometric_time(1.1, 0.5)
    np.testing.assert_allclose((1 - t) / t, 0.5 * np.tan(1.1), rtol=1e-9)


@pytest.mark.parametrize("times", [(0.0,), (0.1, 1.0), (0.0, 0.9), (0.0, 0.6, 0.4, 1.0)])
def test_a_table_that_is_no_way_from_noise_to_data_is_refused(times):
    with pytest.raises(ValueError, match="name two or more in rising order, the first 0 and the last 1"):
        samplers.Through(times)


@pytest.mark.parametrize(
    ("times", "options"),
    [(samplers.Shifted, {"shift": 0.0}), (samplers.PowerSteps, {"rho": 0.0}), (samplers.PowerSteps, {"low": -1.0})],
)
def test_times_that_are_no_numbers_are_refused(times, options):
    ((name, value),) = options.items()
    with pytest.raises(ValueError, match=f"{name}={value}: use more than 0"):
        times(**options)


def test_two_jumps_put_the_point_back_at_the_time_between(x64, key):
    field, new = lambda x, t, d, cond: 0.3 * x + expand(t - 2 * d, x), jax.random.normal(key, (4, 2), float)
    x = jnp.ones((4, 2))
    data = x + 0.3 * x - 2
    back = 0.3 * data + 0.7 * new
    expected = back + 0.7 * (0.3 * back + 0.3 - 2 * 0.7)
    sampler = samplers.Sampler(samplers.consistency, samplers.Through((0.0, 0.3, 1.0)))
    found = sampler(field, x, None, steps=2, renoise=lambda i: jnp.where(i == 0, new, 1e30))
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    same = samplers.Sampler(samplers.consistency, samplers.Through((0.0, 0.3, 1.0)))
    assert sampler == same and hash(sampler) == hash(same)
    assert sampler.name == "consistency at times Through(times=(0.0, 0.3, 1.0))" and samplers.Sampler().name == "euler"


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
        return 0.3 * x + expand(t - 2 * d + cond["shift"], x)

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
    field = lambda x, t, d, cond: 0.5 * x + expand(cond, x)  # noqa: E731
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


@pytest.mark.parametrize("sampler", ["euler", "heun", "midpoint", "consistency", "ddim"])
def test_parts_one_after_another_are_the_whole_to_the_bit(key, sampler):
    """Of a field that depends on time, in three parts of which one is empty; with numbers known when tracing, and not."""
    field, noise = lambda x, t, d, cond: 0.3 * x + expand(t - 2 * d, x), jax.random.normal(key, (4, 3))
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
