"""Samplers of times `t` and step sizes `d`, and schedules over training."""

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Int, PRNGKeyArray

from .types import Number

Level = int | Int[Array, ""]
"""Log2 of a number of sections, of step size `2^-level`; it may be traced."""

Times = Callable[[PRNGKeyArray, int, DTypeLike], Float[Array, " rows"]]
"""From a key, a number of rows and a dtype to their times."""

Pairs = Callable[[PRNGKeyArray, int, DTypeLike], tuple[Float[Array, " rows"], Float[Array, " rows"]]]
"""From a key, a number of rows and a dtype to their times `t` and step sizes `d`, with `t + d` at most 1."""


def grid(key: PRNGKeyArray, sections: Int[Array, " rows"], dtype: DTypeLike = float) -> Float[Array, " rows"]:
    """Uniform on `{0, 1/n, ..., (n - 1)/n}` with `n = sections[i]` for row `i`."""
    return jax.random.randint(key, sections.shape, 0, sections).astype(dtype) / sections.astype(dtype)


def log2_steps(steps: int) -> int:
    """`log2(steps)`; raises ValueError unless `steps` is a power of two of at least 2."""
    if steps < 2 or steps & (steps - 1):
        below = 2 ** max(1, steps.bit_length() - 1)
        raise ValueError(
            f"steps={steps} is not a power of two: a shortcut is trained to equal two of half its length, "
            f"down to 1/steps; use {below} or {2 * below}"
        )
    return steps.bit_length() - 1


