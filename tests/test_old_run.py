"""A run folder that an earlier version left, stopped after step 4 of 6: it opens, samples, and goes on as it did then.

tests/golden/old_run.tar.xz holds the folder, tests/golden/old_run.npz what that version made of it. Recorded at 0.1.0 on
Python 3.11.7 with JAX 0.10.2 by the command below, checkpoints and averages of step 6 taken away afterwards.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Literal

import jax
import numpy as np
import pytest

import eqx_shortcut
import quick
from eqx_shortcut.sampling import Sampling

ROOT = pathlib.Path(__file__).parents[1]
GOLDEN = ROOT / "tests" / "golden"
COMMAND = (
    "--network.hidden 8 --network.depth 1 --network.heads 2 --batch 16 --objective.steps 4 --objective.bootstrap-every 2 "
    "--optimizer.lr 1e-2 --optimizer.warmup 1 --steps 6 --checkpoint.every 4 --sample-every 1000 --log-every 1 "
    "--quality.steps --figures.batches 0 --averages.sigma-rel 0.1 --averages.every 2 --name shortcut "
    "--objective.bootstrap-weight 1"  # as all were then
).split()
Weights = Literal["ema", "online"] | float
# Weights, steps and guidance of four samples each.
SAMPLED: list[tuple[Weights, int, float]] = [
    ("ema", 1, 1.0),
    ("ema", 4, 1.0),
    ("ema", 4, 2.0),
    ("online", 1, 1.0),
    ("online", 4, 1.0),
    (0.1, 1, 1.0),
]


def named(weights: Weights, steps: int, guidance: float) -> str:
    """The name of a recording of samples."""
    return f"samples/{weights}/{steps}/{guidance:g}"


def sampled(run: pathlib.Path, weights: Weights, steps: int, guidance: float) -> np.ndarray:
    """Four samples of a run, whose labels are 0 to 3."""
    model = eqx_shortcut.load(run, weights=weights)
    return np.asarray(eqx_shortcut.sample(model, jax.random.key(0), 4, Sampling(steps, guidance=guidance)))


def lines(run: pathlib.Path) -> list[dict[str, float]]:
    """The records of a run's metrics."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(GOLDEN / "old_run.npz") as file:
        return dict(file)


@pytest.fixture
def old(tmp_path: pathlib.Path) -> pathlib.Path:
    """The folder, where its command looks for it."""
    shutil.unpack_archive(GOLDEN / "old_run.tar.xz", tmp_path / "runs" / "digits", filter="data")
    return tmp_path / "runs" / "digits" / "shortcut"


def test_it_opens_at_its_last_step(old):
    model = eqx_shortcut.load(old)
    assert (model.step, model.shape, model.classes, model.labelled) == (4, (8, 8, 1), 10, True)


@pytest.mark.parametrize(("weights", "steps", "guidance"), SAMPLED)
def test_it_samples_what_it_sampled(old, recorded, weights, steps, guidance):
    expected = recorded[named(weights, steps, guidance)]
    found = sampled(old, weights, steps, guidance)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_its_command_takes_the_steps_that_were_left(old, recorded):
    """Losses, norms and rates of all six steps, and the weights after them."""
    line = [sys.executable, str(ROOT / "experiments" / "digits.py"), *COMMAND]
    env = os.environ | {"XLA_FLAGS": quick.FLAGS, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, cwd=old.parents[2], env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found, names = lines(old), [str(name) for name in recorded["metrics/names"]]
    assert [sorted(line) for line in found] == [names] * 6
    np.testing.assert_allclose([[line[name] for name in names] for line in found], recorded["metrics/values"], rtol=1e-5)
    for weights in ("ema", "online", 0.1):
        expected = recorded["after/" + named(weights, 4, 1.0)]
        np.testing.assert_allclose(sampled(old, weights, 4, 1.0), expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())
