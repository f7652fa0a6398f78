"""Moments and the distances between them: laws, closed forms, and the numbers recorded from the original code."""

import pathlib

import numpy as np
import pytest
import scipy.linalg

from eqx_shortcut.evaluate import Moments, frechet_distance, moments, nearest_distances, pixels

GOLDEN = [pathlib.Path(__file__).parents[1] / "golden", pathlib.Path(__file__).parents[3] / "shared" / "golden"]
RNG = np.random.default_rng(0)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


def gaussian(mean: np.ndarray, covariance: np.ndarray) -> Moments:
    """Moments whose mean and covariance are those given."""
    return Moments(1001, np.asarray(mean, np.float64), np.asarray(covariance, np.float64) * 1000)


def normal(dim: int, seed: int) -> Moments:
    rng = np.random.default_rng(seed)
    root = rng.standard_normal((dim, 2 * dim))
    return gaussian(rng.standard_normal(dim), root @ root.T / dim)


@pytest.mark.parametrize("cuts", [[], [50], [1, 2, 3], [99], [13, 26, 39, 52, 65, 78, 91]])
@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_merged_moments_are_those_of_one_pass(cuts, offset):
    vectors = RNG.standard_normal((100, 7)) + offset
    whole, merged = Moments.of(vectors), moments(np.split(vectors, cuts))
    assert merged.count == whole.count == 100
    assert relative(merged.mean, whole.mean) < 1e-12 and relative(merged.scatter, whole.scatter) < 1e-12 * max(1, offset)


def test_merging_commutes_and_associates():
    a, b, c = (Moments.of(RNG.standard_normal((n, 3)) * n) for n in (5, 50, 2))
    for one, other in ((a + b, b + a), ((a + b) + c, a + (b + c))):
        assert one.count == other.count
        assert relative(one.mean, other.mean) < 1e-12 and relative(one.scatter, other.scatter) < 1e-12


def test_the_covariance_is_numpys():
    vectors = RNG.standard_normal((30, 4))
    np.testing.assert_allclose(Moments.of(vectors).covariance, np.cov(vectors, rowvar=False), rtol=1e-12)


def test_images_are_flattened_in_double_precision():
    images = RNG.uniform(-1, 1, (6, 2, 3, 1)).astype(np.float32)
    found = moments(map(pixels, [images[:4], images[4:]]))
    np.testing.assert_allclose(found.mean, images.reshape(6, 6).mean(0, np.float64), rtol=1e-12)
    assert pixels(images).dtype == np.float64


def test_distance_of_diagonal_gaussians_is_the_closed_form():
    """`|m - n|^2 + sum (a - b)^2` for standard deviations `a, b`."""
    m, n, a, b = RNG.standard_normal((2, 12)).tolist() + RNG.uniform(0.1, 3, (2, 12)).tolist()
    expected = np.sum(np.subtract(m, n) ** 2) + np.sum(np.subtract(a, b) ** 2)
    found = frechet_distance(gaussian(np.array(m), np.diag(np.square(a))), gaussian(np.array(n), np.diag(np.square(b))))
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_distance_is_the_formula_with_a_matrix_root(seed):
    a, b = normal(20, seed), normal(20, seed + 100)
    root = np.real(np.asarray(scipy.linalg.sqrtm(a.covariance @ b.covariance)))
    expected = np.sum((a.mean - b.mean) ** 2) + np.trace(a.covariance + b.covariance - 2 * root)
    np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)


@pytest.mark.parametrize("samples", [2, 10, 40, 1000])
def test_a_set_is_at_no_distance_from_itself_even_if_singular(samples):
    a = Moments.of(RNG.standard_normal((samples, 40)))
    assert abs(frechet_distance(a, a)) < 1e-9


def test_distance_is_symmetric_and_not_negative():
    for samples in (5, 500):
        a, b = Moments.of(RNG.standard_normal((samples, 30))), normal(30, 1)
        assert frechet_distance(a, b) > 0
        np.testing.assert_allclose(frechet_distance(a, b), frechet_distance(b, a), rtol=1e-9)


