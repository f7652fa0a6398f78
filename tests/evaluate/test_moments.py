"""Moments, however they were gathered, are those of one pass."""

import pathlib
import re
import subprocess
import sys
import tracemalloc

import jax
import numpy as np
import pytest

from eqx_shortcut.evaluate import Moments, frechet_distance, moments, pixels
from eqx_shortcut.evaluate.moments import check_size
from eqx_shortcut.sharding import batch_sharding, make_mesh

RNG = np.random.default_rng(0)


def relative(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a - b).max() / np.abs(b).max())


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
    found = Moments.of(vectors)
    np.testing.assert_allclose(found.covariance, np.cov(vectors, rowvar=False), rtol=1e-12)
    np.testing.assert_array_equal(found.gaussian.covariance, found.covariance)
    np.testing.assert_array_equal(found.gaussian.mean, found.mean)


def test_the_order_of_vectors_does_not_matter():
    vectors = RNG.standard_normal((30, 4))
    found, shuffled = moments([vectors]), moments(np.split(RNG.permutation(vectors), 3))
    assert relative(shuffled.mean, found.mean) < 1e-12 and relative(shuffled.scatter, found.scatter) < 1e-12


def test_an_affine_map_of_the_vectors_is_one_of_their_moments():
    vectors, matrix, shift = RNG.standard_normal((30, 4)), RNG.standard_normal((4, 3)), RNG.standard_normal(3)
    found, mapped = Moments.of(vectors), Moments.of(vectors @ matrix + shift)
    np.testing.assert_allclose(mapped.mean, found.mean @ matrix + shift, rtol=1e-12)
    np.testing.assert_allclose(mapped.scatter, matrix.T @ found.scatter @ matrix, rtol=1e-11)


def test_images_are_flattened_in_double_precision():
    images = RNG.uniform(-1, 1, (6, 2, 3, 1)).astype(np.float32)
    found = moments(map(pixels, [images[:4], images[4:]]))
    np.testing.assert_allclose(found.mean, images.reshape(6, 6).mean(0, np.float64), rtol=1e-12)
    assert pixels(images).dtype == np.float64


def test_a_distance_of_vectors_on_eight_devices_is_that_of_one_array():
    vectors, others = RNG.standard_normal((2, 64, 6)).astype(np.float32)
    sharded = jax.device_put(vectors, batch_sharding(make_mesh()))
    shards = [np.asarray(shard.data) for shard in sharded.addressable_shards]
    assert len(shards) == 8 and {len(shard) for shard in shards} == {8}
    other = Moments.of(others)
    found, whole = (frechet_distance(part, other) for part in (moments(shards), Moments.of(vectors)))
    np.testing.assert_allclose(found, whole, rtol=1e-10)


PART = """
import sys
import tracemalloc
import numpy as np
from eqx_shortcut.evaluate import moments
rank, path = int(sys.argv[1]), sys.argv[2]
rows = np.random.default_rng(7).standard_normal((96, 6)).astype(np.float32)[rank::4]
found = moments(np.split(rows, 2))
np.savez(path, count=found.count, mean=found.mean, scatter=found.scatter)
"""
"""What a process does with its quarter of the rows."""


@pytest.mark.slow
def test_a_distance_of_four_processes_is_that_of_one(tmp_path: pathlib.Path):
    files = [tmp_path / f"{rank}.npz" for rank in range(4)]
    lines = [[sys.executable, "-c", PART, str(rank), str(file)] for rank, file in enumerate(files)]
    assert [process.wait(timeout=120) for process in [subprocess.Popen(line) for line in lines]] == [0] * 4
    assert_whole(moments_of_files(files))


def test_a_distance_of_four_parts_kept_in_files_is_that_of_one_pass(tmp_path: pathlib.Path):
    files = []
    for rank in range(4):
        part = Moments.of(rows()[rank::4])
        files.append(tmp_path / f"{rank}.npz")
        np.savez(files[-1], count=part.count, mean=part.mean, scatter=part.scatter)
    assert_whole(moments_of_files(files))


def rows() -> np.ndarray:
    return np.random.default_rng(7).standard_normal((96, 6)).astype(np.float32)


def moments_of_files(files: list[pathlib.Path]) -> Moments:
    parts = []
    for file in files:
        with np.load(file) as stored:
            parts.append(Moments(int(stored["count"]), stored["mean"], stored["scatter"]))
    first, *rest = parts
    return sum(rest, start=first)


def assert_whole(merged: Moments) -> None:
    whole, other = Moments.of(rows()), Moments.of(RNG.standard_normal((50, 6)))
    assert merged.count == 96
    np.testing.assert_allclose(frechet_distance(merged, other), frechet_distance(whole, other), rtol=1e-10)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused_and_counted(bad):
    vectors = np.zeros((5, 3))
    vectors[1, 0] = vectors[1, 2] = vectors[4, 1] = bad
    with pytest.raises(ValueError, match="2 of 5 vectors hold NaN or infinity"):
        moments([np.zeros((2, 3)), vectors])


def test_moments_of_other_dimensions_are_refused():
    with pytest.raises(ValueError, match=r"1 and of 5 features"):
        moments([np.zeros((2, 1)), np.zeros((2, 5))])


def test_sets_too_small_are_refused():
    with pytest.raises(ValueError, match="no vectors to take moments of"):
        moments([])
    with pytest.raises(ValueError, match="no vectors to take moments of"):
        moments([np.zeros((0, 3))])
    with pytest.raises(ValueError, match="at least 2 vectors, found 1"):
        _ = moments([np.zeros((1, 3))]).covariance


def test_an_empty_batch_changes_nothing():
    vectors = RNG.standard_normal((5, 3))
    found = moments([vectors[:0], vectors, vectors[:0]])
    assert found.count == 5
    np.testing.assert_array_equal(found.scatter, Moments.of(vectors).scatter)


@pytest.mark.parametrize(("features", "size"), [(256 * 256 * 3, "288.0"), (128 * 128 * 3, "18.0"), (32_769, "8.0")])
def test_a_covariance_that_no_machine_holds_is_refused_before_memory_is_asked_for(features, size):
    unmade = np.broadcast_to(np.float32(0), (1000, features))  # of one number in memory
    tracemalloc.start()
    with pytest.raises(
        ValueError, match=rf"{features:,} features takes {re.escape(size)} GiB, more than 8: use the features of"
    ):
        moments([unmade])
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_the_largest_covariance_is_that_of_eight_gibibytes():
    check_size(32_768)
