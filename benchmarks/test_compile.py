"""How long do tracing and compiling a training step take, by objective and depth? The persistent cache is off."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import pytest

from eqx_shortcut import compilation
from eqx_shortcut.models.dit import preset
from eqx_shortcut.objectives import FlowMatching, Objective, Shortcut
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import init_state, make_update
from eqx_shortcut.types import Batch


@pytest.mark.benchmark(group="tracing and compiling a training step, width 128")
@pytest.mark.parametrize("objective", [FlowMatching(), Shortcut()], ids=["flow", "shortcut"])
@pytest.mark.parametrize("depth", [4, pytest.param(28, marks=pytest.mark.slow)])
def test_compile(benchmark, objective: Objective, depth: int) -> None:
    config = dataclasses.replace(preset("tiny"), depth=depth, precision="float32")
    tx, batch = AdamW().build(1000), Batch(jnp.zeros((64, 32, 32, 4)), jnp.zeros(64, jnp.int32))
    state = init_state(lambda k: config.build((32, 32, 4), 10, key=k), tx, jax.random.key(0), null=10)
    arrays, static = eqx.partition(state, eqx.is_array)

    def compiled():
        update = make_update(objective, tx, ema_decay=0.999, steps=1000)

        def step(arrays):
            new, metrics = update((batch, lambda raw, _: raw), eqx.combine(arrays, static))
            return eqx.filter(new, eqx.is_array), metrics

        with compilation.compiled_anew():
            jax.jit(step, donate_argnums=0).lower(arrays).compile()

    benchmark.pedantic(compiled, rounds=2)
