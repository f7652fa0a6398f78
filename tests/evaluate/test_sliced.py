"""The sliced Wasserstein distance: closed forms, scipy's on a line, laws of a distance."""

import numpy as np
import pytest
from scipy.stats import norm, wasserstein_distance

from eqx_shortcut.evaluate import half_circle, sliced_wasserstein

RNG = np.random.default_rng(0)


def test_equal_sets_are_at_zero_in_any_order_and_repeated():
    x = RNG.standard_normal((40, 2))
    for same in (x, RNG.permutation(x), np.repeat(x, 3, axis=0)):
        assert sliced_wasserstein(same, x, half_circle(7)) < 1e-12


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_translation_costs_its_mean_projection(order):
    x, shift, directions = RNG.standard_normal((30, 3)), np.array([1.0, -2.0, 0.5]), RNG.standard_normal((11, 3))
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    expected = np.mean(np.abs(unit @ shift) ** order) ** (1 / order)
    assert sliced_wasserstein(x + shift, x, directions, order=order) == pytest.approx(expected, rel=1e-12)
    if order == 2:  # over even directions the mean of the squared cosine is one half
        assert sliced_wasserstein(x[:, :2] + shift[:2], x[:, :2], half_circle(9)) == pytest.approx(np.sqrt(5 / 2), rel=1e-12)


def test_normal_distributions_have_the_distance_of_means_and_deviations():
    """`W_2^2 = (m - m')^2 + (s - s')^2` on a line; the sets are quantiles of each, of two counts."""
    x, y = (m + s * norm.ppf((np.arange(n) + 0.5) / n)[:, None] for n, m, s in ((20_000, 0.0, 1.0), (15_000, 0.7, 2.0)))
    assert sliced_wasserstein(x, y, np.ones((1, 1))) == pytest.approx(np.sqrt(0.7**2 + 1), rel=1e-3)


def test_unequal_counts_are_compared_by_quantiles():
    x, y, directions = RNG.standard_normal((21, 4)), RNG.standard_normal((35, 4)) + 0.3, RNG.standard_normal((5, 4))
    unit = directions / np.linalg.norm(directions, axis=1, keepdims=True)
    expected = np.mean([wasserstein_distance(x @ u, y @ u) for u in unit])
    assert sliced_wasserstein(x, y, directions, order=1) == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(y, x, 3 * directions, order=1) == pytest.approx(expected, rel=1e-12)
    # As the second order on copies that make the counts equal, where it is a mean of squares.
    both = np.repeat(x, 5, axis=0) @ unit.T, np.repeat(y, 3, axis=0) @ unit.T
    squares = (np.sort(both[0], axis=0) - np.sort(both[1], axis=0)) ** 2
    assert sliced_wasserstein(x, y, directions) == pytest.approx(np.sqrt(squares.mean()), rel=1e-12)


def test_sets_that_cannot_be_compared_are_refused():
    x, even = RNG.standard_normal((9, 2)), half_circle(4)
    with pytest.raises(ValueError, match="vectors of 2 and of 1 features"):
        sliced_wasserstein(x, x[:, :1], even)
    with pytest.raises(ValueError, match="vectors of 2 and of 3 features"):
        sliced_wasserstein(x, x, RNG.standard_normal((4, 3)))
    with pytest.raises(ValueError, match="0 samples, 9 references and 4 directions"):
        sliced_wasserstein(x[:0], x, even)
    with pytest.raises(ValueError, match="a direction of length 0"):
        sliced_wasserstein(x, x, even - even[:1])
    with pytest.raises(ValueError, match="1 of 9 vectors hold NaN"):
        sliced_wasserstein(np.where(np.arange(9)[:, None] == 2, np.nan, x), x, even)
