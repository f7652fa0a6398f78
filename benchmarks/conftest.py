"""Benchmarks answer one question a file: `python -m pytest benchmarks --benchmark-enable --benchmark-only`."""

import jax
import jax.numpy as jnp
import pytest

from eqx_shortcut.types import Batch


@pytest.fixture
def key() -> jax.Array:
    """A key; split it for each use."""
    return jax.random.key(0)


@pytest.fixture(params=[(64, 8, 1), (16, 32, 4)], ids=["digits-64", "latents-16"])
def batch(request: pytest.FixtureRequest, key: jax.Array) -> Batch:
    """Random images (count, side, channels) with labels."""
    count, side, channels = request.param
    return Batch(jax.random.normal(key, (count, side, side, channels)), jnp.arange(count) % 10)
