"""Samplers: from noise at time 0 to data at time 1 in any number of steps, one compiled loop for all of them."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from . import paths, ranges
from .ranges import Positive
from .rows import expand
from .steps import clipped, heun_step, predict, step, velocity_of
from .types import Cond, Field, Number, Points


class StepRange(eqx.Module):
    """Steps `first` to `last - 1` of `of` equal ones; a sampler's `noise` is then the point where they start.

    The parts of a path one after another give what the whole gives.
    """

    of: int | Int[Array, ""]
    first: int | Int[Array, ""]
    last: int | Int[Array, ""]


Steps = int | Int[Array, ""] | StepRange
"""A number of steps, or a part of them; traced, one compilation serves every number."""

Renoise = Callable[[Int[Array, ""]], Points]
"""From the number of a step, from 0, to the new noise at its end."""


Schedule = Callable[[Number], Number]
"""From a share of the steps to the time they lead to, rising from 0 to 1; hashable, to serve `trained.sample`."""


@dataclasses.dataclass(frozen=True)
class Shifted(ranges.Checked):
    """Times whose noise `1 - t` is `shift n / (1 + (shift - 1) n)`, `n` being that of equal steps.

    Above 1 more of the steps lie near the noise, below 1 near the data. Esser et al. (2024).
    """

    shift: Positive

    def __call__(self, share: Number) -> Number:
        noise = 1 - share
        return 1 - self.shift * noise / (1 + (self.shift - 1) * noise)


@dataclasses.dataclass(frozen=True)
class PowerSteps(ranges.Checked):
    """Times `1 / (1 + s)`, where `s`, noise over data, falls from `high` to `low` by equal steps of `s^(1/rho)`.

    They are stretched so that the ends are 0 and 1. Karras et al. (2022), eq. 5.
    """

    rho: Positive = 7.0
    low: Positive = 0.002
    high: Positive = 80.0

    def __call__(self, share: Number) -> Number:
        high, low = self.high ** (1 / self.rho), self.low ** (1 / self.rho)
        first, last = 1 / (1 + self.high), 1 / (1 + self.low)
        return (1 / (1 + (high + share * (low - high)) ** self.rho) - first) / (last - first)


@dataclasses.dataclass(frozen=True)
class Through:
    """These times, `(0, ..., 1)`, for as many steps as there are gaps; interpolated linearly for other numbers of steps."""

    times: tuple[float, ...]

    def __post_init__(self):
        if len(self.times) < 2 or (self.times[0], self.times[-1]) != (0, 1) or list(self.times) != sorted(set(self.times)):
            raise ValueError(f"times={self.times}: name two or more in rising order, the first 0 and the last 1")

    def __call__(self, share: Number) -> Number:
        dtype = share.dtype if share.dtype.itemsize > 2 else jnp.float32  # jnp.interp refuses bfloat16
        shares = jnp.linspace(0, 1, len(self.times), dtype=dtype)
        return jnp.interp(share.astype(dtype), shares, jnp.asarray(self.times, dtype)).astype(share.dtype)


def trigonometric_time(angle: float, std: float) -> float:
    """The time of the linear path at an angle of the trigonometric one (see paths.angle), from pi/2 at noise to 0 at data.

    Two steps of continuous-time consistency put the point between at 1.1 (Lu and Song 2025): `Through((0, time, 1))`.
    """
    return math.cos(angle) / (math.cos(angle) + std * math.sin(angle))


def euler(field: Field, noise: Points, cond: Cond = None, *, steps: Steps, times: Schedule | None = None) -> Points:
    """`steps` steps `x <- x + d field(x, t, d, cond)` from `t = 0` to `t = 1`, equal ones or from one of `times` to the next.

    `steps` may be traced. The reference's sampler (Frans et al. 2024, algorithm 2).
    """

    def body(i, x, t, d):
        return step(field, x, t, d, cond)

    return _loop(steps, times, body, noise)


def heun(field: Field, noise: Points, cond: Cond = None, *, steps: Steps, times: Schedule | None = None) -> Points:
    """`steps` steps along the mean of the velocities at their start and at the end that the first leads to, the last Euler's.

    The field is asked at `d = 0`, twice a step but the last (see `steps.heun_step`), and never at `t = 1`; the error falls with
    the square of the number of steps. Times as in `euler`.
    """

    def body(i, x, t, d):
        return heun_step(field, x, t, d, cond, last=i + 1 == _part(steps).of)

    return _loop(steps, times, body, noise)


def midpoint(field: Field, noise: Points, cond: Cond = None, *, steps: Steps, times: Schedule | None = None) -> Points:
    """`steps` steps along the velocity half way, where the one at their start leads to; else as `heun`."""

    def body(i, x, t, d):
        first = velocity_of(field, x, t, cond)
        middle = velocity_of(field, x + expand(d / 2, x) * first, t + d / 2, cond)
        return x + expand(d, x) * middle

    return _loop(steps, times, body, noise)


def consistency(
    field: Field, noise: Points, cond: Cond = None, *, steps: Steps, renoise: Renoise, times: Schedule | None = None
) -> Points:
    """`steps` jumps to the data `x + (1 - t) field(x, t, 1 - t, cond)`, each put back to the next time by new noise.

    Times are as in `euler`, by default multiples of `1/steps`. The point put back is `t data + (1 - t) renoise(i)`. `steps` may
    be traced. Song et al. (2023), algorithm 1, on the linear path, as in the reference's inference; the sampler of several
    steps of SoFlow's authors.
    """

    def body(i, x, t, d):
        data = step(field, x, t, 1 - t, cond)
        later, _ = _time(i + 1, steps, x, times)
        return expand(later, x) * data + expand(1 - later, x) * renoise(i)

    return _loop(steps, times, body, noise)


def ddim(field: Field, noise: Points, cond: Cond = None, *, steps: Steps, clip: float | None = None) -> Points:
    """Deterministic sampling of a `field` that predicts noise on the variance-preserving path: `euler` on its `ddim_field`."""
    return euler(ddim_field(field, clip=clip), noise, cond, steps=steps)


def ddim_field(field: Field, *, clip: float | None = None) -> Field:
    """The average velocity of a field that predicts noise: with predicted data `z = (x - s noise) / a`, to `a' z + s' noise`.

    `a, s` are the path's weights at `t`, `a', s'` those at `t + d` (`paths.variance_preserving`). `clip` limits the predicted
    data to `[-clip, clip]`. Song, Meng and Ermon (2021), eq. 12 with sigma 0.
    """

    def velocity(x, t, d, cond):
        a, s = (expand(part, x) for part in paths.variance_preserving(t))
        end = jnp.minimum(t + d, 1)  # the last step ends at 1 up to rounding, and beyond 1 there is no path: NaN
        a_later, s_later = (expand(part, x) for part in paths.variance_preserving(end))
        data = clipped((x - s * predict(field, x, t, d, cond)) / a, clip)
        return (a_later * data + s_later * (x - a * data) / s - x) / expand(d, x)

    return velocity


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A loop over steps, `euler`, `heun`, `midpoint` or `consistency`, and its times, for `trained.sample`."""

    run: Callable[..., Any] = euler
    times: Schedule | None = None

    @property
    def name(self) -> str:
        """Loop and times in words."""
        return self.run.__name__ + ("" if self.times is None else f" at times {self.times}")

    @property
    def asks_velocity(self) -> bool:
        """Whether the field is asked at `d = 0` alone."""
        return self.run in (heun, midpoint)

    def __call__(self, field: Field, noise: Points, cond: Cond, *, steps: Steps, renoise: Renoise) -> Points:
        new = {"renoise": renoise} if self.run is consistency else {}
        return self.run(field, noise, cond, steps=steps, times=self.times, **new)


def _time(i, steps, x, times):
    def fill(value):
        return jnp.broadcast_to(jnp.asarray(value, x.dtype), (x.shape[0],))

    n = jnp.asarray(_part(steps).of, x.dtype)
    if times is not None:
        t = times(i.astype(x.dtype) / n)
        return fill(t), fill(times((i + 1).astype(x.dtype) / n) - t)
    return fill(i.astype(x.dtype) / n), fill(1 / n)


def _loop(steps, times, body, x):
    first, last = _part(steps).first, _part(steps).last
    # Numbers known when tracing keep their loop differentiable in reverse.
    if not (isinstance(first, int) and isinstance(last, int)):
        first, last = jnp.asarray(first, jnp.int32), jnp.asarray(last, jnp.int32)

    def advanced(i, x):
        i = jnp.asarray(i)
        return body(i, x, *_time(i, steps, x, times))

    return jax.lax.fori_loop(first, last, advanced, x)


def _part(steps):
    return steps if isinstance(steps, StepRange) else StepRange(steps, 0, steps)
