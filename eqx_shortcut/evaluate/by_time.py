"""Squared error of a network by time and step size: each term of its loss at chosen times, by forward passes alone."""

import functools
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ..losses import regress
from ..models.field import NetworkField
from ..objectives import Networks, Objective, Term
from ..types import Batch, Draws, Number, Regression


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
