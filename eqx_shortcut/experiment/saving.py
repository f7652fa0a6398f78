"""Checkpoints and records of a run in the making: when a checkpoint is due, and what happens where nothing can be written."""

import contextlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
from tqdm import tqdm

from .. import distributed
from ..checkpoint import CheckpointError, Checkpoints
from ..cli import Interrupted
from ..snapshots import open_snapshots
from ..train import Hook, TrainState
from ..types import Metrics
from .config import Checkpointing
from .events import Event, Events
from .run import Run

CLOCK_EVERY = 10
"""Steps between looks at the clock where several processes have to agree on it."""


def due(when: Checkpointing, step: int, until: int, *, minutes: float) -> bool:
    """Whether the state after `step` is to be written; `minutes` have passed since the last attempt.

    Of several processes the clock of the first counts.
    """
    by_steps = any(n is not None and step % n == 0 for n in (when.every, when.milestones))
    looked = when.minutes is not None and (jax.process_count() == 1 or step % CLOCK_EVERY == 0)
    by_clock = looked and distributed.broadcast(minutes >= (when.minutes or 0))
    return by_steps or step == until or by_clock


class Saver(Event):
    """Writes checkpoints when they are due, and closes them. One that cannot be written is a warning, unless it is the last.

    `before` is flushed first, so that the records up to a checkpoint are kept if it is. `sound` says whether the state is worth
    keeping: where it is not, the checkpoint waits until it is.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        position: Callable[[], dict[str, Any]],
        when: Checkpointing,
        *,
        until: int,
        before: Event,
        sound: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._checkpoints, self._position, self._when, self._until = checkpoints, position, when, until
        self._before, self._sound, self._clock = before, sound, clock
        self._tried, self._writing, self._owed = clock(), False, False

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if self._writing and not self._checkpoints.busy:
            self.flush()
        self._owed = self._owed or due(self._when, step, self._until, minutes=(self._clock() - self._tried) / 60)
        if step == self._until:
            self.last(state)
        elif self._owed and self._sound():
            self._start(state)

    def last(self, state: TrainState) -> None:
        """Writes the state and waits until it is there. Raises CheckpointError if it cannot be."""
        self.flush()
        self._before.flush()
        self._checkpoints.save(state, self._position(), wait=True)

    def flush(self) -> None:
        """Waits for what is being written, and warns if it could not be."""
        self._writing = False
        with self._tolerated():
            self._checkpoints.wait()

    def close(self) -> None:
        self.flush()
        self._checkpoints.close()

    def _start(self, state: TrainState) -> None:
        self.flush()
        self._before.flush()
        self._tried, self._owed = self._clock(), False
        with self._tolerated():
            self._checkpoints.save(state, self._position())
            self._writing = True

    @contextlib.contextmanager
    def _tolerated(self) -> Iterator[None]:
        try:
            yield
        except CheckpointError as error:
            warn(f"{error}; training goes on, and the next checkpoint is tried when it is due")


def snapshots_of(run: Run, *, start: int, sound: Callable[[], bool] = lambda: True) -> Event:
    """The event that writes snapshots of the averages of a run when they are due; does nothing for a run that keeps none.

    Snapshots of steps after `start`, left by a run that was stopped, are removed: they are written again. `sound` is as for
    Saver.
    """
    config = run.config
    if not config.averages.sigma_rel:
        return Events()
    kept = open_snapshots(run.folder, run.record)
    kept.remove_after(start)
    when = Checkpointing(every=config.averages.every or max(1, config.steps // 32), minutes=None)
    return Saver(kept, lambda: {}, when, until=config.steps, before=Events(), sound=sound)


class Tolerance:
    """Turns files that cannot be written into one warning; another comes only after they could be written in between."""

    def __init__(self, what: str):
        self._what, self._failing = what, False

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not self._failing:
                warn(f"could not write {self._what} ({error.strerror or error}): free space on the disk; training goes on")
            self._failing = True
        else:
            self._failing = False


class Tolerant(Event):
    """A hook as an event, with a warning where it cannot write a file."""

    def __init__(self, hook: Hook, what: str):
        self._hook, self._tolerated = hook, Tolerance(what)

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        with self._tolerated():
            self._hook(step, state, metrics)


class Signals(Event):
    """Ends a run that a signal asks to stop, with a checkpoint. Raises Interrupted."""

    def __init__(self, saver: Saver):
        self._saver, self._stack = saver, contextlib.ExitStack()
        self._asked = self._stack.enter_context(distributed.signals())

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        if (number := self._asked(step)) is not None:
            self._saver.last(state)
            said = f"stopped by {signal.Signals(number).name} after step {step}, checkpoint written: the same command continues"
            raise Interrupted(number, said if distributed.is_main_process() else "")

    def close(self) -> None:
        self._stack.close()


def warn(sentence: str) -> None:
    """Prints a warning on stderr, above the progress bar."""
    tqdm.write(f"warning: {sentence}", file=sys.stderr)
