"""The Frechet distance: laws, closed forms, and the numbers recorded from the original code."""

import pathlib

import numpy as np
import pytest
import scipy.linalg

from eqx_shortcut.evaluate import Gaussian, Moments, frechet_distance, moments
from eqx_shortcut.evaluate.frechet import _factor
from fidelity import torch_fidelity

GOLDEN = [pathlib.Path(__file__).parents[1] / "golden", pathlib.Path(__file__).parents[3] / "shared" / "golden"]
RNG = np.random.default_rng(0)


def normal(dim: int, seed: int) -> Gaussian:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((dim, 2 * dim))
    return Gaussian(rng.standard_normal(dim), root @ root.T / dim)


def test_distance_of_diagonal_gaussians_is_the_closed_form():
    """`|m - n|^2 + sum (a - b)^2` for standard deviations `a, b`."""
    m, n, a, b = [*RNG.standard_normal((2, 12)), *RNG.uniform(0.1, 3, (2, 12))]
    expected = np.sum((m - n) ** 2) + np.sum((a - b) ** 2)
    found = frechet_distance(Gaussian(m, np.diag(a**2)), Gaussian(n, np.diag(b**2)))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("zeros", [(0, 0), (40, 0), (40, 30), (63, 64)])
def test_distance_of_singular_gaussians_is_the_closed_form(zeros):
    """Variances along common axes, the last ones of one and the first ones of the other zero."""
    axes = np.linalg.qr(RNG.standard_normal((64, 64)))[0]
    a, b = RNG.uniform(0.1, 3, (2, 64))
    a[64 - zeros[0] :], b[: zeros[1]] = 0, 0
    gaussians = [Gaussian(np.zeros(64), (axes * deviations**2) @ axes.T) for deviations in (a, b)]
    np.testing.assert_allclose(frechet_distance(*gaussians), np.sum((a - b) ** 2), rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_distance_is_the_formula_with_a_matrix_root(seed):
    a, b = normal(20, seed), normal(20, seed + 100)
    root = np.real(np.asarray(scipy.linalg.sqrtm(a.covariance @ b.covariance)))
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)


@pytest.mark.parametrize(("rank", "seed"), [(24, 52), (36, 38)])
def test_a_covariance_stored_in_float32_loses_no_more_than_its_rounding(rank, seed):
    """Such covariances of low rank have negative eigenvalues, at which Cholesky's decomposition is 1e-5 off and more."""
    rng = np.random.default_rng([48, rank, seed])
    exact = np.cov(rng.standard_normal((rank + 1, 48)), rowvar=False)
    rounded = Gaussian(np.zeros(48), exact.astype(np.float32).astype(np.float64))
    assert np.linalg.eigvalsh(rounded.covariance)[0] < -1e-9
    factor = _factor(rounded.covariance)
    assert np.abs(factor @ factor.T - exact).max() < 1e-6 * np.abs(exact).max()
    assert abs(frechet_distance(rounded, rounded)) < 1e-9


@pytest.mark.parametrize(("samples", "dim"), [(2, 40), (10, 40), (40, 40), (1000, 40), (100, 2048)])
def test_a_set_is_at_no_distance_from_itself_even_if_singular(samples, dim):
    a = Moments.of(RNG.standard_normal((samples, dim)))
    assert abs(frechet_distance(a, a)) < 1e-9
    assert abs(frechet_distance(a, a.gaussian)) < 1e-9


def test_sets_of_one_repeated_vector_are_apart_by_its_square():
    a, b = (Moments.of(np.full((4, 3), value)) for value in (1.0, 3.0))
    assert frechet_distance(a, b) == 12
    c = Moments.of(RNG.standard_normal((9, 3)))
    np.testing.assert_allclose(frechet_distance(a, c), np.sum((1 - c.mean) ** 2) + np.trace(c.covariance), rtol=1e-12)


def test_distance_is_symmetric_and_not_negative():
    for samples in (5, 500):
        a, b = Moments.of(RNG.standard_normal((samples, 30))), normal(30, 1)
        assert frechet_distance(a, b) > 0
        np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-9)


