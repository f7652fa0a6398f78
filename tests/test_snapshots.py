"""Averages of any width from a run's snapshots: those that all weights of the run give."""

import pathlib

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import ema
from eqx_shortcut.checkpoint import CheckpointError
from eqx_shortcut.objectives import Networks
from eqx_shortcut.snapshots import open_snapshots, reconstructed
from eqx_shortcut.train import TrainState

KEPT, STEPS = (0.05, 0.1), 48
WALK = np.cumsum(np.random.default_rng(0).standard_normal((STEPS, 200)), axis=0).astype(np.float32)
LIKE = {"w": jax.ShapeDtypeStruct((200,), jnp.float32)}
# No step changed the weights in these.
SKIPPED = 2


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, pathlib.Path]:
    """Run folders with snapshots of a random walk of weights and its averages, every 6 and every 2 steps."""
    folders = {every: tmp_path_factory.mktemp(f"every-{every}") for every in (6, 2)}
    snapshots = {every: open_snapshots(folder, {}) for every, folder in folders.items()}
    weights, zero = {"w": jnp.zeros(200)}, jnp.int32(0)
    averages = tuple(ema.PowerAverage(weights, width) for width in KEPT)
    networks, key = Networks(weights, weights), jax.random.key(0)
    update = eqx.filter_jit(lambda averages, w, t: tuple(a.updated({"w": w}, t) for a in averages))
    for t, w in enumerate(WALK, start=1):
        averages = update(averages, w, jnp.int32(t))
        state = TrainState(jnp.int32(t + SKIPPED), key, networks, {}, jnp.int32(SKIPPED), zero, averages)
        for every in folders:
            if t % every == 0:
                snapshots[every].save(state, {})
    for each in snapshots.values():
        each.close()
    return folders


def expected(width: float, t: int) -> np.ndarray:
    n, i = ema.gamma_of(width) + 1, np.arange(1, t + 1)
    return ((i**n - (i - 1) ** n) / t**n) @ WALK[:t].astype(np.float64)


def distance(run: pathlib.Path, width: float) -> float:
    """Of what is made to the average of all weights, over what the weights move in an average's width."""
    found, step = reconstructed(run, LIKE, width, KEPT)
    assert step == STEPS + SKIPPED and found["w"].dtype == jnp.float32
    return float(np.linalg.norm(found["w"] - expected(width, STEPS)) / np.linalg.norm(WALK[-1] - expected(0.1, STEPS)))


@pytest.mark.parametrize("t", [24, 48])
def test_a_kept_width_comes_back_as_it_was_to_half_precision(runs, t):
    found, step = reconstructed(runs[6], LIKE, 0.1, KEPT, t + SKIPPED)
    assert step == t + SKIPPED
    np.testing.assert_allclose(found["w"], expected(0.1, t), rtol=2**-11, atol=1e-4)


@pytest.mark.parametrize("width", [0.04, 0.07, 0.15])
def test_other_widths_are_those_of_all_weights_the_nearer_the_more_snapshots(runs, width):
    few, many = distance(runs[6], width), distance(runs[2], width)
    assert many < 4e-3 and many < 0.5 * few < 0.1


def test_what_cannot_be_made_is_refused_in_one_sentence(runs, tmp_path):
    with pytest.raises(
        CheckpointError, match=r"no snapshots of averages in .*: train with --averages.sigma-rel 0.05 0.1, or use"
    ):
        reconstructed(tmp_path, LIKE, 0.1, KEPT)
    with pytest.raises(CheckpointError, match=r"no snapshot 15 in .*: there are 8, 14, 20"):
        reconstructed(runs[6], LIKE, 0.1, KEPT, 15)
    with pytest.raises(ValueError, match=r"sigma_rel 0.01 cannot be made of 8 snapshots of 0.05, 0.1 up to step 50: "):
        reconstructed(runs[6], LIKE, 0.01, KEPT)
    with pytest.raises(ValueError, match=r"sigma_rel 0.5 is the width of no average"):
        reconstructed(runs[6], LIKE, 0.5, KEPT)