def test_a_shift_adds_its_square_and_a_rotation_changes_nothing():
    a, b = normal(10, 0), normal(10, 1)
    shifted = Moments(b.count, b.mean + np.arange(10.0), b.scatter)
    gap = np.sum((a.mean - shifted.mean) ** 2) - np.sum((a.mean - b.mean) ** 2)
    np.testing.assert_allclose(frechet_distance(a, shifted) - frechet_distance(a, b), gap, rtol=1e-9)
    q = np.linalg.qr(RNG.standard_normal((10, 10)))[0]
    turned = [Moments(m.count, q @ m.mean, q @ m.scatter @ q.T) for m in (a, b)]
    np.testing.assert_allclose(frechet_distance(*turned), frechet_distance(a, b), rtol=1e-9)


def recorded() -> dict[str, np.ndarray]:
    file = next((folder / "fid.npz" for folder in GOLDEN if (folder / "fid.npz").exists()), None)
    if file is None:
        pytest.skip("no recorded values of the original code")
    with np.load(file) as data:
        return {name: data[name] for name in data.files if name.startswith("fid/")}


@pytest.mark.parametrize("dim", [16, 64])
def test_distance_is_that_of_the_original_code(dim):
    """The original adds 1e-6 to the diagonals inside the root, and there only."""
    values = recorded()
    if f"fid/{dim}/value_float64" not in values:
        pytest.skip(f"no recorded value of dimension {dim}: found {sorted(values)}")
    seed, sets = int(values["fid/seed"]), []
    for j in range(2):
        rng = np.random.default_rng([seed, 4, dim, j])
        root = rng.standard_normal((dim, 2 * dim))
        sets.append((0.3 * rng.standard_normal(dim), root @ root.T / (2 * dim) * (1 + 0.5 * j)))
    (mean_a, a), (mean_b, b) = sets
    inside = [gaussian(np.zeros(dim), sigma + 1e-6 * np.eye(dim)) for sigma in (a, b)]
    # frechet_distance of the padded covariances is the trace with the offset everywhere; 2e-6 dim takes it out again.
    found = frechet_distance(*inside) - 2e-6 * dim + np.sum((mean_a - mean_b) ** 2)
    np.testing.assert_allclose(found, values[f"fid/{dim}/value_float64"], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_counted(bad):
    vectors = np.zeros((5, 3))
    vectors[1, 0] = vectors[1, 2] = vectors[4, 1] = bad
    with pytest.raises(ValueError, match="2 of 5 vectors hold NaN or infinity"):
        moments([np.zeros((2, 3)), vectors])


def test_moments_of_other_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"4 and of 5 features cannot be compared: use the same features"):
        frechet_distance(normal(4, 0), normal(5, 0))
    with pytest.raises(ValueError, match=r"1 and of 5 features"):
        moments([np.zeros((2, 1)), np.zeros((2, 5))])


def test_sets_too_small_are_refused():
    with pytest.raises(ValueError, match="no vectors to take moments of"):
        moments([])
    with pytest.raises(ValueError, match="no vectors to take moments of"):
        moments([np.zeros((0, 3))])
    one = moments([np.zeros((1, 3))])
    with pytest.raises(ValueError, match="at least 2 vectors, found 1"):
        frechet_distance(one, one)


def test_an_empty_batch_changes_nothing():
    vectors = RNG.standard_normal((5, 3))
    found = moments([vectors[:0], vectors, vectors[:0]])
    assert found.count == 5
    np.testing.assert_array_equal(found.scatter, Moments.of(vectors).scatter)


def test_nearest_distances_are_those_of_brute_force():
    queries, references = RNG.standard_normal((17, 2, 3, 1)), RNG.standard_normal((23, 2, 3, 1))
    pairs = np.sqrt(((queries[:, None] - references[None]) ** 2).sum(axis=(2, 3, 4)))
    np.testing.assert_allclose(nearest_distances(queries, references), pairs.min(axis=1), rtol=1e-9)
    assert np.all(nearest_distances(references, references) == 0)
