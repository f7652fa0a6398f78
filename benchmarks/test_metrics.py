"""How long do the metrics take that look at pairs of vectors, by the number of vectors, at Inception's 2048 features?"""

import numpy as np
import pytest

from eqx_shortcut.evaluate import inception_score, kernel_distance, maximum_mean_discrepancy, prdc

pytestmark = pytest.mark.benchmark(group="metrics of pairs, by vectors of 2,048 features")


@pytest.fixture(params=[1000, pytest.param(10_000, marks=pytest.mark.slow)])
def sets(request: pytest.FixtureRequest) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    samples, references = (rng.standard_normal((request.param, 2048), np.float32) for _ in range(2))
    return samples, references


def test_prdc(benchmark, sets: tuple[np.ndarray, np.ndarray]) -> None:
    benchmark.pedantic(prdc, sets, rounds=1)


def test_kernel_distance(benchmark, sets: tuple[np.ndarray, np.ndarray]) -> None:
    benchmark.pedantic(lambda: kernel_distance(*sets, np.random.default_rng(0)), rounds=1)


def test_maximum_mean_discrepancy(benchmark, sets: tuple[np.ndarray, np.ndarray]) -> None:
    benchmark.pedantic(maximum_mean_discrepancy, sets, rounds=1)


def test_inception_score(benchmark, sets: tuple[np.ndarray, np.ndarray]) -> None:
    benchmark.pedantic(inception_score, (sets[0][:, :1008],), rounds=1)
