"""Programs that take turns in one process, so that whatever else the machine does falls on all of them alike."""

import contextlib
import io
import time
from typing import Any

import equinox as eqx
import jax
import numpy as np
import optax
from tqdm import trange

from eqx_shortcut import compilation
from eqx_shortcut.objectives import Objective
from eqx_shortcut.train import TrainState, make_update


def our_update(objective: Objective, tx: optax.GradientTransformation, state: TrainState, decay: float) -> tuple[Any, Any]:
    """The training step as a function of arrays and a batch, jitted as a run's, its state donated, and the state's arrays."""
    update = make_update(objective, tx, ema_decay=decay, steps=1000)
    arrays, static = eqx.partition(state, eqx.is_array)

    def step(arrays, batch):
        new, metrics = update((batch, lambda raw, _: raw), eqx.combine(arrays, static))
        return eqx.filter(new, eqx.is_array), metrics

    options: dict[str, Any] = {compilation.LEVEL: 1} if compilation.lowers_level() else {}
    return jax.jit(step, donate_argnums=0, compiler_options=options), arrays


def compiled(lower: Any) -> tuple[Any, dict[str, float]]:
    """The program, and what it cost to make and needs to run; the persistent cache is off."""
    start = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        traced = lower()
    lowered = time.perf_counter()
    cpu = time.process_time()
    program = traced.compile()
    memory = program.memory_analysis()
    return program, {
        "lower_s": lowered - start,
        "compile_s": time.perf_counter() - lowered,
        "compile_cpu_s": time.process_time() - cpu,
        "temporaries_mib": memory.temp_size_in_bytes / 2**20,
        "gflop": program.cost_analysis()["flops"] / 1e9,
    }


class Turn:
    """A program that is given its own last state."""

    def __init__(self, run: Any, state: Any):
        self._run, self._state = run, state

    def __call__(self) -> float:
        start = time.perf_counter()
        self._state, metrics = self._run(self._state)
        jax.block_until_ready((self._state, metrics))
        return time.perf_counter() - start


def alternate(rounds: int, *turns: Turn, first: int = 2) -> np.ndarray:
    """Seconds by round and program; each round goes the other way than the last. The `first` ones do not count."""
    times = np.zeros((first + rounds, len(turns)))
    for i in trange(first + rounds, desc="rounds", leave=False):
        for j in range(len(turns)) if i % 2 else reversed(range(len(turns))):
            times[i, j] = turns[j]()
    return times[first:]
