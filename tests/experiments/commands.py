"""Commands of the experiments run in this process, and what they leave."""

import contextlib
import io
import pathlib
import runpy
import sys

import equinox as eqx
import jax
import numpy as np
import pytest

from eqx_shortcut import cli, settings
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.train import TrainState, init_state
from scripts import EXPERIMENTS


def in_process(name: str, args: list[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of an experiment or a command of the package run here, on eight devices."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        path = EXPERIMENTS / f"{name}.py"
        patch.setattr(sys, "argv", [path.name, *args])
        try:
            runpy.run_path(str(path), run_name="__main__") if path.exists() else cli.main([name, *args])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
    return code, out.getvalue(), err.getvalue()


def snapshot(folder: pathlib.Path) -> dict[str, bytes]:
    """Every file by its path, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def state_like(folder: pathlib.Path) -> TrainState:
    """A state of the structure of those in a run's checkpoints."""
    record = settings.read(folder / "config.json")
    network, optimizer = settings.parse(record["network"]), settings.parse(record["optimizer"])
    shape, tx = tuple(record["shape"]), optimizer.build(record["steps"])
    return init_state(lambda key: network.build(shape, record["classes"], key=key), tx, jax.random.key(0))


def numbers(state: TrainState) -> list[np.ndarray]:
    """Every number of networks, optimizer, key and counters."""
    leaves = jax.tree.leaves(eqx.filter(state, eqx.is_array))
    keys = [jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key) for leaf in leaves]
    return [np.array(jax.random.key_data(a) if k else a) for a, k in zip(leaves, keys, strict=True)]


def final_state(folder: pathlib.Path) -> tuple[list[np.ndarray], dict, list[str]]:
    """The numbers of the newest checkpoint; the position in the data; the notes."""
    checkpoints = Checkpoints(folder / "checkpoints")
    found = checkpoints.restore(state_like(folder))
    checkpoints.close()
    assert found is not None
    return numbers(found[0]), *found[1:]
