"""Residuals of every objective in a bfloat16 network are those in float32, at its own defaults and the end of training."""

import dataclasses
import inspect
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch, objectives
from eqx_shortcut.models import DiTConfig, NetworkField
from eqx_shortcut.models.dit import Precision
from eqx_shortcut.objectives import Networks, Objective

N, SHAPE = 32, (4, 4, 1)
TOLERANCE = 0.05
KINDS = [
    kind
    for kind in vars(objectives).values()
    if inspect.isclass(kind) and dataclasses.is_dataclass(kind) and hasattr(kind, "sampling")
]
BY_DIFFERENCES = [objectives.MeanFlow, objectives.Lagrangian]
SMALL_DIFFERENCES = [objectives.SoFlow, objectives.ConsistencyDistillation]


class Probe(eqx.Module):
    """A network plus a number for each label: with a label for each row, the loss's gradient by it is the row's residual."""

    network: Any
    offsets: jax.Array
    promoted: bool = eqx.field(static=True, default=True)

    @property
    def null(self):
        return jnp.asarray(N)

    @property
    def in_float32(self):
        return dataclasses.replace(self, network=self.network.in_float32) if self.promoted else self

    def __call__(self, x, t, d, cond, *, key=None):
        return self.network(x, t, d, cond).astype(x.dtype) + self.offsets[cond]


def network(precision: Precision, seed: int, *, continuous: bool, promoted: bool = True) -> Probe:
    """A transformer that answers what it has not learnt, and not 0."""
    step = "linear" if continuous else "log2"
    config = DiTConfig(hidden=16, depth=1, heads=2, precision=precision, step=step, remat="none", embed_scale=10)
    built = config.build(SHAPE, N, key=jax.random.key(seed))
    kernels = lambda n: (n.final.out.kernel, n.final.modulation.kernel)  # noqa: E731
    drawn = [0.5 * jax.random.normal(jax.random.key(seed + i), kernel.shape) for i, kernel in enumerate(kernels(built))]
    return Probe(eqx.tree_at(kernels, built, drawn), jnp.zeros((N + 1, *SHAPE)), promoted)


def residuals(objective: Objective, precision: Precision, **options: Any) -> np.ndarray:
    """Of each row, but for a factor: the gradient by the row's offset at an online network that is its own average."""
    online, teacher = (network(precision, seed, continuous=objective.continuous, **options) for seed in (0, 7))
    batch = Batch(jax.random.normal(jax.random.key(2), (N, *SHAPE)), jnp.arange(N))

    @jax.jit
    @jax.grad
    def gradient(offsets):
        trained = dataclasses.replace(online, offsets=offsets)
        networks = Networks(trained, online, teacher, objective.extra(jax.random.key(1)), memory=objective.memory(SHAPE))
        return objective.remembered(networks, batch, jax.random.key(3), jnp.float32(0.999))[0][0]

    return np.asarray(gradient(online.offsets))[:N]


def total(x, cond):
    """A reward."""
    return x.sum(axis=(1, 2, 3))


def at_rows(kind: Any, **options: Any) -> Objective:
    """At its defaults, with all labels kept, and fewer steps where its batch would not hold a row of each."""
    fields = {field.name for field in dataclasses.fields(kind)}
    small = {"label_dropout": 0.0, "score": f"{__name__}:total"} | ({"steps": 16} if kind is objectives.Shortcut else {})
    return kind(**{name: value for name, value in small.items() if name in fields}, **options)


def distance(objective: Objective, **options: Any) -> float:
    """Of the rows that are not flow matching, or all where there are no others: rms error over rms."""
    exact, found = residuals(objective, "float32"), residuals(objective, "bfloat16", **options)
    every = getattr(objective, "bootstrap_every", 1)
    return float(np.linalg.norm((found - exact)[::every]) / np.linalg.norm(exact[::every]))


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_residuals_are_those_of_float32(kind):
    assert distance(at_rows(kind)) < TOLERANCE


@pytest.mark.parametrize("kind", BY_DIFFERENCES, ids=lambda kind: kind.__name__)
def test_so_are_those_of_finite_differences(kind):
    assert distance(at_rows(kind, finite_difference=0.005)) < TOLERANCE


@pytest.mark.parametrize("kind", SMALL_DIFFERENCES, ids=lambda kind: kind.__name__)
def test_a_network_that_is_not_asked_in_float32_would_be_seen(kind):
    assert distance(at_rows(kind), promoted=False) > 2 * TOLERANCE


def test_the_precise_view_is_the_same_network_in_float32():
    low = NetworkField(network("bfloat16", 0, continuous=True))
    arguments = jnp.ones((2, *SHAPE)), jnp.array([0.1, 0.6]), jnp.array([0.5, 0.0]), jnp.arange(2)
    exact = NetworkField(network("float32", 0, continuous=True))(*arguments)
    np.testing.assert_array_equal(low.precise(*arguments), exact)
    assert low.precise.network.network.dtype == jnp.float32 and low.network.network.dtype == jnp.bfloat16
    assert float(jnp.abs(low(*arguments) - exact).max()) > 1e-3
    products = str(jax.make_jaxpr(jax.grad(lambda x: low.precise(x, *arguments[1:]).sum()))(arguments[0]))
    assert products.count("rows_matmul[precision=highest]") == products.count("rows_matmul[") > 0
