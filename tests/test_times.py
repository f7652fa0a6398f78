import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import times
from eqx_shortcut.rows import interleaved


@pytest.mark.parametrize("n", [1, 2, 7, 128])
def test_grid_is_uniform_on_its_sections(key, n):
    t = np.asarray(times.grid(key, jnp.full(8192, n)), np.float64)
    cells, counts = np.unique(np.round(t * n), return_counts=True)
    np.testing.assert_array_equal(cells, np.arange(n))
    np.testing.assert_allclose(t, np.round(t * n) / n, atol=1e-7)
    share = 1 / n
    assert np.all(np.abs(counts / 8192 - share) < 5 * np.sqrt(share * (1 - share) / 8192) + 1e-12)
    assert abs(t.mean() - (n - 1) / (2 * n)) < 5 * np.sqrt((n**2 - 1) / (12 * n**2) / 8192) + 1e-12


def test_grid_gives_each_row_its_own_sections(key):
    sections = jnp.tile(jnp.array([1, 2, 8, 128]), 512)
    t = np.asarray(times.grid(key, sections)).reshape(512, 4)
    for column, n in zip(t.T, (1, 2, 8, 128), strict=True):
        np.testing.assert_array_equal(column * n, np.round(column * n))
        assert column.max() <= (n - 1) / n
        assert np.unique(column).size > 0.9 * min(n, 100)


def test_grid_has_the_dtype_asked_for(key):
    assert times.grid(key, jnp.full(3, 4), jnp.bfloat16).dtype == jnp.bfloat16


HAND = [
    (7, 128, False, [6, 5, 4, 3, 2, 1, 0]),
    (8, 128, False, [6, 5, 4, 3, 2, 1, 0, 0]),
    (8, 8, False, [2, 2, 1, 1, 0, 0, 0, 0]),
    (4, 128, False, [0, 0, 0, 0]),
    (3, 2, False, [0, 0, 0]),
    (0, 8, False, []),
    (8, 128, True, [1, 1, 0, 0, 0, 0, 0, 0]),
    (16, 128, True, [6, 5, 4, 3, 2, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]),
    (12, 8, True, [2, 2, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0]),
]


@pytest.mark.parametrize(("n", "steps", "bias", "expected"), HAND)
def test_levels_by_hand(n, steps, bias, expected):
    np.testing.assert_array_equal(times.dyadic_levels(n, steps, bias=bias), expected)


