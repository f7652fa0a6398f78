"""How long does sampling take, by number of steps, with and without guidance?"""

import dataclasses

import jax
import pytest

from eqx_shortcut.models.dit import preset
from eqx_shortcut.objectives import Shortcut
from eqx_shortcut.sampling import Sampling
from eqx_shortcut.trained import Trained, sample
from eqx_shortcut.types import Batch


@pytest.mark.parametrize("guidance", [1.0, 1.5])
@pytest.mark.parametrize("steps", [1, 4, 128])
def test_sample(benchmark, batch: Batch, key: jax.Array, steps: int, guidance: float, peak: float) -> None:
    count, height, width, channels = batch.x.shape
    shape = (height, width, channels)
    network = dataclasses.replace(preset("tiny"), precision="float32").build(shape, 10, key=key)
    model = Trained(network, Shortcut(), shape, 10, step=0)

    def run():
        jax.block_until_ready(sample(model, key, count, Sampling(steps, guidance=guidance)))

    run()
    benchmark(run)
    benchmark.extra_info["images_per_second"] = count / benchmark.stats["median"]
    work = count * steps * network.config.flops(shape) * (1 if guidance == 1 else 2)
    benchmark.extra_info["share_of_peak"] = work / benchmark.stats["median"] / peak
