"""Counted operations, against the published sizes, the traced programs and the data sheets."""

from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from eqx_shortcut import flops
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.models.dit import preset
from eqx_shortcut.objectives import FlowMatching, Networks, Shortcut

SHAPE = (8, 12, 3)
CONFIG = DiTConfig(hidden=16, depth=3, heads=2, patch=2, mlp_ratio=1.5, precision="float32")


@pytest.fixture(scope="module")
def networks() -> Networks:
    network = eqx.filter_jit(CONFIG.build)(SHAPE, 2, key=jax.random.key(0))
    return Networks(network, network)


@pytest.mark.parametrize(("size", "published"), [("B/2", 46.2e9), ("XL/2", 237.9e9)])
def test_published_sizes(size: str, published: float):
    """The products are all but the elementwise operations, which are half a percent."""
    assert 0.995 * published < preset(size).flops((32, 32, 4)) < published


def test_a_forward_has_the_products_of_its_program(networks: Networks):
    x, scalar, label = jnp.zeros(SHAPE), jnp.ones(()), jnp.zeros((), jnp.int32)
    assert flops.flops(jax.make_jaxpr(networks.online)(x, scalar, scalar, label)) == CONFIG.flops(SHAPE)


def test_a_step_is_three_forwards_of_the_batch_and_the_bootstrap_rows(networks: Networks):
    """Per row of 16: 3 for flow matching; 2 half steps of 4 rows more for the shortcut, and guided rows count again."""
    forward = CONFIG.flops(SHAPE)
    assert flops.of_step(FlowMatching(), networks, 16, SHAPE) == 3 * 16 * forward
    objective = Shortcut(steps=16, bootstrap_every=4)
    assert flops.of_step(objective, networks, 16, SHAPE) == (3 * 16 + 2 * 4) * forward
    objective = Shortcut(steps=16, bootstrap_every=4, guidance=2.0)
    assert flops.of_step(objective, networks, 16, SHAPE) == (3 * 16 + 2 * (4 + 1)) * forward


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("cpu", None),
    ],
)
def test_peak(kind: str, teraflops: float | None):
    assert flops.peak(SimpleNamespace(device_kind=kind)) == (teraflops and teraflops * 1e12)
