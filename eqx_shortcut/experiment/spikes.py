"""Whether the numbers of a run have gone up and stay there."""

import math
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

NAMES = ("loss", "grad_norm")
"""The metrics that are watched."""

WINDOW, LEAST = 100, 20
"""Sound steps whose median a metric is compared with, and how many there must be."""


class Spike(NamedTuple):
    """Metric `name` above its bound from step `first` to step `last`, where it has this `value`; its `median` before them."""

    name: str
    first: int
    last: int
    value: float
    median: float


class Spikes:
    """Finds `patience` steps in a row that each have a metric above `factor` times its median, or one that is not finite.

    The median is over the last 100 steps that have none, so that a spike does not hide itself, and infinite until there are 20.
    """

    def __init__(self, factor: float, patience: int):
        self._factor, self._patience = factor, patience
        self._sound: dict[str, deque[float]] = {name: deque(maxlen=WINDOW) for name in NAMES}
        self.first: int | None = None
        """The first of the steps in a row that are out of bounds, if the last one was."""

    def __call__(self, step: int, metrics: Mapping[str, float]) -> Spike | None:
        """The spike, once this step makes it one."""
        medians = {name: float(np.median(past)) if len(past) >= LEAST else math.inf for name, past in self._sound.items()}
        out = [name for name in NAMES if not metrics[name] <= self._factor * medians[name] or math.isinf(metrics[name])]
        if not out:
            self.first = None
            for name, past in self._sound.items():
                past.append(metrics[name])
            return None
        self.first = step if self.first is None else self.first
        if step - self.first + 1 < self._patience:
            return None
        return Spike(out[0], self.first, step, metrics[out[0]], medians[out[0]])
