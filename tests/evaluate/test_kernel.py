"""Kernel distances: laws, their definitions pair by pair, and torch-fidelity."""

import itertools

import numpy as np
import pytest

from eqx_shortcut.evaluate import kernel_distance, maximum_mean_discrepancy, pairwise
from fidelity import torch_fidelity

RNG = np.random.default_rng(0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows, so that small sets fill several, the last one in part."""
    monkeypatch.setattr(pairwise, "ROWS", 7)


def unbiased(x: np.ndarray, y: np.ndarray) -> float:
    """The U-statistic of Binkowski et al. (2018), of sets of one size."""
    n = len(x)
    xx, yy, xy = ((a @ b.T / a.shape[1] + 1) ** 3 for a, b in ((x, x), (y, y), (x, y)))
    return (xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)) / (n * (n - 1)) - 2 * xy.mean()


def test_the_kernel_distance_is_its_definition():
    x, y = RNG.standard_normal((30, 6)), RNG.standard_normal((40, 6)) * 1.3 + 0.5
    rng = np.random.default_rng(4)
    subsets = [(rng.choice(30, 20, replace=False), rng.choice(40, 20, replace=False)) for _ in range(5)]
    expected = [unbiased(x[i], y[j]) for i, j in subsets]
    found = kernel_distance(x, y, np.random.default_rng(4), subsets=5, size=20)
    np.testing.assert_allclose(found, [np.mean(expected), np.std(expected)], rtol=1e-10)


def test_the_kernel_distance_of_halves_of_one_set_is_zero_in_the_mean():
    """Over all ways to halve a set, which is exact for the unbiased form and no other."""
    vectors, found = np.random.default_rng(5).standard_normal((8, 3)), []
    for half in itertools.combinations(range(8), 4):
        rest = sorted(set(range(8)) - set(half))
        found.append(kernel_distance(vectors[list(half)], vectors[rest], RNG, subsets=1, size=4)[0])
    assert len(found) == 70 and np.std(found) > 0.1
    assert abs(np.mean(found)) < 1e-12


def test_the_kernel_distance_of_sets_apart_is_that_of_their_means():
    """One vector, repeated, on each side: k(x, x) + k(y, y) - 2 k(x, y), and no spread over subsets."""
    x, y = np.ones((10, 4)), np.full((10, 4), 3.0)
    mean, deviation = kernel_distance(x, y, RNG, subsets=3, size=5)
    assert mean == pytest.approx(2**3 + 10**3 - 2 * 4**3, rel=1e-12) and deviation == pytest.approx(0, abs=1e-9)


def test_subsets_are_drawn_by_the_seed_alone():
    x, y = RNG.standard_normal((2, 30, 4))
    one, same, other = (kernel_distance(x, y, np.random.default_rng(seed), subsets=3, size=9) for seed in (1, 1, 2))
    assert one == same != other


def test_all_rows_in_any_order_give_one_value():
    x, y = RNG.standard_normal((2, 20, 4))
    mean, deviation = kernel_distance(x, y, RNG, subsets=4, size=20)
    assert deviation < 1e-12 * abs(mean)
    assert mean == pytest.approx(unbiased(x, y), rel=1e-10)


@pytest.mark.filterwarnings("ignore")
def test_the_kernel_distance_is_that_of_torch_fidelity():
    torch = pytest.importorskip("torch", reason="pip install 'eqx_shortcut[parity]'")
    metric = torch_fidelity("metric_kid")
    x, y = RNG.standard_normal((60, 16)), RNG.standard_normal((50, 16)) + 0.4
    expected = metric.kid_features_to_metric(
        torch.from_numpy(x), torch.from_numpy(y), kid_subsets=7, kid_subset_size=40, rng_seed=2020, verbose=False
    )
    found = kernel_distance(x, y, np.random.RandomState(2020), subsets=7, size=40)
    names = ("kernel_inception_distance_mean", "kernel_inception_distance_std")
    np.testing.assert_allclose(found, [expected[name] for name in names], rtol=1e-6)


def test_the_discrepancy_is_its_definition(small_blocks):
    x, y = RNG.standard_normal((30, 6)) + 20, RNG.standard_normal((25, 6)) * 2 + 20
    squared = (np.square(a[:, None] - b).sum(axis=-1) for a, b in ((x, x), (y, y), (x, y)))
    xx, yy, xy = (np.exp(-distances / (2 * 3**2)).mean() for distances in squared)
    found = maximum_mean_discrepancy(x, y, sigma=3, scale=7)
    np.testing.assert_allclose(found, 7 * (xx + yy - 2 * xy), rtol=1e-9)
    assert maximum_mean_discrepancy(x, y) == pytest.approx(maximum_mean_discrepancy(x, y, sigma=10, scale=1000))


def test_the_discrepancy_of_a_set_with_itself_is_zero_and_of_others_positive(small_blocks):
    x = RNG.standard_normal((30, 6))
    assert abs(maximum_mean_discrepancy(x, x.copy())) < 1e-10
    assert maximum_mean_discrepancy(x, x + 0.1) > 1e-3


def test_the_discrepancy_of_points_is_the_closed_form():
    x, y = np.zeros((3, 2)), np.full((4, 2), 10.0)
    np.testing.assert_allclose(maximum_mean_discrepancy(x, y), 2000 * (1 - np.exp(-1)), rtol=1e-12)


def test_the_discrepancy_is_invariant_under_order_shifts_and_rotations():
    x, y = RNG.standard_normal((2, 25, 4))
    turn = np.linalg.qr(RNG.standard_normal((4, 4)))[0]
    expected = maximum_mean_discrepancy(x, y)
    np.testing.assert_allclose(maximum_mean_discrepancy(RNG.permutation(x), y[::-1]), expected, rtol=1e-9)
    np.testing.assert_allclose(maximum_mean_discrepancy(x @ turn + 5, y @ turn + 5), expected, rtol=1e-9)


def test_sets_that_cannot_be_compared_are_refused():
    x, rng = RNG.standard_normal((9, 3)), np.random.default_rng(0)
    bad = np.where(np.arange(9)[:, None] == 2, np.inf, x)
    with pytest.raises(ValueError, match="100 subsets of 10 cannot be drawn from 9 samples and 9 references"):
        kernel_distance(x, x, rng, size=10)
    with pytest.raises(ValueError, match="0 subsets of 5 cannot be drawn"):
        kernel_distance(x, x, rng, subsets=0, size=5)
    for measure in (maximum_mean_discrepancy, lambda x, y: kernel_distance(x, y, rng, size=5)):
        with pytest.raises(ValueError, match="3 and of 2 features"):
            measure(x, x[:, :2])
        with pytest.raises(ValueError, match="1 of 9 vectors hold NaN or infinity"):
            measure(x, bad)