def dyadic_levels(n: int, steps: int, *, bias: bool = False) -> Int[np.ndarray, " n"]:
    """Level `k` (step size `2^-k`) of each of `n` bootstrap rows: `log2(steps) - 1, ..., 0` in equal shares, finest first.

    The remainder of `n / log2(steps)` goes to `k = 0`, so fewer rows than levels train `k = 0` only. With `bias`, one
    half of the rows holds the levels from 2 up in equal shares of `(n // 2) // log2(steps)`, a quarter each `k = 1` and
    `k = 0`. Frans et al. (2024), section 3.3 and the reference code's `bootstrap_dt_bias`.
    """
    finest = log2_steps(steps) - 1
    if bias:
        shares = np.repeat(np.arange(finest, 1, -1), finest_rows(n, steps, bias=True))
        levels = np.concatenate([shares, np.full(n // 4, min(1, finest)), np.zeros(n // 4, int)])
    else:
        levels = np.repeat(np.arange(finest, -1, -1), finest_rows(n, steps))
    return np.concatenate([levels, np.zeros(n - levels.size, int)])


def finest_rows(n: int, steps: int, *, bias: bool = False) -> int:
    """How many of `n` bootstrap rows `dyadic_levels` gives to the finest level: they stand first."""
    return (n // 2 if bias else n) // log2_steps(steps)


def rows_of_all_levels(steps: int, *, bias: bool = False) -> int:
    """The fewest bootstrap rows to which `dyadic_levels` gives every level; more of them have every level, too."""
    levels = log2_steps(steps)
    return next(n for n in itertools.count(levels) if np.unique(dyadic_levels(n, steps, bias=bias)).size == levels)


def level_groups(n: int, steps: int) -> int:
    """Number of groups of at most as many rows as there are levels: `n` over its largest divisor up to `log2(steps)`.

    Interleaved over these groups, rows of the finest level stand first in a group or nowhere in it.
    """
    return n // max(k for k in range(1, log2_steps(steps) + 1) if n % k == 0)


def stage(progress: Number, stages: int) -> Int[Array, ""]:
    """The index of the stage at the share `progress` of training: `floor(stages * progress)`, and the last stage at 1."""
    # A few units in the last place up, so that step k n / stages of n is the first of stage k and not the last before it.
    return jnp.minimum(jnp.floor(progress * stages * (1 + 3e-7)).astype(jnp.int32), stages - 1)


def uniform(key: PRNGKeyArray, n: int, dtype: DTypeLike = float) -> Float[Array, " n"]:
    """Uniform on `[0, 1)`."""
    return jax.random.uniform(key, (n,), dtype)


def logit_normal(
    key: PRNGKeyArray, n: int, dtype: DTypeLike = float, *, mean: float = 0.4, std: float = 1.0
) -> Float[Array, " n"]:
    """`sigmoid` of `N(mean, std^2)`; a positive mean favours the data. (Noise levels of mean -0.4 are times of mean 0.4.)"""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (n,), dtype))


def logit_normal_pairs(
    key: PRNGKeyArray, n: int, dtype: DTypeLike = float, *, mean: float = 0.4, std: float = 1.0
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """`t` and `t + d` are two times of `logit_normal` in order (Geng et al. 2025)."""
    one, other = logit_normal(key, 2 * n, dtype, mean=mean, std=std).reshape(2, n)
    return jnp.minimum(one, other), jnp.abs(one - other)


def logit_normal_ends(
    key: PRNGKeyArray,
    n: int,
    dtype: DTypeLike = float,
    *,
    mean: float = -0.2,
    std: float = 0.8,
    end_mean: float = 1.0,
    end_std: float = 0.8,
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """`t` and `t + d` are logit-normal times, each of its own distribution; where the end is before the start, `d = 0`.

    The defaults are SoFlow's (2025); MeanFlow's on CIFAR-10 are 0.6, 1.6, 4 and 1.6.
    """
    k_start, k_end = jax.random.split(key)
    start = logit_normal(k_start, n, dtype, mean=mean, std=std)
    end = logit_normal(k_end, n, dtype, mean=end_mean, std=end_std)
    return start, jnp.maximum(end - start, 0)


def uniform_pairs(key: PRNGKeyArray, n: int, dtype: DTypeLike = float) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """`t` and `t + d` are two uniform times in order."""
    one, other = jax.random.uniform(key, (2, n), dtype)
    return jnp.minimum(one, other), jnp.abs(one - other)


def uniform_steps(key: PRNGKeyArray, n: int, dtype: DTypeLike = float) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """`t` is uniform on `[0, 1)`, and `d` on what it leaves, `[0, 1 - t)`."""
    t, share = jax.random.uniform(key, (2, n), dtype)
    return t, (1 - t) * share


def logit_normal_gaps(
    key: PRNGKeyArray, n: int, dtype: DTypeLike = float, *, mean: float = 0.0, std: float = 1.0
) -> tuple[Float[Array, " n"], Float[Array, " n"]]:
    """`d` is logit-normal, and `t` uniform on what it leaves, `[0, 1 - d]`."""
    k_gap, k_time = jax.random.split(key)
    d = logit_normal(k_gap, n, dtype, mean=mean, std=std)
    return (1 - d) * jax.random.uniform(k_time, (n,), dtype), d


def to_end(pairs: Pairs, share: float | Number) -> Pairs:
    """`pairs`, but with probability `share` the step ends at the data, `d = 1 - t`."""

    def some_to_end(key, n, dtype):
        k_pairs, k_which = jax.random.split(key)
        t, d = pairs(k_pairs, n, dtype)
        return t, jnp.where(jax.random.bernoulli(k_which, share, (n,)), 1 - t, d)

    return some_to_end


def sigmoid_fall(
    progress: Number, *, start: float = 0.25, stop: float = 0.75, sharpness: float = 12.0, snap: float = 0.005
) -> Number:
    """From 1 to 0 by a sigmoid between the shares `start` and `stop` of training, and 0 where it is below `snap`.

    Alpha-Flow's schedule (Zhang et al. 2025); start, stop and sharpness are ours.
    """
    fall = jax.nn.sigmoid(sharpness * (0.5 - (progress - start) / (stop - start)))
    return jnp.where(fall < snap, 0, fall)


def arccos_fall(progress: Number, *, until: float = 0.03) -> Number:
    """From 1 to 0 as `arccos(progress / until) / (pi/2)` over the share `until` of training: ESC's schedule (2025)."""
    return jnp.arccos(jnp.minimum(progress / until, 1)) / (jnp.pi / 2)


def exponential_fall(progress: Number, *, first: float = 0.1, last: float = 0.002) -> Number:
    """From `first` to `last` by equal factors over training, SoFlow's schedule of alpha."""
    return first * (last / first) ** progress
