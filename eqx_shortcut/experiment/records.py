"""Records of a run while it trains: progress bar, metrics, pictures, norms by layer, a trace; a spike ends the run."""

import json
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from .. import distributed, flops, sharding, storage
from ..checkpoint import CheckpointError, Checkpoints
from ..progress import bar
from ..train import Diverged, Step, TrainState
from ..types import Metrics
from . import health, log
from .config import profiled
from .events import Event
from .run import Run
from .saving import Tolerance
from .spikes import NAMES, Spike, Spikes


def loggers(run: Run, *, start: int) -> list[log.Logger]:
    """The loggers of a run that continues after step `start`."""
    config, folder = run.config, run.folder
    found: list[log.Logger] = [log.JsonLines(folder / "metrics.jsonl", start=start)]
    if config.tensorboard:
        found.append(log.TensorBoard(folder, start=start))
    if config.wandb.enabled:
        name = f"{folder.parent.name}-{folder.name}"
        w = config.wandb
        found.append(log.WandB(folder, project=w.project, name=name, offline=w.offline, config=run.record))
    return found


class Recorder(Event):
    """Progress bar, metrics and pictures of a run. Metrics are read one step late, so that the device never waits for them.

    Speed goes to the bar, TensorBoard and W&B: metrics.jsonl, which holds nothing that depends on the clock, goes without.
    """

    def __init__(self, run: Run, state: TrainState):
        config, start = run.config, int(state.step)
        self._rate, self._every = config.optimizer.rate(config.steps), config.log_every
        self._until, self._batch, self._share = config.steps, config.batch, share_of_peak(run, state)
        self._noun = run.data.train.noun
        self._loggers = loggers(run, start=start) if distributed.is_main_process() else []
        silent = start >= config.steps or not distributed.is_main_process()
        self._bar = bar(initial=start, total=config.steps, unit="step", quiet=silent)
        self._last: tuple[int, Metrics] | None = None
        self._pending: tuple[int, Metrics] | None = None
        self._added: log.Values = {}
        self._tolerated = Tolerance(f"metrics to {run.folder}")

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self._write()
        if self._last is None:
            self._bar.unpause()  # the first step was compiled until now, which no later one is
        self._last = step, metrics
        if step % self._every == 0 or step == self._until:
            self._pending = step, metrics
        self._bar.update()

    def add(self, values: log.Values, pictures: dict[str, storage.Path]) -> None:
        """Adds numbers to the record of the last step (a new one if there is none) and logs pictures beside it."""
        assert self._last is not None
        if values:
            self._pending = self._last
            self._added |= values
        with self._tolerated():
            for logger in self._loggers:
                for name, path in pictures.items():
                    logger.write_image(self._last[0], name, path)

    def flush(self) -> None:
        self._write()
        with self._tolerated():
            for logger in self._loggers:
                logger.flush()

    def close(self) -> None:
        self._write()
        self._bar.close()
        for logger in self._loggers:
            with self._tolerated():
                logger.close()

    def _write(self) -> None:
        """Writes the metrics of the last step that was logged."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in metrics.items()} | {"lr": float(np.asarray(self._rate(step - 1)))}
        values, self._added = values | self._added, {}
        speed = (self._bar.format_dict["rate"] or 0) * self._batch
        text, speeds = f"loss {values['loss']:.4f}, {speed:,.0f} {self._noun}/s", {"images_per_second": speed}
        if self._share is not None:
            text, speeds = f"{text}, {speed * self._share:.0%} MFU", speeds | {"mfu": speed * self._share}
        with self._tolerated():
            for logger in self._loggers:
                logger.write(step, values if isinstance(logger, log.JsonLines) else values | speeds)
        self._bar.set_postfix_str(text, refresh=False)


def share_of_peak(run: Run, state: TrainState) -> float | None:
    """Model operations of an image over what the devices can do in a second (MFU at an image a second); None if unknown."""
    limit, batch = flops.peak(jax.devices()[0]), run.config.batch
    if limit is None:
        return None
    work = flops.of_step(run.config.objective, state.networks, batch, run.data.train.shape)
    return work / batch / (limit * jax.device_count())


def layers_of(run: Run) -> Callable[[TrainState, Any], dict[str, health.Layers]]:
    """The function from a state and a batch to the layers of the run's next step."""
    return health.make_layers(
        run.config.objective,
        run.tx,
        prepare=run.prepare,
        steps=run.config.steps,
        accumulate=run.config.accumulate,
        replicate=lambda tree: sharding.replicate(tree, run.mesh),
    )


class Norms(Event):
    """Every `health.norms` steps writes the norms of weights (before the step), gradient and update by layer to norms.jsonl.

    They are read from the device when the next step is under way, so that it does not wait.
    """

    def __init__(self, run: Run, *, start: int):
        self._every, self._step, self._tolerated = run.config.health.norms, start, Tolerance(f"norms to {run.folder}")
        self._found: dict[str, health.Layers] | None = None
        self._file = log.Logger()
        if self._every is not None:
            self._measure = layers_of(run)
            if distributed.is_main_process():
                self._file = log.JsonLines(run.folder / "norms.jsonl", start=start)

    def watching(self, step: Step) -> Step:
        """The same step, which measures its state first where that is due: afterwards the state is consumed."""

        def watched(state: TrainState, raw: Any) -> tuple[TrainState, Metrics]:
            self._step += 1
            if self._every is not None and self._step % self._every == 0:
                self._found = self._measure(state, raw)
            return step(state, raw)

        return watched

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        found, self._found = self._found, None
        if found is None:
            return
        norms = {
            f"{part}/{layer}": np.asarray(statistics.norm).tolist()
            for part in ("weights", "gradient", "update")
            for layer, statistics in found[part].items()
        }
        with self._tolerated():
            self._file.write(step, norms)

    def flush(self) -> None:
        with self._tolerated():
            self._file.flush()

    def close(self) -> None:
        with self._tolerated():
            self._file.close()


class SpikeWatch(Event):
    """Ends a run at a spike: writes the state there beside the run, and says what was seen and how to look at it.

    Metrics are read one step late, so that the device never waits for them. Raises Diverged.
    """

    def __init__(self, run: Run, checkpoints: Checkpoints, position: Callable[[], dict[str, Any]]):
        self._run, self._checkpoints, self._position = run, checkpoints, position
        self._factor = run.config.health.spike
        self._spikes = Spikes(self._factor or 1, run.config.health.patience)
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
        folder, record = self._run.folder / "spike", self._run.record
        try:
            evidence = Checkpoints(folder / "checkpoints", keep=1, config=record)
            evidence.remove_after(-1)  # of an earlier spike
            storage.write(folder / "config.json", json.dumps(record, indent=1))
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


class Profile(Event):
    """Traces steps `A:B` into `folder`, waiting for the device before and after them; None traces nothing. Closed, it stops.

    Says so where the run, from `start` to `until`, does not come to step A. Raises ValueError if the folder is not on this
    machine, where alone JAX writes traces.
    """

    def __init__(self, folder: storage.Path, steps: str | None, *, start: int, until: int):
        self._folder, self._tracing = folder, False
        self._first, self._last = profiled(steps) if steps else (0, 0)
        if steps and storage.is_remote(folder):
            raise ValueError(f"--profile {steps}: {folder} is not on this machine: use a local --runs")
        if steps and not start < self._first <= until:
            print(f"note: --profile {steps} traces nothing: this is steps {start + 1} to {until} of the run")
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
