"""How many images a second does DiT-B/2 train on from latents encoded once, and from images that every step encodes?

The autoencoder is the Stable-Diffusion VAE's architecture with random weights, images are 256 x 256. Both steps take turns.
"""

import time

import equinox as eqx
import jax
import numpy as np
import pytest

from eqx_shortcut.data import Encoded, Images, Latents, Rows, prepare
from eqx_shortcut.models.dit import preset
from eqx_shortcut.objectives import FlowMatching
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.pretrained.sdvae import SDVAEConfig
from eqx_shortcut.train import Step, TrainState, init_state, make_step

BATCH, ROUNDS = 4, 5
CONFIG = preset("B/2")
TX = AdamW().build(1000)


@pytest.fixture(scope="module")
def images() -> Encoded:
    pixels = np.random.default_rng(0).integers(0, 256, (BATCH, 256, 256, 3), np.uint8)
    autoencoder = eqx.filter_jit(SDVAEConfig().build)(key=jax.random.key(1))
    return Encoded(Images(pixels, np.zeros(BATCH, np.int32), classes=1), autoencoder, size=1)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Latents:
    moments = np.random.default_rng(0).normal(size=(BATCH, 2, 2, 32, 32, 4)).astype(np.float16)
    return Latents(tmp_path_factory.mktemp("none"), "train", (moments,), np.zeros(BATCH, np.int32), 1, 0.18215, 0.0)


def stepping(data: Rows) -> Step:
    return make_step(FlowMatching(), TX, prepare=prepare(data, mirror=True), ema_decay=0.999, steps=1000)


def timed(step: Step, state: TrainState, data: Rows) -> tuple[TrainState, float]:
    raw = jax.tree.map(jax.numpy.asarray, data.rows(np.arange(BATCH)))
    start = time.perf_counter()
    state, metrics = step(state, raw)
    jax.block_until_ready(metrics)
    return state, time.perf_counter() - start


@pytest.mark.slow
@pytest.mark.benchmark(group="B/2 on cached latents and on images encoded each step")
def test_cache_against_encoding(benchmark, images: Encoded, latents: Latents) -> None:
    state = init_state(lambda k: CONFIG.build((32, 32, 4), 1, key=k), TX, jax.random.key(0), null=1)
    steps = {"cached": (stepping(latents), latents), "encoded": (stepping(images), images)}
    times: dict[str, list[float]] = {name: [] for name in steps}

    def both(state: TrainState) -> TrainState:
        for name, (step, data) in steps.items():
            state, seconds = timed(step, state, data)
            times[name].append(seconds)
        return state

    def rounds() -> None:
        run = both(state)  # compiles
        for seconds in times.values():
            seconds.clear()
        for _ in range(ROUNDS):
            run = both(run)

    benchmark.pedantic(rounds, rounds=1)
    ratios = np.array(times["encoded"]) / np.array(times["cached"])
    benchmark.extra_info |= {f"images/s, {name}": BATCH / np.median(times[name]) for name in times}
    benchmark.extra_info |= {"ratio, quartiles": np.percentile(ratios, [25, 50, 75]).tolist()}
