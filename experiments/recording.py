"""What a run says while it trains: progress bar, metrics, pictures, on disk, in TensorBoard and in W&B."""

import pathlib
from typing import Any

import numpy as np
from tqdm import tqdm

from config import Config
from eqx_shortcut import distributed, log
from eqx_shortcut.train import TrainState
from eqx_shortcut.types import Metrics
from saving import Tolerance


def loggers(folder: pathlib.Path, config: Config, record: dict[str, Any], *, start: int) -> list[log.Logger]:
    """Where the metrics of a run go that continues after step `start`."""
    found: list[log.Logger] = [log.JsonLines(folder / "metrics.jsonl", start=start)]
    if config.tensorboard:
        found.append(log.TensorBoard(folder, start=start))
    if config.wandb.enabled:
        name = f"{folder.parent.name}-{folder.name}"
        w = config.wandb
        found.append(log.WandB(folder, project=w.project, name=name, offline=w.offline, config=record))
    return found


class Recorder:
    """Progress bar, metrics and pictures of a run. Metrics are read one step late, so that the device never waits for them.

    Speed goes to the bar, TensorBoard and W&B: metrics.jsonl, which holds nothing that depends on the clock, goes without.
    """

    def __init__(self, folder: pathlib.Path, config: Config, record: dict[str, Any], *, start: int, share: float | None):
        self._rate, self._every = config.optimizer.rate(config.steps), config.log_every
        self._until, self._batch, self._share = config.steps, config.batch, share
        self._loggers = loggers(folder, config, record, start=start) if distributed.first() else []
        silent = start >= config.steps or not distributed.first()
        self._bar = tqdm(initial=start, total=config.steps, unit="step", dynamic_ncols=True, disable=silent)
        self._last: tuple[int, Metrics] | None = None
        self._pending: tuple[int, Metrics] | None = None
        self._added: log.Values = {}
        self._tolerated = Tolerance(f"metrics to {folder}")

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self.flush()
        self._last = step, metrics
        if step % self._every == 0 or step == self._until:
            self._pending = step, metrics
        self._bar.update()

    def add(self, values: log.Values, pictures: dict[str, pathlib.Path]) -> None:
        """Puts numbers into the record of the last step, which is made if there is none yet, and pictures beside it."""
        assert self._last is not None
        if values:
            self._pending = self._last
            self._added |= values
        with self._tolerated():
            for logger in self._loggers:
                for name, path in pictures.items():
                    logger.write_image(self._last[0], name, path)

    def flush(self) -> None:
        """Writes what is waiting to be written."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in metrics.items()} | {"lr": float(np.asarray(self._rate(step - 1)))}
        values, self._added = values | self._added, {}
        speed = (self._bar.format_dict["rate"] or 0) * self._batch
        text, speeds = f"loss {values['loss']:.4f}, {speed:,.0f} images/s", {"images_per_second": speed}
        if self._share is not None:
            text, speeds = f"{text}, {speed * self._share:.0%} MFU", speeds | {"mfu": speed * self._share}
        with self._tolerated():
            for logger in self._loggers:
                logger.write(step, values if isinstance(logger, log.JsonLines) else values | speeds)
        self._bar.set_postfix_str(text)

    def keep(self) -> None:
        """Makes sure that what was written is there after a crash, as the checkpoint that follows is."""
        self.flush()
        with self._tolerated():
            for logger in self._loggers:
                logger.flush()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()
        self._bar.close()
        for logger in self._loggers:
            with self._tolerated():
                logger.close()
