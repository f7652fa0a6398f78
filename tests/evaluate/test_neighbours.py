"""Precision, recall, density, coverage and nearest distances: laws, brute force, and two other implementations."""

import contextlib
import io

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.neighbors import NearestNeighbors

from eqx_shortcut.evaluate import PRDC, nearest_distances, pairwise, prdc
from eqx_shortcut.evaluate.neighbours import _squared_radii
from eqx_shortcut.evaluate.pairwise import squared_distances
from fidelity import torch_fidelity

RNG = np.random.default_rng(0)


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of 7 rows, so that small sets fill several, the last one in part."""
    monkeypatch.setattr(pairwise, "ROWS", 7)


def two_sets() -> tuple[np.ndarray, np.ndarray]:
    """Overlapping sets of unequal size, of which every measure is well inside its bounds."""
    rng = np.random.default_rng(3)
    samples = np.concatenate([rng.standard_normal((60, 8)), rng.standard_normal((20, 8)) * 0.3 + 2.5]) + 0.3
    return samples.astype(np.float32), rng.standard_normal((90, 8)).astype(np.float32)


def brute_force(samples: np.ndarray, references: np.ndarray, k: int, density_k: int) -> PRDC:
    """The definitions, pair by pair, from exact differences."""

    def radii(vectors: np.ndarray, k: int) -> np.ndarray:
        others = cdist(vectors, vectors)
        np.fill_diagonal(others, np.inf)
        return np.sort(others, axis=1)[:, k - 1]

    across = cdist(references, samples)
    close = across < radii(references, density_k)[:, None]
    return PRDC(
        (across <= radii(references, k)[:, None]).any(axis=0).mean(),
        (across <= radii(samples, k)).any(axis=1).mean(),
        close.sum(axis=0).mean() / density_k,
        close.any(axis=1).mean(),
    )


@pytest.mark.parametrize(("k", "density_k"), [(3, 5), (5, 3), (1, 1), (4, 4)])
def test_all_four_are_their_definitions(small_blocks, k, density_k):
    samples, references = two_sets()
    expected = brute_force(samples.astype(float), references.astype(float), k, density_k)
    assert all(0.05 < value < 1.5 for value in expected)
    np.testing.assert_allclose(prdc(samples, references, k=k, density_k=density_k), expected, rtol=1e-12)


def test_neighbours_are_three_for_the_first_two_and_five_for_the_others():
    samples, references = two_sets()
    np.testing.assert_allclose(prdc(samples, references), brute_force(samples, references, 3, 5), rtol=1e-12)


@pytest.mark.parametrize("size", [5, 1000])
def test_blocks_change_nothing(monkeypatch, size):
    samples, references = two_sets()
    expected = prdc(samples, references)
    monkeypatch.setattr(pairwise, "ROWS", size)
    assert prdc(samples, references) == expected


def test_order_of_vectors_does_not_matter():
    samples, references = two_sets()
    found = prdc(RNG.permutation(samples), RNG.permutation(references))
    np.testing.assert_allclose(found, prdc(samples, references), rtol=1e-12)


def test_a_shift_of_both_sets_changes_nothing():
    samples, references = (vectors.astype(np.float64) for vectors in two_sets())
    assert prdc(samples + 1e8, references + 1e8) == prdc(samples, references)


def test_swapping_the_sets_swaps_precision_and_recall():
    a, b = two_sets()
    one, other = prdc(a, b), prdc(b, a)
    assert (one.precision, one.recall) == (other.recall, other.precision) and one.precision != one.recall


def test_a_set_against_itself_is_perfect():
    """Each ball holds its centre and, short of the surface, all but the last of its neighbours."""
    vectors = np.random.default_rng(1).integers(-50, 50, (40, 6)).astype(float)
    vectors -= vectors.mean(axis=0)
    found = prdc(vectors, vectors.copy())
    assert found.precision == found.recall == found.coverage == 1
    np.testing.assert_allclose(found.density, 1, atol=0.05)


def test_sets_of_one_distribution_are_near_perfect():
    a, b = np.random.default_rng(2).standard_normal((2, 600, 4))
    found = prdc(a, b)
    assert min(found.precision, found.recall, found.coverage) > 0.85 and abs(found.density - 1) < 0.1


def test_sets_far_apart_have_nothing_in_common():
    references = RNG.standard_normal((30, 5))
    assert prdc(references + 1000, references) == PRDC(0, 0, 0, 0)


def test_a_collapsed_set_is_precise_and_covers_little():
    references = RNG.standard_normal((50, 3))
    collapsed = np.repeat(references[:1], 40, axis=0)
    found = prdc(collapsed, references)
    assert found.precision == 1 and found.recall == 1 / 50
    assert 1 / 50 <= found.coverage < 0.5
    assert prdc(references, collapsed)[:2] == (found.recall, found.precision)


@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_copies_are_neighbours_at_no_distance_and_a_vector_is_not_its_own(small_blocks, offset):
    """Pairs of copies: the nearest other is the copy, exactly at 0, and the second nearest a stranger."""
    singles = RNG.standard_normal((15, 300)) + offset
    vectors = RNG.permutation(np.concatenate([singles, singles]))
    found = _squared_radii(vectors, vectors.mean(axis=0), 2)
    assert np.all(found[:, 0] == 0) and np.all(found[:, 1] > 1)
    assert np.all(_squared_radii(singles, singles.mean(axis=0), 1) > 1)


def test_neighbours_are_those_of_scikit_learn(small_blocks):
    vectors = RNG.standard_normal((40, 5))
    vectors[20:25] = vectors[:5]
    expected = NearestNeighbors(n_neighbors=4, algorithm="kd_tree").fit(vectors).kneighbors()[0]
    np.testing.assert_allclose(np.sqrt(_squared_radii(vectors, vectors.mean(axis=0), 4)), expected, rtol=1e-9, atol=1e-12)


def test_centred_distances_are_exact_to_rounding_far_from_the_origin():
    vectors = RNG.standard_normal((20, 50)) + 1e5
    a, b = vectors[:10] - vectors.mean(axis=0), vectors[10:] - vectors.mean(axis=0)
    np.testing.assert_allclose(squared_distances(a, b), cdist(vectors[:10], vectors[10:], "sqeuclidean"), rtol=1e-11)


def quiet(function, *args, **kwargs):
    with contextlib.redirect_stdout(io.StringIO()):
        return function(*args, **kwargs)


def test_all_four_are_those_of_the_authors_package():
    package = pytest.importorskip("prdc", reason="pip install 'eqx_shortcut[parity]'")
    samples, references = two_sets()
    for k in (3, 5):
        expected = quiet(package.compute_prdc, references, samples, nearest_k=k)
        found = prdc(samples, references, k=k, density_k=k)._asdict()
        np.testing.assert_allclose([found[name] for name in expected], list(expected.values()), rtol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_precision_and_recall_are_those_of_torch_fidelity():
    torch = pytest.importorskip("torch", reason="pip install 'eqx_shortcut[parity]'")
    metric = torch_fidelity("metric_prc")
    samples, references = two_sets()
    for part in (False, True):
        expected = metric.prc_features_to_metric(
            torch.from_numpy(samples), torch.from_numpy(references), save_cpu_ram=part, verbose=False
        )
        found = prdc(samples, references)
        np.testing.assert_allclose([found.precision, found.recall], [expected["precision"], expected["recall"]], rtol=1e-6)


@pytest.mark.parametrize(
    ("samples", "references", "k", "message"),
    [
        (np.zeros((9, 3)), np.zeros((9, 4)), 3, "3 and of 4 features"),
        (np.zeros((0, 3)), np.zeros((9, 3)), 3, "sets of 0 and of 9 vectors cannot be compared"),
        (np.full((9, 3), np.nan), np.zeros((9, 3)), 3, "9 of 9 vectors hold NaN"),
        (np.zeros((9, 3)), np.full((9, 3), -np.inf), 3, "9 of 9 vectors hold NaN"),
        (np.zeros((5, 3)), np.zeros((9, 3)), 3, "5 samples and 9 references do not all have 5 neighbours: use 6"),
        (np.zeros((9, 3)), np.zeros((9, 3)), 9, "do not all have 9 neighbours"),
        (np.zeros((9, 3)), np.zeros((9, 3)), 0, "k=0, density_k=5: use 1 or more"),
    ],
)
def test_sets_without_neighbours_are_refused(samples, references, k, message):
    with pytest.raises(ValueError, match=message):
        prdc(samples, references, k=k)


def test_nearest_distances_are_those_of_brute_force():
    queries, references = RNG.standard_normal((17, 2, 3, 1)), RNG.standard_normal((23, 2, 3, 1))
    pairs = np.sqrt(((queries[:, None] - references[None]) ** 2).sum(axis=(2, 3, 4)))
    np.testing.assert_allclose(nearest_distances(queries, references), pairs.min(axis=1), rtol=1e-9)
    assert np.all(nearest_distances(references, references) == 0)
