"""Benchmarks answer one question a file: `python -m pytest benchmarks --benchmark-enable --benchmark-only`."""

import time

import jax
import jax.numpy as jnp
import pytest

from eqx_shortcut import flops
from eqx_shortcut.types import Batch


@pytest.fixture
def key() -> jax.Array:
    """A key; split it for each use."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def peak() -> float:
    """Operations a second: of the chip by the table, or of a float32 product of 2,048 x 2,048 where it is not listed."""
    known = flops.peak(jax.devices()[0])
    if known is not None:
        return known
    square = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(square, square))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(square, square))
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


@pytest.fixture(params=[(64, 8, 1), (16, 32, 4)], ids=["digits-64", "latents-16"])
def batch(request: pytest.FixtureRequest, key: jax.Array) -> Batch:
    """Random images (count, side, channels) with labels."""
    count, side, channels = request.param
    return Batch(jax.random.normal(key, (count, side, side, channels)), jnp.arange(count) % 10)
