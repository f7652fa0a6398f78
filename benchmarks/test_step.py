"""How long does a training step take, by objective and by what the backward pass computes again?"""

import dataclasses

import jax
import pytest

from eqx_shortcut import flops
from eqx_shortcut.models.dit import preset
from eqx_shortcut.objectives import FlowMatching, Objective, Shortcut
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import init_state, make_step
from eqx_shortcut.types import Batch
from rates import measured

MORE = ("elementwise", 4), ("mlp", 1), ("block", 1)


@pytest.mark.parametrize("objective", [FlowMatching(steps=32), Shortcut(steps=32, bootstrap_every=2)], ids=["flow", "shortcut"])
@pytest.mark.parametrize(
    ("remat", "unroll"), [("elementwise", 1), ("none", 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in MORE)]
)
def test_step(benchmark, batch: Batch, key: jax.Array, objective: Objective, remat, unroll: int, peak: float) -> None:
    benchmark.group = f"training step, tiny, batch {len(batch.x)} of {batch.x.shape[1:]}"
    config = dataclasses.replace(preset("tiny"), precision="float32", remat=remat, unroll=unroll)
    tx = AdamW().build(1000)
    _, height, width, channels = batch.x.shape
    state = init_state(lambda k: config.build((height, width, channels), 10, key=k), tx, key, null=10)
    step = make_step(objective, tx, prepare=lambda raw, _: raw, ema_decay=0.999, steps=1000)
    work = flops.of_step(objective, state.networks, batch.x.shape[0], (height, width, channels))
    state, _ = step(state, batch)

    def one():
        nonlocal state
        state, metrics = step(state, batch)
        jax.block_until_ready(metrics)

    benchmark.pedantic(one, rounds=10, warmup_rounds=1)
    measured(benchmark, images=batch.x.shape[0], work=work, peak=peak)
