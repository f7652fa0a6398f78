"""How many images a second do the networks of features read, by size of image? Weights are random, bytes are 8-bit."""

import equinox as eqx
import jax
import numpy as np
import pytest

from eqx_shortcut.evaluate.networks import NetworkFeatures
from eqx_shortcut.evaluate.preprocess import EFFICIENTNET, TF
from eqx_shortcut.pretrained.efficientnet import EfficientNetLite0
from eqx_shortcut.pretrained.inception import Inception
from rates import measured

BATCH = 16
NETWORKS = {"inception": (Inception, TF), "efficientnet": (EfficientNetLite0, EFFICIENTNET)}


@pytest.fixture(scope="module", params=NETWORKS)
def features(request: pytest.FixtureRequest) -> NetworkFeatures:
    network, preprocessing = NETWORKS[request.param]
    return NetworkFeatures(request.param, {}, eqx.filter_jit(network)(key=jax.random.key(0)), preprocessing, BATCH)


@pytest.mark.benchmark(group=f"features of {BATCH} images")
@pytest.mark.parametrize("side", [32, pytest.param(256, marks=pytest.mark.slow)])
def test_images_a_second(benchmark, features: NetworkFeatures, side: int) -> None:
    images = np.random.default_rng(0).uniform(-1, 1, (BATCH, side, side, 3)).astype(np.float32)
    benchmark.pedantic(features, (images,), rounds=3, warmup_rounds=1)
    measured(benchmark, images=BATCH)
