"""Rows of methods at continuous step sizes: steps `[t, t + d]`, among rows of `d = 0` that learn the velocity."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PRNGKeyArray

from .. import paths, times
from ..guidance import Guidance, drop_condition, guided_velocity, same_condition
from ..rows import check_share, expand, merge_rows, where_rows
from ..steps import velocity_of
from ..types import Batch, Draws, Field, Regression


@dataclasses.dataclass(frozen=True)
class Intervals:
    """Times and step sizes of a batch: one row in `bootstrap_every` is a step of `pairs`, the others have `d = 0`."""

    pairs: times.Pairs = times.uniform_pairs
    bootstrap_every: int = 4
    velocity_times: times.Times | None = None
    """Times of rows with `d = 0`; None: where a step of `pairs` starts."""
    posterior_every: int | None = None
    """One row of either kind in this many is one of `posterior_draws`; None: none is."""

    def draw(self, batch: Batch, key: PRNGKeyArray, guidance: Guidance | None = None, *, drop_steps: bool = True) -> Draws:
        """Noise (the batch's own if it has one), `(t, d)`, and conditions, dropped last in rows of either kind.

        With `drop_steps` False as many conditions are dropped in rows of `d = 0` alone. Raises ValueError if `bootstrap_every`
        does not divide the batch or is below 2, and for stored pairs of noise and data with `posterior_every`.
        """
        k_pairs, k_noise, k_drop, k_times = jax.random.split(key, 4)
        n, dtype = batch.x.shape[0], batch.x.dtype
        check_share(n, self.bootstrap_every)
        steps = jnp.arange(n) % self.bootstrap_every == 0
        t, d = self.pairs(k_pairs, n, dtype)
        t = t if self.velocity_times is None else jnp.where(steps, t, self.velocity_times(k_times, n, dtype))
        draws = Draws(batch.x, batch.noise_from(k_noise), t, jnp.where(steps, d, 0), batch.cond)
        if self.posterior_every is not None:
            draws = posterior_draws(draws, self._posterior_rows(batch, self.posterior_every))
        if drop_steps or guidance is None or not guidance.dropout:
            return dataclasses.replace(draws, cond=drop_condition(k_drop, batch.cond, guidance, n))
        rate = min(1.0, guidance.dropout * self.bootstrap_every / (self.bootstrap_every - 1))
        dropped = drop_condition(k_drop, batch.cond, guidance._replace(dropout=rate), n)
        return dataclasses.replace(draws, cond=where_rows(steps, batch.cond, dropped))

    def _posterior_rows(self, batch: Batch, every: int) -> Bool[Array, " batch"]:
        if batch.noise is not None:
            raise ValueError(
                f"posterior_every={every} takes the noise to be independent of the data, and this batch holds "
                "pairs of both: leave it None"
            )
        if batch.noise_scale != 1:
            raise ValueError(
                f"posterior_every={every} takes noise to be of standard deviation 1, not {batch.noise_scale:g}: leave it None"
            )
        n = batch.x.shape[0]
        first, rest = (jnp.arange(m) % every == 0 for m in (n // self.bootstrap_every, n - n // self.bootstrap_every))
        return merge_rows(first, rest, self.bootstrap_every)


def posterior_draws(draws: Draws, which: Bool[Array, " batch"]) -> Draws:
    """The rows `which` with noise and data replaced by their means given the row's point, over data of the same condition.

    The point stays where it was, and its velocity becomes the mean of all lines of the batch through it. The mean over the
    batch of anything linear in the velocity is unchanged. Compares all rows, so a sharded batch is gathered once.
    """
    n, left = draws.t.shape[0], jnp.maximum(1 - draws.t, jnp.finfo(draws.t.dtype).eps)
    point, _ = paths.linear(draws.noise, draws.x, draws.t, floor=0)
    mean = paths.posterior_mean(point, 1 - left, draws.x, same_condition(draws.cond, draws.cond, (n, n)))
    noise = (point - expand(draws.t, point) * mean) / expand(left, point)
    x, noise = where_rows(which, (mean, noise), (draws.x, draws.noise))
    return dataclasses.replace(draws, x=x, noise=noise)


def velocity_target(
    field: Field, draws: Draws, guidance: Guidance | None = None, *, teacher: Field | None = None
) -> Regression:
    """The regression of the straight line's velocity at its point at `t`, guided by `field`'s own velocity (see Guidance).

    A `teacher`'s velocity takes its place, as it is. Raises ValueError if `guidance` would guide that one by `field`.
    """
    x, v = paths.linear(draws.noise, draws.x, draws.t, floor=0)
    if teacher is None:
        v = guided_velocity(field, x, draws.t, v, draws.cond, guidance)
    elif guidance is not None and guidance.inside:
        raise ValueError(
            f"scale={guidance.scale}, mix={guidance.mix} guide a line's velocity by the network that learns, and here a "
            "teacher answers it: leave them at 1 and 0, and guide the teacher by guidance.guided or guidance.autoguided"
        )
    else:
        v = jax.lax.stop_gradient(velocity_of(teacher, x, draws.t, draws.cond))
    return Regression(x, draws.t, draws.d, draws.cond, v)
