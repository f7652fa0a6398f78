"""Events: calls between the steps of a run, outside jit."""

import contextlib

from ..train import TrainState
from ..types import Metrics


class Event:
    """Something done after each step of a run: what it wrote is safe after `flush`, and nothing follows `close`.

    This one does nothing.
    """

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        """Takes step number `step`, counted from 1, and the state and metrics after it."""

    def flush(self) -> None:
        """Makes sure that what was written is there after a crash, as the checkpoint that follows is."""

    def close(self) -> None:
        """Finishes, after the last step or where an error ends the run."""


class Events(Event):
    """Several events as one: called in order, closed in reverse order, each even if another raises."""

    def __init__(self, *events: Event):
        self._events = events

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        for event in self._events:
            event(step, state, metrics)

    def flush(self) -> None:
        for event in self._events:
            event.flush()

    def close(self) -> None:
        with contextlib.ExitStack() as stack:
            for event in self._events:
                stack.callback(event.close)