def reference_levels(n: int, steps: int, bias: bool) -> tuple[np.ndarray, int]:
    """Levels and number of guided rows as the original code builds them (targets_shortcut.py)."""
    log2 = int(np.log2(steps))
    if not bias:
        guided = n // log2
        base = np.repeat(log2 - 1 - np.arange(log2), guided)
    else:
        guided = (n // 2) // log2
        base = np.repeat(log2 - 1 - np.arange(log2 - 2), guided)
        base = np.concatenate([base, np.ones(n // 4), np.zeros(n // 4)])
    return np.concatenate([base, np.zeros(n - base.shape[0])]), guided


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("steps", [4, 8, 32, 128, 1024])
def test_levels_are_the_reference_codes(steps, bias):
    for n in (1, 3, 4, 7, 8, 16, 21, 56, 100):
        levels, guided = reference_levels(n, steps, bias)
        np.testing.assert_array_equal(times.dyadic_levels(n, steps, bias=bias), levels)
        assert times.finest_rows(n, steps, bias=bias) == guided


@pytest.mark.parametrize(("bias", "rows"), [(False, {2: 1, 4: 2, 8: 3, 128: 7}), (True, {2: 1, 4: 4, 8: 6, 128: 14})])
def test_the_fewest_rows_of_all_levels(bias, rows):
    for steps, fewest in rows.items():
        assert times.rows_of_all_levels(steps, bias=bias) == fewest
        for n in range(1, 3 * fewest):
            levels = set(times.dyadic_levels(n, steps, bias=bias).tolist())
            assert (levels == set(range(times.log2_steps(steps)))) == (n >= fewest)


@pytest.mark.parametrize("bias", [False, True])
def test_finest_rows_stand_first(bias):
    levels = times.dyadic_levels(64, 32, bias=bias)
    first = times.finest_rows(64, 32, bias=bias)
    assert first > 0
    assert np.all(levels[:first] == 4)
    assert np.all(levels[first:] < 4)


@pytest.mark.parametrize(("n", "steps", "groups"), [(32, 128, 8), (4096, 128, 1024), (7, 128, 1), (56, 128, 8), (11, 32, 11)])
def test_a_group_has_the_finest_level_first_or_nowhere(n, steps, groups):
    assert times.level_groups(n, steps) == groups
    levels = interleaved(times.dyadic_levels(n, steps), groups).reshape(groups, -1)
    finest = levels == levels.max()
    assert not finest[:, 1:].any() and finest.sum() == times.finest_rows(n, steps)


@pytest.mark.parametrize("steps", [2, 4, 128, 4096])
def test_log2_inverts_powers(steps):
    assert 2 ** times.log2_steps(steps) == steps


@pytest.mark.parametrize(("steps", "remedy"), [(100, "64 or 128"), (3, "2 or 4"), (1, "2 or 4"), (0, "2 or 4"), (-8, "")])
def test_other_steps_are_refused_with_the_neighbours(steps, remedy):
    with pytest.raises(ValueError, match=rf"steps={steps} is not a power of two: .*{remedy}"):
        times.log2_steps(steps)


def test_grid_is_traceable(key):
    eager = times.grid(key, jnp.full(5, 9))
    np.testing.assert_array_equal(jax.jit(times.grid)(key, jnp.full(5, 9)), eager)


@pytest.mark.parametrize("stages", [1, 3, 5, 7, 10])
@pytest.mark.parametrize("n", [7, 128, 700, 2500, 1_000_000])
def test_stages_are_equal_intervals_of_whole_steps(n, stages):
    """In float32, as training computes the share: step `k` of `n` is in stage `floor(k stages / n)`."""
    k = np.arange(n) if n < 10_000 else np.unique(np.concatenate([np.arange(0, n, 997), n // stages * np.arange(stages)]))
    k = np.unique(np.clip(np.concatenate([k, -(-np.arange(stages) * n // stages), k - 1]), 0, n - 1))
    found = jax.jit(lambda k: jax.vmap(lambda p: times.stage(p, stages))(k.astype(jnp.float32) / n))(jnp.asarray(k, jnp.int32))
    np.testing.assert_array_equal(found, k * stages // n)


def test_the_last_stage_is_that_of_the_end():
    assert [int(times.stage(jnp.float32(share), 4)) for share in (0, 0.24, 0.25, 0.75, 1)] == [0, 0, 1, 3, 3]


# Continuous times


def moments_of_logit_normal(mean: float, std: float):
    """Means of one, of the smaller and of the larger of two, by quadrature on the normal density."""
    z, h = np.linspace(-8, 8, 4001, retstep=True)
    density, value = np.exp(-(z**2) / 2) / np.sqrt(2 * np.pi) * h, 1 / (1 + np.exp(-(mean + std * z)))
    below = np.cumsum(density)
    return [np.sum(density * weight * value) for weight in (1, 2 * (1 - below), 2 * below)]


@pytest.mark.parametrize(("mean", "std"), [(0.4, 1.0), (1.0, 1.4)])
def test_logit_normal_times_have_their_mean(key, mean, std):
    t = np.asarray(times.logit_normal(key, 16384, mean=mean, std=std))
    assert abs(t.mean() - moments_of_logit_normal(mean, std)[0]) < 4.5 * t.std() / 128
    assert t.mean() > 0.55


def test_ordered_pairs_are_the_smaller_and_the_larger_of_two_times(key):
    t, d = (np.asarray(a, np.float64) for a in times.logit_normal_pairs(key, 16384))
    _, smaller, larger = moments_of_logit_normal(0.4, 1.0)
    assert abs(t.mean() - smaller) < 4.5 * t.std() / 128
    assert abs((t + d).mean() - larger) < 4.5 * (t + d).std() / 128
    assert d.min() >= 0 and (t + d).max() < 1
    t = np.asarray(times.uniform(key, 16384), np.float64)
    assert abs(t.mean() - 1 / 2) < 4.5 * t.std() / 128 and abs(t.var() - 1 / 12) < 0.002 and t.min() >= 0 and t.max() < 1
    t, d = (np.asarray(a, np.float64) for a in times.uniform_pairs(key, 16384))
    assert abs(t.mean() - 1 / 3) < 4.5 * t.std() / 128 and abs(d.mean() - 1 / 3) < 4.5 * d.std() / 128


def test_gaps_are_logit_normal_and_starts_uniform_on_the_rest(key):
    t, d = (np.asarray(a, np.float64) for a in times.logit_normal_gaps(key, 16384, mean=0.4))
    assert abs(d.mean() - moments_of_logit_normal(0.4, 1.0)[0]) < 4.5 * d.std() / 128
    part = t / (1 - d)
    assert abs(part.mean() - 0.5) < 4.5 * part.std() / 128 and part.max() <= 1 + 1e-6


@pytest.mark.parametrize(("mean", "std"), [(-0.5, 1.0), (0.4, 0.3)])
def test_pairs_and_gaps_are_of_the_mean_and_spread_that_are_asked_for(key, mean, std):
    one, smaller, larger = moments_of_logit_normal(mean, std)
    t, d = (np.asarray(a, np.float64) for a in times.logit_normal_pairs(key, 16384, mean=mean, std=std))
    assert abs(t.mean() - smaller) < 4.5 * t.std() / 128 and abs((t + d).mean() - larger) < 4.5 * (t + d).std() / 128
    _, d = (np.asarray(a, np.float64) for a in times.logit_normal_gaps(key, 16384, mean=mean, std=std))
    narrow = np.mean(np.abs(d - one) < 0.1)
    assert abs(d.mean() - one) < 4.5 * d.std() / 128 and (narrow > 0.75) == (std < 1)


def test_a_share_of_pairs_goes_to_the_end(key):
    plain, _ = times.to_end(times.uniform_pairs, 0.0)(key, 4096, jnp.float32)
    t, d = times.to_end(times.uniform_pairs, 0.25)(key, 4096, jnp.float32)
    np.testing.assert_array_equal(t, plain)
    share = np.mean(np.asarray(d == 1 - t))
    assert abs(share - 0.25) < 5 * np.sqrt(0.25 * 0.75 / 4096)


def test_schedules_of_alpha_run_from_end_to_end():
    progress = jnp.linspace(0, 1, 101)
    fall = np.asarray(jax.vmap(times.sigmoid_fall)(progress))
    assert fall[0] > 0.99 and np.all(np.diff(fall) <= 0)
    np.testing.assert_allclose(fall[50], 0.5, rtol=1e-5)
    assert np.all(fall[75:] == 0) and np.all(fall[:70] >= 0.005)
    found = jax.vmap(times.exponential_fall)(jnp.array([0, 0.5, 1.0]))
    np.testing.assert_allclose(found, [0.1, np.sqrt(0.1 * 0.002), 0.002], rtol=1e-5)


def test_ends_of_their_own_distribution_are_never_before_the_start(key):
    t, d = times.logit_normal_ends(key, 20_000, mean=0.6, std=1.6, end_mean=4.0, end_std=1.6)
    logit = lambda p: np.log(np.asarray(p, float)) - np.log1p(-np.asarray(p, float))  # noqa: E731
    assert abs(logit(t).mean() - 0.6) < 0.05 and abs(logit(t).std() - 1.6) < 0.05
    stays = np.asarray(d) == 0
    # P(N(4, 1.6) < N(0.6, 1.6)): the end would be first.
    assert abs(stays.mean() - 0.0665) < 0.01 and (np.asarray(d) >= 0).all()
    assert abs(np.median(logit((t + d)[~stays].clip(max=1 - 6e-8))) - 4) < 0.4


def test_the_share_to_the_data_falls_as_arccos_and_stays_at_none():
    found = jax.vmap(lambda p: times.arccos_fall(p, until=0.1))(jnp.array([0.0, 0.05, 0.1, 0.7]))
    np.testing.assert_allclose(found, [1, np.arccos(0.5) / (np.pi / 2), 0, 0], atol=1e-6)


def test_steps_start_anywhere_and_end_anywhere_after(key):
    t, d = (np.asarray(a, np.float64) for a in times.uniform_steps(key, 16384))
    share = d / (1 - t)
    assert all(abs(a.mean() - 1 / 2) < 4.5 * a.std() / 128 and abs(a.var() - 1 / 12) < 0.002 for a in (t, share))
    assert abs(np.corrcoef(t, share)[0, 1]) < 4.5 / 128 and (t + d).max() <= 1
