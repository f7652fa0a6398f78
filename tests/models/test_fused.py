"""cuDNN's attention by a stand-in that has, as the kernel, no forward-mode derivative."""

import dataclasses
import functools

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import losses
from eqx_shortcut.models import NetworkField, fused
from eqx_shortcut.models.attention import attend
from eqx_shortcut.models.dit import DiT, DiTConfig
from eqx_shortcut.models.fused import fused_attend
from eqx_shortcut.types import Batch

CONFIG = DiTConfig(hidden=16, depth=2, heads=2, patch=2, step="linear")


def plainly(q, k, v):
    """`attend` with tokens first."""
    return attend(*(a.transpose(1, 0, 2) for a in (q, k, v))).transpose(1, 0, 2)


@jax.custom_vjp
def kernel(q, k, v):
    return plainly(q, k, v)


kernel.defvjp(lambda *qkv: (plainly(*qkv), qkv), lambda qkv, ct: jax.vjp(plainly, *qkv)[1](ct))


@pytest.fixture(autouse=True)
def stand_in(monkeypatch):
    monkeypatch.setattr(fused, "kernel", kernel)


def examples(key, *batch):
    """Queries, keys and values, and a tangent of each."""
    arrays = jax.random.normal(key, (6, *batch, 5, 2, 8))
    return tuple(arrays[:3]), tuple(arrays[3:])


def derivatives(attention, qkv, tangents):
    """Value, gradient, tangent, and the gradient through a tangent."""

    def through(*qkv):
        value, slope = jax.jvp(attention, qkv, tangents)
        return jnp.sum(value * slope**2)

    return (
        attention(*qkv),
        jax.grad(lambda *qkv: jnp.sum(attention(*qkv) ** 2), argnums=(0, 1, 2))(*qkv),
        jax.jvp(attention, qkv, tangents),
        jax.grad(through, argnums=(0, 1, 2))(*qkv),
    )


def close(found, expected):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, atol=3e-5)


@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
def test_every_derivative_is_that_of_plain_attention_also_when_mapped(key, batch):
    attention, expected = fused_attend, plainly
    for _ in batch:
        attention, expected = jax.vmap(attention), jax.vmap(expected)
    given = examples(key, *batch)
    # As it is, and as a part of compiled programs.
    attention = jax.jit(attention) if batch else attention
    close(derivatives(attention, *given), jax.jit(functools.partial(derivatives, expected))(*given))


def test_keys_that_all_examples_share_are_mapped_and_differentiated(key):
    (q, k, v), _ = examples(key, 3)

    def loss(attention, q, k, v):
        value, slope = jax.jvp(lambda q: jax.vmap(attention, in_axes=(0, None, None))(q, k, v), (q,), (jnp.cos(q),))
        return jnp.sum(value**2 + slope**2)

    found, expected = (jax.grad(lambda *a, f=f: loss(f, *a), argnums=(0, 1, 2))(q, k[0], v[0]) for f in (fused_attend, plainly))
    close(found, expected)


def test_the_gradient_is_the_kernels_and_the_tangent_is_not(key, monkeypatch):
    """By a kernel whose gradient is twice what it is."""
    qkv, tangents = examples(key)

    @jax.custom_vjp
    def doubled(*qkv):
        return plainly(*qkv)

    doubled.defvjp(lambda *qkv: (plainly(*qkv), qkv), lambda qkv, ct: jax.vjp(plainly, *qkv)[1](2 * ct))
    monkeypatch.setattr(fused, "kernel", doubled)
    _, gradient, pushed, _ = derivatives(fused_attend, qkv, tangents)
    _, expected, tangent, _ = derivatives(plainly, qkv, tangents)
    close((gradient, pushed), (jax.tree.map(lambda g: 2 * g, expected), tangent))


def test_the_kernel_alone_has_no_tangent(key):
    with pytest.raises(TypeError, match="forward-mode"):
        jax.jvp(kernel, *examples(key))


def moved(leaf):
    """Weights away from where the gradient of all but the last layer is 0."""
    return leaf + 0.1 * jnp.cos(jnp.arange(leaf.size)).reshape(leaf.shape) if eqx.is_inexact_array(leaf) else leaf


@pytest.mark.parametrize("options", [{}, {"remat": "none", "unroll": 2, "positions": "rotary"}], ids=str)
def test_a_network_trains_by_a_tangent_as_with_plain_attention(key, options):
    k_network, k_x, k_loss = jax.random.split(key, 3)
    batch = Batch(jax.random.normal(k_x, (8, 8, 8, 1)), jnp.arange(8) % 3)

    @eqx.filter_jit
    def gradient(network):
        return eqx.filter_grad(lambda network: losses.mean_flow(NetworkField(network), batch, k_loss)[0])(network)

    config = dataclasses.replace(CONFIG, **options)
    kinds = (dataclasses.replace(config, attention=kind) for kind in ("cudnn", "xla"))
    networks = (jax.tree.map(moved, DiT(config, (8, 8, 1), 3, key=k_network)) for config in kinds)
    found, expected = (jax.tree.leaves(gradient(network)) for network in networks)
    assert sum(bool(jnp.any(leaf)) for leaf in expected) > 20
    for one, wanted in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, wanted, atol=2e-5 * max(1, float(jnp.abs(wanted).max())))
