"""How long do saving and restoring a checkpoint take, by size of network? Weights, average and both moments are written."""

import pathlib

import jax
import pytest

from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.models.dit import preset
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import TrainState, init_state

pytestmark = pytest.mark.benchmark(group="checkpoint, by network")


@pytest.fixture(scope="module", params=["tiny", pytest.param("S/2", marks=pytest.mark.slow)])
def state(request: pytest.FixtureRequest) -> TrainState:
    config = preset(request.param)
    return init_state(lambda k: config.build((32, 32, 4), 10, key=k), AdamW().build(1000), jax.random.key(0))


def report(benchmark, state: TrainState) -> None:
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array) and leaf.ndim)
    if benchmark.stats is not None:
        benchmark.extra_info["MiB/s"] = size / 2**20 / benchmark.stats.stats.median


def test_save(benchmark, state: TrainState, tmp_path_factory: pytest.TempPathFactory) -> None:
    def fresh():
        return (Checkpoints(tmp_path_factory.mktemp("save")),), {}

    benchmark.pedantic(lambda checkpoints: checkpoints.save(state, {}, wait=True), setup=fresh, rounds=3)
    report(benchmark, state)


def test_restore(benchmark, state: TrainState, tmp_path: pathlib.Path) -> None:
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {}, wait=True)
    benchmark.pedantic(lambda: jax.block_until_ready(checkpoints.restore(state)), rounds=3)
    report(benchmark, state)