def test_a_shift_adds_its_square_and_a_rotation_changes_nothing():
    a, b = normal(10, 0), normal(10, 1)
    shifted = Gaussian(b.mean + np.arange(10.0), b.covariance)
    gap = np.sum((a.mean - shifted.mean) ** 2) - np.sum((a.mean - b.mean) ** 2)
    np.testing.assert_allclose(frechet_distance(a, shifted) - frechet_distance(a, b), gap, rtol=1e-9)
    q = np.linalg.qr(RNG.standard_normal((10, 10)))[0]
    turned = [Gaussian(q @ g.mean, q @ g.covariance @ q.T) for g in (a, b)]
    np.testing.assert_allclose(frechet_distance(*turned), frechet_distance(a, b), rtol=1e-9)


def test_scaling_both_sets_scales_the_distance_by_the_square():
    x, y = RNG.standard_normal((2, 50, 8))
    once = frechet_distance(moments([x]), moments([y]))
    np.testing.assert_allclose(frechet_distance(moments([3 * x + 1]), moments([3 * y + 1])), 9 * once, rtol=1e-9)


def recorded() -> dict[str, np.ndarray]:
    file = next((folder / "fid.npz" for folder in GOLDEN if (folder / "fid.npz").exists()), None)
    if file is None:
        pytest.skip("no recorded values of the original code")
    with np.load(file) as data:
        return {name: data[name] for name in data.files if name.startswith("fid/")}


def padded_distance(a: Gaussian, b: Gaussian) -> float:
    """The original's distance, which adds 1e-6 to the diagonals inside the root and there only."""
    inside = [Gaussian(g.mean, g.covariance + 1e-6 * np.eye(len(g.mean))) for g in (a, b)]
    return frechet_distance(*inside) - 2e-6 * len(a.mean)


@pytest.mark.parametrize("dim", [16, 64, pytest.param(2048, marks=pytest.mark.slow)])
def test_distance_is_that_of_the_original_code(dim):
    values = recorded()
    if f"fid/{dim}/value_float64" not in values:
        pytest.skip(f"no recorded value of dimension {dim}: found {sorted(values)}")
    sets = []
    for j in range(2):
        rng = np.random.default_rng([int(values["fid/seed"]), 4, dim, j])
        root = rng.standard_normal((dim, 2 * dim))
        sets.append(Gaussian(0.3 * rng.standard_normal(dim), root @ root.T / (2 * dim) * (1 + 0.5 * j)))
    np.testing.assert_allclose(padded_distance(*sets), values[f"fid/{dim}/value_float64"], rtol=1e-8)
    np.testing.assert_allclose(np.trace(sets[0].covariance), values[f"fid/{dim}/trace0"], rtol=1e-8)
    if f"fid/{dim}/lowrank_acts" in values:
        few = Moments.of(values[f"fid/{dim}/lowrank_acts"]).gaussian
        # Recorded in float32.
        np.testing.assert_allclose(padded_distance(few, sets[1]), values[f"fid/{dim}/lowrank_value"], rtol=1e-6)
    assert abs(frechet_distance(sets[0], sets[0])) < 1e-6


@pytest.mark.filterwarnings("ignore")
def test_distance_is_that_of_torch_fidelity():
    metric = torch_fidelity("metric_fid")
    x, y = RNG.standard_normal((80, 12)), RNG.standard_normal((90, 12)) * 1.4 + 0.2
    stored = [{"mu": vectors.mean(axis=0), "sigma": np.cov(vectors, rowvar=False)} for vectors in (x, y)]
    expected = metric.fid_statistics_to_metric(*stored, verbose=False)["frechet_inception_distance"]
    np.testing.assert_allclose(frechet_distance(Moments.of(x), Moments.of(y)), expected, rtol=1e-6)


def test_other_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"4 and of 5 features cannot be compared: use the same features"):
        frechet_distance(normal(4, 0), normal(5, 0))


def test_one_vector_has_no_distance():
    one = moments([np.zeros((1, 3))])
    with pytest.raises(ValueError, match="at least 2 vectors, found 1"):
        frechet_distance(one, one)
