"""What is watched while a run trains, without changing it: norms by layer, and spikes of loss and gradient."""

import json
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from config import Config
from eqx_shortcut import distributed, health, log, sharding, storage
from eqx_shortcut.checkpoint import CheckpointError, Checkpoints
from eqx_shortcut.data import prepare
from eqx_shortcut.spikes import NAMES, Spike, Spikes
from eqx_shortcut.train import Diverged, Step, TrainState
from eqx_shortcut.types import Metrics
from examples import Data
from saving import Tolerance

Measured = Callable[[TrainState, Any], dict[str, health.Layers]]


def layers_of(config: Config, data: Data, mesh: jax.sharding.Mesh) -> Measured:
    """The function from a state and a batch to the layers of the run's next step."""
    return health.make_layers(
        config.objective,
        config.optimizer.build(config.steps),
        prepare=prepare(data.rows, mirror=data.mirror, labelled=not config.unconditional),
        steps=config.steps,
        accumulate=config.accumulate,
        replicate=lambda tree: sharding.replicate(tree, mesh),
    )


class Norms:
    """Every so many steps the norms of weights (before the step), gradient and update by layer, as a line of norms.jsonl.

    They are read when the step after them is under way, so that the device has work meanwhile.
    """

    def __init__(self, folder: pathlib.Path, config: Config, data: Data, mesh: jax.sharding.Mesh, *, start: int):
        self._every, self._step, self._tolerated = config.health.norms, start, Tolerance(f"norms to {folder}")
        self._found: dict[str, health.Layers] | None = None
        self._file = None
        if self._every is not None:
            self._measure = layers_of(config, data, mesh)
            if distributed.first():
                self._file = log.JsonLines(folder / "norms.jsonl", start=start)

    def watching(self, step: Step) -> Step:
        """The step, which consumes its state, with a look at that state before it where one is due."""

        def watched(state: TrainState, raw: Any) -> tuple[TrainState, Metrics]:
            self._step += 1
            if self._every is not None and self._step % self._every == 0:
                self._found = self._measure(state, raw)
            return step(state, raw)

        return watched

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        found, self._found = self._found, None
        if found is None or self._file is None:
            return
        norms = {
            f"{part}/{layer}": np.asarray(statistics.norm).tolist()
            for part in ("weights", "gradient", "update")
            for layer, statistics in found[part].items()
        }
        with self._tolerated():
            self._file.write(step, norms)

    def keep(self) -> None:
        """Makes sure that what was written is there after a crash."""
        if self._file is not None:
            with self._tolerated():
                self._file.flush()

    def close(self) -> None:
        """Writes what is left."""
        if self._file is not None:
            with self._tolerated():
                self._file.close()


class SpikeWatch:
    """Ends a run at a spike: writes the state there beside the run, and says what was seen and how to look at it.

    Metrics are read one step late, so that the device never waits for them. Raises Diverged.
    """

    def __init__(
        self,
        folder: pathlib.Path,
        config: Config,
        record: dict[str, Any],
        checkpoints: Checkpoints,
        position: Callable[[], dict[str, Any]],
    ):
        self._folder, self._factor, self._record = folder, config.health.spike, record
        self._checkpoints, self._position = checkpoints, position
        self._spikes = Spikes(self._factor or 1, config.health.patience)
        self._previous: tuple[int, Metrics] | None = None

    def sound(self) -> bool:
        """Whether the last step that was looked at was within its bounds."""
        return self._spikes.first is None

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        previous, self._previous = self._previous, (step, metrics)
        if self._factor is None or previous is None:
            return
        number, before = previous
        spike = self._spikes(number, {name: float(before[name]) for name in NAMES})
        if spike is not None:
            raise Diverged(self._sentence(spike, self._evidence(state)))

    def _evidence(self, state: TrainState) -> str:
        # A run folder of its own: nothing continues from this state unless it is asked to.
        folder = self._folder / "spike"
        try:
            evidence = Checkpoints(folder / "checkpoints", keep=1, config=self._record)
            storage.write(folder / "config.json", json.dumps(self._record, indent=1))
            evidence.save(state, self._position(), wait=True)
            evidence.close()
        except (OSError, CheckpointError):
            return f"the state after step {int(state.step)} could not be written"
        return f"the state after step {int(state.step)} is in {folder}"

    def _sentence(self, spike: Spike, evidence: str) -> str:
        sound = [step for step in self._checkpoints.steps() if step < spike.first]
        last = f"checkpoint {sound[-1]} is the newest from before" if sound else "there is no checkpoint from before"
        what = f"more than {self._factor:g} times its median {spike.median:.4g}" if np.isfinite(spike.value) else "not finite"
        return (
            f"{spike.name} was {spike.value:.4g}, {what}, and out of bounds since step {spike.first} (seen at step "
            f"{spike.last}); {last}, {evidence}: the same command with --replay {spike.first} shows the layers of that step, "
            "with --health.spike None it goes on through it"
        )
