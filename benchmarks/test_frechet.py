"""How long does the Frechet distance take, by dimension, against the matrix square root of scipy?"""

import numpy as np
import pytest
import scipy.linalg

from eqx_shortcut.evaluate import Moments, frechet_distance

pytestmark = pytest.mark.benchmark(group="Frechet distance, by dimension")


@pytest.fixture(params=[64, 512, pytest.param(2048, marks=pytest.mark.slow)])
def pair(request: pytest.FixtureRequest) -> tuple[Moments, Moments]:
    rng = np.random.default_rng(0)
    draw = [rng.standard_normal((2 * request.param, request.param)) for _ in range(2)]
    return Moments.of(draw[0]), Moments.of(1.5 * draw[1])


def test_frechet_distance(benchmark, pair: tuple[Moments, Moments]) -> None:
    benchmark.pedantic(frechet_distance, pair, rounds=3)


@pytest.mark.slow
def test_frechet_distance_of_a_tenth_as_many_vectors_as_features(benchmark) -> None:
    draws = np.random.default_rng(0).standard_normal((2, 205, 2048))
    benchmark.pedantic(frechet_distance, tuple(map(Moments.of, draws)), rounds=3)


def test_scipy_sqrtm(benchmark, pair: tuple[Moments, Moments]) -> None:
    a, b = (moments.covariance for moments in pair)
    benchmark.pedantic(lambda: scipy.linalg.sqrtm(a @ b), rounds=1)
