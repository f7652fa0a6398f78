"""A trace of a few steps of a run, for TensorBoard's profiler or XProf."""

import jax

from config import profiled
from eqx_shortcut import storage
from eqx_shortcut.train import TrainState
from eqx_shortcut.types import Metrics


class Profile:
    """Traces steps `A:B` into `folder`, waiting for the device before and after them; None traces nothing. Closed, it stops.

    Raises ValueError if the folder is not on this machine, where alone JAX writes traces.
    """

    def __init__(self, folder: storage.Path, steps: str | None, *, start: int):
        self._folder, self._tracing = folder, False
        self._first, self._last = profiled(steps) if steps else (0, 0)
        if steps and storage.is_remote(folder):
            raise ValueError(f"--profile {steps}: {folder} is not on this machine: use a local --runs")
        self._begin(start)

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if step in (self._first - 1, self._last):
            jax.block_until_ready(metrics)
        if step == self._last:
            self.close()
        self._begin(step)

    def _begin(self, done: int) -> None:
        if done == self._first - 1:
            jax.profiler.start_trace(str(self._folder))
            self._tracing = True

    def close(self) -> None:
        """Writes the trace, if one was begun."""
        if self._tracing:
            jax.profiler.stop_trace()
        self._tracing = False
