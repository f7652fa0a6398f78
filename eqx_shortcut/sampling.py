"""How samples are drawn, as one value: steps, guidance and sampler, and what an objective allows of them."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from .evaluate.results import TIMES
from .objectives import Objective
from .samplers import Sampler, consistency


@dataclasses.dataclass(frozen=True)
class Sampling:
    """In `steps`, from the field `null + guidance (labelled - null)`, by `sampler` or else the objective's own.

    A guidance other than 1 applies where the objective allows it at such steps (`guides`), or everywhere if `guide_always`, and
    to steps that start at a time of `guidance_interval`, two times of [0, 1] (Kynkaanniemi et al. 2024). A network that is told
    its scale (`objective.told`) is told `guidance` and, if it learnt others than one, the interval, without a second
    evaluation; both must be among those of its training.
    """

    steps: int = 1
    guidance: float = 1.0
    guidance_interval: tuple[float, float] | None = None
    guide_always: bool = False
    sampler: Sampler | None = None

    def guides(self, objective: Objective) -> bool:
        """Whether guidance changes the samples of a model of this objective."""
        return self.guidance != 1 and (self.guide_always or objective.guides(self.steps))

    def check(self, objective: Objective) -> None:
        """Raises ValueError for no step, and for a sampler or guidance that asks the network for what it did not learn."""
        if self.steps < 1:
            raise ValueError(f"steps={self.steps}: a sample takes at least 1 step")
        check_sampler(objective, self.sampler)
        check_guidance(objective, self.guidance, self.guidance_interval)
        if self.guides(objective) and objective.told is None:
            self._check_reached()

    def note(self, objective: Objective) -> str:
        """Guidance and sampler in words."""
        refused = self.guidance != 1 and not self.guides(objective)
        note = " (not applied: not what the network was trained for at this step size)" if refused else ""
        times = "" if self.guidance_interval is None else " at times {:g} to {:g}".format(*self.guidance_interval)
        return f"guidance {self.guidance}{times}{note}" + ("" if self.sampler is None else f", {self.sampler.name}")

    @property
    def record(self) -> dict[str, Any]:
        """The options that are not defaults, by name, for the protocol of results."""
        times = {} if self.guidance_interval is None else {TIMES: "{:g} to {:g}".format(*self.guidance_interval)}
        return (times if self.guidance != 1 else {}) | ({} if self.sampler is None else {"sampler": self.sampler.name})

    def _check_reached(self) -> None:
        interval, sampler = self.guidance_interval, self.sampler
        if interval is None or (sampler is not None and sampler.asks_velocity):
            return
        shares = np.arange(self.steps, dtype=np.float32) / np.float32(self.steps)
        times = None if sampler is None else sampler.times
        with jax.ensure_compile_time_eval():
            starts = shares if times is None else np.asarray(jax.vmap(times)(jnp.asarray(shares)))
        if not np.any((starts >= interval[0]) & (starts <= interval[1])):
            raise ValueError(
                f"guidance_interval={interval} holds the start of none of {self.steps} steps ({starts[0]:g} to "
                f"{starts[-1]:g}), so that nothing would be guided: begin it at 0, or take more steps"
            )


def check_sampler(objective: Objective, sampler: Sampler | None) -> None:
    """Raises ValueError for a sampler that needs an answer which the objective does not train."""
    if sampler is None:
        return
    name = type(objective).__name__
    if sampler.asks_velocity and objective.velocity_step is None:
        raise ValueError(f"{sampler.run.__name__} asks for the velocity, which {name} does not teach: use euler or consistency")
    if sampler.run is consistency and objective.only_step is not None:
        raise ValueError(f"consistency asks for the whole way to the data, which {name} does not teach: use euler or heun")


def check_guidance(objective: Objective, guidance: float, interval: tuple[float, float] | None = None) -> None:
    """Raises ValueError for an interval outside of [0, 1], and for guidance beyond what a network was given as an input."""
    scales, (start, stop) = objective.told, interval or (0, 1)
    if not 0 <= start <= stop <= 1:
        raise ValueError(f"guidance_interval={interval}: name two times of 0 to 1, the first one first")
    if scales is not None and not scales.low <= guidance <= scales.high:
        raise ValueError(
            f"guidance {guidance:g} is not in {scales.low:g} to {scales.high:g}, the scales that the network is told in "
            "training: choose one of those"
        )
    if scales is None or interval is None:
        return
    if not scales.intervals and interval != scales.interval:
        raise ValueError(
            f"guidance_interval={interval}: the network learnt guidance at times {scales.interval} and is told no others: "
            "leave the interval out"
        )
    if scales.intervals and not start <= 0.5 <= stop:
        raise ValueError(
            f"guidance_interval={interval}: the network is told times before and after 0.5 in training: choose such an interval"
        )
