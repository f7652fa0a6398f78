"""How many examples a second does the data pipeline yield, from 16 KB rows in memory?"""

import grain
import jax
import numpy as np
import pytest

from eqx_shortcut.data import Images, batches
from eqx_shortcut.data.pipeline import WholeBatches

SIZE, READ = 256, 40


@pytest.fixture(scope="module")
def images() -> Images:
    pixels = np.random.default_rng(0).integers(0, 256, (20_000, 64, 64, 4), np.uint8)
    return Images(pixels, np.zeros(len(pixels), np.int32), classes=1)


def drain(iterator) -> None:
    for _ in range(READ):
        next(iterator)


def test_host(benchmark, images: Images) -> None:
    source = WholeBatches(images, SIZE, seed=0)
    iterator = iter(grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
    benchmark(drain, iterator)
    benchmark.extra_info["examples_per_second"] = READ * SIZE / benchmark.stats["median"]


def test_to_device(benchmark, images: Images) -> None:
    iterator = batches(images, SIZE, seed=0, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    benchmark(drain, iterator)
    benchmark.extra_info["examples_per_second"] = READ * SIZE / benchmark.stats["median"]
