"""One-step predictions of the data from noised images, by time and step size."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

from ..objectives import Networks, Objective
from ..rows import expand
from ..steps import predict
from ..types import Batch, Draws, Number
from .by_time import times_in_turn


class Denoised(NamedTuple):
    """Points of paths to images, and the data predicted from each in one step; one row for each time `t` and step size `d`."""

    t: Float[Array, " rows"]
    d: Float[Array, " rows"]
    noised: Float[Array, "rows batch *shape"]
    data: Float[Array, "rows batch *shape"]


def denoised(
    objective: Objective, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number, *, times: int = 8
) -> list[tuple[str, Denoised]]:
    """One step `1 - t` of `networks.online` to the data from points that each term of the loss asks about, with its name.

    A term of one step size is asked at `times` times of its grid; one of several at `t = 1 - d`, from where its step ends at
    the data, and again at `t = 0`, where only what the network is told differs. (The reference draws the first two of these.)
    """
    terms, noise, view = objective.terms(networks, progress), batch.noise_from(key), objective.sampling(networks.online)
    if not terms:
        return []

    def points(term):
        """Points of paths, their times, and the step sizes to ask the network for."""

        def point(at):
            sections, t = at
            t = jnp.full(batch.x.shape[0], t, batch.x.dtype)
            asked = term.target(Draws(batch.x, noise, t, jnp.full_like(t, 1 / sections), batch.cond))
            return asked.x, asked.t, asked.d

        return jax.lax.map(point, _grid(term, times))

    def data(point):
        x, t, d = point
        # A view that knows one step only needs no telling, but may have to know how far it goes.
        return x + expand(1 - t, x) * predict(view, x, t, d if objective.only_step is None else 1 - t, batch.cond)

    found = [points(term) for term in terms]
    x, t, d = (jnp.concatenate(parts) for parts in zip(*found, strict=True))
    rows = Denoised(t[:, 0], d[:, 0], x, jax.lax.map(data, (x, t, d)))
    ends = np.cumsum([len(t) for _, t, _ in found])[:-1]
    parts = zip(*(jnp.split(part, ends) for part in rows), strict=True)
    return [(term.name, Denoised(*part)) for term, part in zip(terms, parts, strict=True)]


def _grid(term, times):
    sections = term.sections
    if len(sections) == 1:
        return jnp.repeat(sections, times), times_in_turn(sections[0], times, times)
    return jnp.concatenate([sections, sections]), jnp.concatenate([1 - 1 / sections, jnp.zeros(len(sections))])
