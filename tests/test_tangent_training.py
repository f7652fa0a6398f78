"""Objectives with tangents, trained as large runs are: shared weights, half precision, dropout, rematerialisation, a scan."""

import dataclasses
import functools
import logging
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqx_shortcut import Batch, compilation, sharding
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import (
    ESC,
    AlphaFlow,
    ContinuousConsistency,
    Eulerian,
    ImprovedMeanFlow,
    Lagrangian,
    MeanFlow,
    Networks,
    Objective,
    TerminalVelocity,
)
from eqx_shortcut.train import TrainState, make_step

SHAPE, CLASSES, STEPS = (4, 4, 1), 5, 2
CONFIG = DiTConfig(hidden=16, depth=2, heads=2, patch=2, step="linear", dropout=0.1, remat="elementwise", precision="bfloat16")
MODERN = {"norm": "rms", "qk_norm": True, "positions": "both", "mlp": "swiglu"}
TOLD = {"guided": "interval", "velocity_head": True}
IMAGES = jax.random.normal(jax.random.key(3), (STEPS, 32, *SHAPE))
LABELS = jnp.arange(32) % CLASSES
TX = optax.sgd(0.02)


@functools.cache
def network_of(config: DiTConfig) -> Any:
    """A network of numbers on the host, none zero: an untrained one answers 0, with a tangent of 0."""
    structure = eqx.filter_eval_shape(lambda key: config.build(SHAPE, CLASSES, key=key), jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: 0.2 * rng.standard_normal(leaf.shape).astype(np.float32), structure)


def state_of(objective: Objective, config: DiTConfig) -> TrainState:
    """A state before its first step, made without a program of its own."""
    online, average, teacher = (jax.tree.map(jnp.asarray, network_of(config)) for _ in range(3))
    networks = Networks(online, average, teacher if objective.stages else None, objective.extra(jax.random.key(1)), CLASSES)
    step, skipped, streak = (jnp.zeros((), jnp.int32) for _ in range(3))
    return TrainState(step, jax.random.key(2), networks, TX.init(networks.trained), skipped, streak)


def prepare(raw: Any, key: Any) -> Batch:
    return Batch(*raw)


def trained(objective: Objective, config: DiTConfig, devices: int) -> tuple[TrainState, list[dict[str, Any]]]:
    """State and metrics of two steps on so many devices that share the weights."""
    mesh = sharding.make_mesh(fsdp=devices, devices=jax.devices()[:devices])
    lay_out = functools.partial(sharding.lay_out, mesh=mesh)
    with compilation.compiled_for(mesh), jax.set_mesh(mesh):
        state, seen = lay_out(state_of(objective, config)), []
        step = make_step(objective, TX, prepare=prepare, ema_decay=0.9, steps=STEPS, shardings=lay_out)
        for x in IMAGES:
            state, metrics = step(state, jax.device_put((x, LABELS), sharding.batch_sharding(mesh)))
            seen.append(metrics)
        return state, jax.device_get(seen)


slow = functools.partial(pytest.param, marks=pytest.mark.slow)
CASES = [
    pytest.param(MeanFlow(log_variance=True), MODERN, id="mean flow"),
    slow(ImprovedMeanFlow(), {}, id="improved mean flow"),
    slow(ImprovedMeanFlow(max_scale=4.0, intervals=True, velocity_head=True), TOLD, id="improved mean flow, told"),
    slow(ESC(), {}, id="esc"),
    slow(AlphaFlow(start=-2.0, stop=-1.0), {}, id="alpha flow at 0"),
    slow(Lagrangian(), {}, id="lagrangian"),
    slow(TerminalVelocity(log_variance=True), {}, id="terminal velocity"),
    slow(Eulerian(), {}, id="eulerian"),
    slow(Eulerian(stop_tangent=False), {}, id="eulerian through the tangent"),
    slow(ContinuousConsistency(), MODERN, id="consistency training"),
    slow(ContinuousConsistency(distil=True), {}, id="consistency distillation"),
]


@pytest.mark.parametrize("remat", ["elementwise", slow("block")])
@pytest.mark.parametrize(("objective", "options"), CASES)
def test_all_at_once_is_compiled_once_and_finite(objective, options, remat, caplog):
    with caplog.at_level(logging.WARNING), jax.log_compiles():
        state, seen = trained(objective, dataclasses.replace(CONFIG, **options, remat=remat), 8)
    compiled = [
        record.getMessage() for record in caplog.records if "Finished XLA compilation of jit(update" in record.getMessage()
    ]
    assert len(compiled) == 1
    assert all(np.isfinite(value) for metrics in seen for value in metrics.values())
    assert all(metrics["grad_norm"] > 0 and metrics["skipped"] == 0 for metrics in seen)
    extra = state.networks.extra
    assert extra is None or (extra.coefficients.sharding.is_fully_replicated and np.all(np.asarray(extra.coefficients) != 0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("objective", "options"),
    [
        (ESC(), MODERN),
        (ImprovedMeanFlow(max_scale=4.0, velocity_head=True), TOLD),
        (Lagrangian(), {}),
        (ContinuousConsistency(), {}),
    ],
)
def test_devices_that_share_the_weights_find_the_gradients_of_one(objective, options):
    """In float32, under the same dropout masks: metrics to 1e-4 of themselves, all weights after two steps to 1e-5."""
    config = dataclasses.replace(CONFIG, **options, precision="float32")
    (state, seen), (one, expected) = (trained(objective, config, devices) for devices in (8, 1))
    for found, wanted in zip(seen, expected, strict=True):
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, err_msg=name)
    leaves = lambda tree: jax.tree.leaves(eqx.filter(tree, eqx.is_array))  # noqa: E731
    for a, b in zip(leaves(state.networks), leaves(one.networks), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    moved = [np.abs(a - b).max() for a, b in zip(leaves(one.networks.online), leaves(one.networks.ema), strict=True)]
    assert max(moved) > 1e-3, "nothing was learnt, nothing is compared"
