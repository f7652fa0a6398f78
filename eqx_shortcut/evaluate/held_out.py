"""A network on rows that are not trained on: its loss, its squared error by time and step size, its one-step predictions."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..losses import regress
from ..models.field import NetworkField, in_float32
from ..objectives import Networks, Objective, Term
from ..rows import expand
from ..steps import predict
from ..types import Batch, Cond, Draws, Metrics, Number, Point, Regression


class WithoutDropout(eqx.Module):
    """A network that is never given the key of its dropout."""

    network: Any

    @property
    def velocity(self) -> "WithoutDropout":
        """The network's second head, without dropout too."""
        return WithoutDropout(self.network.velocity)

    @property
    def in_float32(self) -> "WithoutDropout":
        """The network computing in float32, without dropout too (see NetworkField.precise)."""
        return WithoutDropout(in_float32(self.network))

    def __call__(self, x: Point, t: Number, d: Number, cond: Cond, *, key: PRNGKeyArray | None = None) -> Point:
        return self.network(x, t, d, cond)


def validation_loss(objective: Objective, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number) -> Metrics:
    """The objective's own loss of `networks.online`, and its parts, without dropout inside the network.

    The same key means the same times, noise and dropped labels, so that the values of a run compare.
    """
    quiet = dataclasses.replace(networks, online=WithoutDropout(networks.online))
    _, metrics = objective(quiet, batch, key, progress)
    return {name: value for name, value in metrics.items() if name.startswith("loss")}


class Asked(NamedTuple):
    """The times and step sizes at which a network was asked, one level a step size, and the squared error of each answer."""

    share: float
    """The share of the rows of a batch that have this term in training."""
    t: Float[Array, "levels rows"]
    d: Float[Array, "levels rows"]
    error: Float[Array, "levels rows"]


class Curve(NamedTuple):
    """Mean squared error at one step size, at each of some times."""

    d: str
    """The step size: "1/8", or "1 - t"."""
    t: Float[np.ndarray, " times"]
    error: Float[np.ndarray, " times"]


def squared_errors(
    objective: Objective, networks: Networks, batch: Batch, key: PRNGKeyArray, progress: Number, *, times: int = 8
) -> list[tuple[str, Asked]]:
    """Error of `networks.online` on each term of the loss, with its name: every row of the batch is asked at each step size.

    Times come in turn, up to `times` of the grid of the step size, so that none is asked that training does not ask. Noise is
    the same for all, the batch's own if it has one; conditions are kept. `progress` is the share of training done.
    """
    terms, noise, count = objective.terms(networks, progress), batch.noise_from(key), batch.x.shape[0]
    if not terms:
        return []

    def regressions(term: Term) -> Regression:
        def level(sections):
            t = times_in_turn(sections, min(times, count), count).astype(batch.x.dtype)
            return term.target(Draws(batch.x, noise, t, jnp.full_like(t, 1 / sections), batch.cond))

        return jax.lax.map(level, term.sections)

    rows = jax.tree.map(lambda *levels: jnp.concatenate(levels), *map(regressions, terms))
    # One loop over the levels of all terms, so that the network is compiled once for all and not once for each.
    error = jax.lax.map(functools.partial(regress, NetworkField(networks.online)), rows)
    names = np.array([term.name for term in terms for _ in term.sections])
    shares = {term.name: term.share for term in terms}
    # A list, for a dictionary loses its order in jit.
    return [
        (name, Asked(share, *(part[np.flatnonzero(names == name)] for part in (rows.t, rows.d, error))))
        for name, share in shares.items()
    ]


def times_in_turn(sections: Int[Array, ""], times: int, rows: int) -> Float[Array, " rows"]:
    """For each row in turn one of `times` evenly spread points of `{0, 1/n, ..., (n - 1)/n}`, or of all of fewer."""
    chosen = jnp.minimum(times, sections)
    return (jnp.arange(rows) % chosen * sections // chosen) / sections


def curves(batches: Sequence[Sequence[tuple[str, Asked]]]) -> dict[str, list[Curve]]:
    """Means over all rows of all batches that were asked at one time and step size, by term, from the finest step."""
    by_term = {}
    for term, (name, _) in enumerate(batches[0]):
        asked = [batch[term][1] for batch in batches]
        t, d, error = (np.concatenate([np.asarray(part[i], np.float64) for part in asked], axis=1) for i in (1, 2, 3))
        order = np.argsort(d.mean(axis=1), kind="stable")
        by_term[name] = [_curve(t[level], d[level], error[level]) for level in order]
    return by_term


def _curve(t, d, error):
    times, inverse = np.unique(t, return_inverse=True)
    means = np.bincount(inverse, error) / np.bincount(inverse)
    return Curve(fraction(float(d[0])) if np.ptp(d) == 0 else "1 - t", times, means)


def all_rows(found: Mapping[str, Sequence[Curve]], shares: Mapping[str, float]) -> list[Curve]:
    """Error of a whole batch by the shares of its terms, at each step size of the term with the most.

    A term with a single step size is added at each of them, as in a batch whose bootstrap rows all have the same `d`.
    """
    most = max(found.values(), key=len)
    mixed = []
    for level, curve in enumerate(most):
        parts = {name: levels[level if len(levels) == len(most) else 0] for name, levels in found.items()}
        t = [t for t in curve.t if all(t in part.t for part in parts.values())]
        whole = [sum(shares[name] * part.error[np.searchsorted(part.t, at)] for name, part in parts.items()) for at in t]
        mixed.append(Curve(curve.d, np.array(t), np.array(whole)))
    return mixed


def fraction(value: float) -> str:
    """A time or step size of a grid as a fraction: "1/128"."""
    return str(Fraction(value).limit_denominator(4096))


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
