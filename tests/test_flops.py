"""Counted operations, against the published sizes, the traced programs and the data sheets."""

import dataclasses
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from eqx_shortcut import flops
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.models.dit import Rematerialise, preset
from eqx_shortcut.objectives import FlowMatching, ImprovedMeanFlow, Lagrangian, MeanFlow, Networks, Objective, Shortcut

SHAPE = (8, 12, 3)
CONFIG = DiTConfig(hidden=16, depth=3, heads=2, patch=2, mlp_ratio=1.5, precision="float32")


@pytest.fixture(scope="module")
def networks() -> Networks:
    network = eqx.filter_jit(CONFIG.build)(SHAPE, 2, key=jax.random.key(0))
    return Networks(network, network, null=2)


@pytest.mark.parametrize(("size", "published"), [("B/2", 46.2e9), ("XL/2", 237.9e9)])
def test_published_sizes(size: str, published: float):
    """The products are all but the elementwise operations, which are half a percent."""
    assert 0.995 * published < preset(size).flops((32, 32, 4)) < published


def test_a_forward_has_the_products_of_its_program(networks: Networks):
    x, scalar, label = jnp.zeros(SHAPE), jnp.ones(()), jnp.zeros((), jnp.int32)
    assert flops.flops(jax.make_jaxpr(networks.online)(x, scalar, scalar, label)) == CONFIG.flops(SHAPE)


FORWARD = CONFIG.flops(SHAPE)
FIRST = 2 * 16 * (24 * 12 + 2 * 256)
"""Products of the network's inputs, 24 patches of 12 numbers and sinusoids of two times: no gradient goes back beyond."""


def test_a_step_is_three_forwards_of_the_batch_and_the_bootstrap_rows(networks: Networks):
    """Per row of 16: 3 for flow matching; 2 half steps of 4 rows more for the shortcut, and guided rows count again."""
    step = 16 * (3 * FORWARD - FIRST)
    assert flops.of_step(FlowMatching(), networks, 16, SHAPE) == step
    objective = Shortcut(steps=16, bootstrap_every=4)
    assert flops.of_step(objective, networks, 16, SHAPE) == step + 2 * 4 * FORWARD
    objective = Shortcut(steps=16, bootstrap_every=4, guidance=2.0)
    assert flops.of_step(objective, networks, 16, SHAPE) == step + 2 * (4 + 1) * FORWARD


@pytest.mark.parametrize("remat", ["elementwise", "block"])
def test_what_the_backward_pass_computes_again_is_not_counted(networks: Networks, remat: Rematerialise):
    again = eqx.filter_eval_shape(dataclasses.replace(CONFIG, remat=remat).build, SHAPE, 2, key=jax.random.key(0))
    filled = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), again)
    assert flops.of_step(FlowMatching(), Networks(filled, filled, null=2), 16, SHAPE) == 16 * (3 * FORWARD - FIRST)


class Twice(eqx.Module):
    """A network of two products, as wide inside as outside; its other head has kernels of its own."""

    kernels: jax.Array
    head: jax.Array

    def __call__(self, x, t, d, cond, *, key=None):
        first, second = self.kernels
        return (jnp.tanh(x.reshape(-1) * (1 + t + d) @ first) @ second).reshape(x.shape)

    @property
    def velocity(self):
        return Twice(self.head, self.head)


@pytest.mark.parametrize(
    ("objective", "products"),
    [
        # Two forwards; of their gradient three, which does not go back beyond what comes in.
        (FlowMatching(), 5),
        # Every 4th row: a tangent, which has no gradient.
        (MeanFlow(), 5 + 2 / 4),
        # The mean velocity at the other end, a tangent, and its gradient: by the second kernel in both of its factors.
        (Lagrangian(), 5 + 2 / 4 + 2 / 4 + 3 / 4),
        # Every 2nd row: its own velocity and a tangent along it; or a second head on all rows, with a gradient.
        (ImprovedMeanFlow(), 5 + 2 / 2 + 2 / 2),
        (ImprovedMeanFlow(velocity_head=True), 5 + 2 / 2 + 5),
    ],
)
def test_gradients_and_tangents_of_a_step_are_counted(objective: Objective, products: float):
    network = Twice(jnp.ones((2, 16, 16)), jnp.ones((2, 16, 16)))
    found = flops.of_step(objective, Networks(network, network, null=2), 32, (4, 4, 1))
    assert found == products * 32 * 2 * 16 * 16


@pytest.mark.parametrize(
    ("kind", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H100 NVL", 835),
        ("NVIDIA H200", 989),
        ("NVIDIA H200 NVL", 835),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA B300 SXM6 AC", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA GB300", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA A10", 125),
        ("NVIDIA A100-SXM4-40GB", 312),
        ("TPU v4", 275),
        ("TPU v5 lite", 197),
        ("TPU v5p", 459),
        ("TPU v6 lite", 918),
        ("TPU7x", 1153.5),
        ("cpu", None),
    ],
)
def test_peak(kind: str, teraflops: float | None):
    assert flops.peak(SimpleNamespace(device_kind=kind)) == (teraflops and teraflops * 1e12)
