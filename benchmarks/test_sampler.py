"""How long does sampling take, by number of steps, with and without guidance?"""

import dataclasses

import jax
import pytest

from eqx_shortcut.models.dit import preset
from eqx_shortcut.objectives import Shortcut
from eqx_shortcut.sampling import Sampling
from eqx_shortcut.trained import Trained, sample
from eqx_shortcut.types import Batch
from rates import measured


@pytest.mark.parametrize(("steps", "guidance"), [(1, 1.0), (4, 1.0), (128, 1.0), (4, 1.5)])
def test_sample(benchmark, batch: Batch, key: jax.Array, steps: int, guidance: float, peak: float) -> None:
    benchmark.group = f"sampling, tiny, {len(batch.x)} of {batch.x.shape[1:]}"
    count, height, width, channels = batch.x.shape
    shape = (height, width, channels)
    network = dataclasses.replace(preset("tiny"), precision="float32").build(shape, 10, key=key)
    model = Trained(network, Shortcut(), shape, 10, step=0)

    def run():
        jax.block_until_ready(sample(model, key, count, Sampling(steps, guidance=guidance)))

    benchmark.pedantic(run, rounds=5, warmup_rounds=1)
    work = count * steps * network.config.flops(shape) * (1 if guidance == 1 else 2)
    measured(benchmark, images=count, work=work, peak=peak)
