import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import ema

AVERAGE = {"w": jnp.array([1.0, -2.0]), "h": jnp.ones(2, jnp.bfloat16), "count": jnp.array(3), "f": abs, "none": None}
ONLINE = {"w": jnp.array([5.0, 0.0]), "h": jnp.zeros(2, jnp.bfloat16), "count": jnp.array(9), "f": abs, "none": None}


def test_blends_inexact_arrays():
    found = ema.update(AVERAGE, ONLINE, 0.75)
    np.testing.assert_allclose(found["w"], [2.0, -1.5])
    np.testing.assert_allclose(found["h"].astype(float), [0.75, 0.75])
    assert found["h"].dtype == jnp.bfloat16


def test_other_leaves_are_the_averages():
    found = ema.update(AVERAGE, ONLINE, 0.75)
    assert int(found["count"]) == 3 and found["f"] is abs and found["none"] is None


@pytest.mark.parametrize(("decay", "expected"), [(0.0, ONLINE), (1.0, AVERAGE)])
def test_limits(decay, expected):
    np.testing.assert_array_equal(ema.update(AVERAGE, ONLINE, decay)["w"], expected["w"])


def test_distance_to_a_constant_falls_geometrically(x64):
    average, online = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([5.0, 0.0])}
    found = average
    for _ in range(20):
        found = ema.update(found, online, 0.9)
    np.testing.assert_allclose(found["w"] - online["w"], 0.9**20 * (average["w"] - online["w"]), rtol=1e-12)


# By a power of the step


def weights_of(sigma_rel: float, t: int) -> np.ndarray:
    """What each of the weights 1 to t counts: the integral of the profile over (i - 1, i]."""
    n, i = ema.gamma_of(sigma_rel) + 1, np.arange(1, t + 1)
    return (i**n - (i - 1) ** n) / t**n


def walk(steps: int, size: int = 50) -> np.ndarray:
    return np.cumsum(np.random.default_rng(0).standard_normal((steps, size)), axis=0)


def test_a_power_average_is_the_weighted_sum_of_all_weights(x64):
    path = walk(40)
    average = ema.PowerAverage({"w": jnp.full(50, 1e3), "f": abs}, 0.1)
    for t, w in enumerate(path, start=1):
        average = average.updated({"w": jnp.asarray(w), "f": abs}, jnp.asarray(t))
        if t in (1, 2, 40):
            np.testing.assert_allclose(average.network["w"], weights_of(0.1, t) @ path[:t], rtol=1e-10, atol=1e-12)
    assert average.network["f"] is abs


def test_the_first_update_is_taken_whole_and_later_ones_less_and_less():
    rates = [float(ema.power_rate(jnp.int32(t), 6.94)) for t in (1, 2, 10, 1000, 10**6)]
    assert rates[0] == 1
    np.testing.assert_allclose(rates[1:], [1 - (1 - 1 / t) ** 7.94 for t in (2, 10, 1000, 10**6)], rtol=1e-5)


def test_widths_and_exponents_are_those_of_the_paper_and_each_others_inverse():
    np.testing.assert_allclose([ema.gamma_of(0.05), ema.gamma_of(0.10)], [16.97, 6.94], atol=5e-3)
    assert ema.gamma_of(ema.WIDEST) == pytest.approx(0, abs=1e-12)
    for width in (0.001, 0.02, 0.1, 0.25, 0.288):
        assert ema.sigma_rel(ema.gamma_of(width)) == pytest.approx(width, rel=1e-9)


@pytest.mark.parametrize("width", [0.02, 0.1, 0.25])
def test_the_width_is_the_standard_deviation_of_when_over_how_long(width):
    t, weights = np.arange(1, 20001), weights_of(width, 20000)
    mean = weights @ t
    assert weights.sum() == pytest.approx(1) and np.sqrt(weights @ (t - mean) ** 2) / 20000 == pytest.approx(width, rel=1e-3)


@pytest.mark.parametrize("width", [0.0, -0.1, 0.29, float("nan")])
def test_widths_that_do_not_exist_are_refused(width):
    with pytest.raises(ValueError, match=f"sigma_rel {width:g} is the width of no average"):
        ema.gamma_of(width)


def profiles(steps: list[int], widths: list[float]) -> ema.Profile:
    pairs = [(t, ema.gamma_of(width)) for t in steps for width in widths]
    return ema.Profile(*np.array(pairs, np.float64).T)


def drawn(profile: ema.Profile, tau: np.ndarray) -> np.ndarray:
    """Each profile at `tau`, one a row."""
    t, gamma = profile.t[:, None], profile.gamma[:, None]
    return np.where(tau < t, (gamma + 1) * tau**gamma / t ** (gamma + 1), 0)


def test_inner_products_are_integrals():
    a, b = ema.Profile(np.array([3.0, 5.0, 4.0]), np.array([6.94, 0.5, 2.0])), profiles([5, 3, 4], [0.05])
    tau, width = (np.arange(10**5) + 0.5) * 5e-5, 5e-5
    np.testing.assert_allclose(ema.inner_product(a, b), (drawn(a, tau) * drawn(b, tau)).sum(axis=1) * width, rtol=1e-4)


@pytest.mark.parametrize("width", [0.03, 0.07, 0.2])
def test_a_combination_is_the_nearest_profile_of_those_that_integrate_to_1(width):
    """As least squares on a grid of times finds it, the last coefficient put for 1 less the others."""
    kept, tau = profiles([10, 20, 30, 40], [0.05, 0.1]), (np.arange(40000) + 0.5) * 1e-3
    coefficients, error = ema.combination(kept, 40.0, ema.gamma_of(width))
    *rows, last = drawn(kept, tau)
    wanted = drawn(profiles([40], [width]), tau)[0]
    others = np.linalg.lstsq(np.stack(rows, axis=1) - last[:, None], wanted - last, rcond=None)[0]
    np.testing.assert_allclose(coefficients, [*others, 1 - others.sum()], atol=2e-3)
    left = wanted - coefficients @ drawn(kept, tau)
    assert error == pytest.approx(np.linalg.norm(left) / np.linalg.norm(wanted), rel=2e-2)


def test_a_kept_profile_comes_back_alone_and_others_the_better_the_more_there_are():
    kept = profiles(list(range(4, 65, 4)), [0.05, 0.1])
    exact, error = ema.combination(kept, 64.0, ema.gamma_of(0.1))
    np.testing.assert_allclose(exact, np.arange(32) == 31, atol=1e-9)
    assert error < 1e-6
    for width in (0.03, 0.07, 0.15, 0.2):
        several = [profiles([64 * i // n for i in range(1, n + 1)], [0.05, 0.1]) for n in (4, 8, 16, 32)]
        errors = [ema.combination(kept, 64.0, ema.gamma_of(width))[1] for kept in several]
        assert all(more < 0.7 * fewer for fewer, more in itertools.pairwise(errors)) and errors[-1] < 0.02


def test_combined_is_the_sum_array_by_array():
    other = {"w": jnp.ones(2), "h": jnp.zeros(2, jnp.bfloat16), "count": jnp.array(5), "f": abs, "none": None}
    found = ema.combined([AVERAGE, ONLINE, other], [2.0, -1.5, 0.5])
    np.testing.assert_allclose(found["w"], [2 - 7.5 + 0.5, -4 + 0.5])
    assert int(found["count"]) == 3 and found["f"] is abs and found["h"].dtype == jnp.bfloat16
    with pytest.raises(ValueError, match="shorter"):
        ema.combined([AVERAGE, ONLINE, other], [2.0, -1.5])
