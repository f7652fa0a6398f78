"""How many examples a second does the data pipeline yield, from 16 KB rows in memory and from a cache of latents?"""

import json

import grain
import jax
import numpy as np
import pytest

from eqx_shortcut.data import Images, Latents, batches, read_latents
from eqx_shortcut.data.latents import MANIFEST, Shard
from eqx_shortcut.data.pipeline import WholeBatches
from rates import measured

SIZE, READ = 256, 40
pytestmark = pytest.mark.benchmark(group=f"data, {READ} batches of {SIZE}")


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
    benchmark.pedantic(drain, (iterator,), rounds=5, warmup_rounds=1)
    measured(benchmark, images=READ * SIZE)


def test_to_device(benchmark, images: Images) -> None:
    iterator = batches(images, SIZE, seed=0, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    benchmark.pedantic(drain, (iterator,), rounds=5, warmup_rounds=1)
    measured(benchmark, images=READ * SIZE)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Latents:
    """Moments of both sides of 8,192 latents of 32 x 32 x 4, 32 KB each, in two mapped files."""
    folder = tmp_path_factory.mktemp("cache")
    (folder / "train").mkdir()
    moments = np.random.default_rng(0).normal(size=(4096, 2, 2, 32, 32, 4)).astype(np.float16)
    for i in range(2):
        Shard(folder / "train", i).write(moments, np.zeros(4096, np.int32))
    manifest = {
        "moments": moments.shape[1:],
        "shard": 4096,
        "classes": 1,
        "autoencoder": {"scale": 1.0, "shift": 0.0},
        "parts": {"train": {"count": 8192, "shards": ["", ""]}},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return read_latents(folder, "train")


def test_latents(benchmark, latents: Latents) -> None:
    source = WholeBatches(latents, SIZE, seed=0)
    iterator = iter(grain.MapDataset.source(source).to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=4)))
    drain(iterator)  # with the warm-up every row twice: the files are then in memory
    benchmark.pedantic(drain, (iterator,), rounds=5, warmup_rounds=1)
    measured(benchmark, images=READ * SIZE)
