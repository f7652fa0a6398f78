"""Statistics of a step layer by layer: norms, largest magnitudes, and counts of numbers that are not finite."""

import dataclasses
import functools
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.custom_batching
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, PRNGKeyArray, PyTree

from ..objectives import Objective
from ..train import Prepare, TrainState, loss_of_step, optimized

STACKED = "blocks"
"""Where arrays of all blocks lie, with a leading axis `depth` (see DiT)."""


class Statistics(eqx.Module):
    """Euclidean norm, largest magnitude and number of those not finite, of the numbers of a layer or of the same layer of each
    block."""

    norm: Float[Array | np.ndarray | np.floating, "*depth"]
    largest: Float[Array | np.ndarray | np.floating, "*depth"]
    bad: Int[Array | np.ndarray | np.integer, "*depth"]


Layers = OrderedDict[str, Statistics]
"""Statistics by layer, in the order in which a network computes them (which `jax.jit` takes from a dict)."""


@eqx.filter_jit
def layers(tree: PyTree) -> Layers:
    """Statistics of each module of a tree that holds arrays, and of each array that is in none; blocks are kept apart."""
    found: dict[str, list[Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(eqx.filter(tree, eqx.is_inexact_array)):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        found.setdefault(name.rpartition("/")[0] or name, []).append(leaf)
    return Layers((name, _statistics(arrays, name.startswith(f"{STACKED}/"))) for name, arrays in found.items())


def make_layers(
    objective: Objective,
    tx: optax.GradientTransformation,
    *,
    prepare: Prepare,
    steps: int,
    accumulate: int = 1,
    replicate: Callable[[PyTree], PyTree] = lambda tree: tree,
) -> Callable[[TrainState, Any], dict[str, Layers]]:
    """`(state, raw) -> {"batch": ..., "weights": ..., "gradient": ..., "update": ...}`: layers of the step after `state`.

    The state is not consumed. The gradient is computed once more, in a program of its own, so that the step which is watched
    stays to the bit what it is, and costs nothing more where it is not. `replicate` puts the numbers on every device.
    """

    @eqx.filter_jit
    def measure(given, state):
        batch, loss_fn = loss_of_step(objective, given, state, steps, accumulate)
        _, gradient = eqx.filter_value_and_grad(loss_fn, has_aux=True)(state.networks.trained)
        updates, _ = optimized(tx, gradient, state)
        parts = {"weights": state.networks.trained, "gradient": gradient, "update": updates}
        found = {name: _layers_of_trained(tree, state) for name, tree in parts.items()}
        return replicate({"batch": layers(batch), **found})

    return lambda state, raw: measure((raw, prepare), state)


def _layers_of_trained(tree: PyTree, state: TrainState) -> Layers:
    if state.networks.extra is None:
        return layers(tree)
    online, extra = tree
    # First, for its gradient comes last: whatever is wrong with the network's is wrong with the loss and so with this one.
    return Layers([*((f"extra/{name}", statistics) for name, statistics in layers(extra).items()), *layers(online).items()])


def make_activations(objective: Objective, *, prepare: Prepare, steps: int) -> Callable[[TrainState, Any], dict[str, Layers]]:
    """`(state, raw) -> {"ema 1": ..., "ema 2": ..., "online 1": ...}`: what the networks answer in the step after `state`.

    A network is named with the number of times that the loss has asked it, in the order of its program; statistics are over
    all rows, without dropout: of all that a network tells by `activations` (see DiT), or of its answer.
    """
    calls: dict[str, list[Layers]] = {}

    def opened(name: str) -> Callable[[Layers], Any]:
        number = 1 + sum(other.startswith(f"{name} ") for other in calls)
        return calls.setdefault(f"{name} {number}", []).append

    @eqx.filter_jit
    def ask(given, state):
        present = {name: getattr(state.networks, name) for name in ("online", "ema", "teacher", "weak")}
        probes = {name: network and _Probe(network, functools.partial(opened, name)) for name, network in present.items()}
        networks = dataclasses.replace(state.networks, **probes)
        _, loss_fn = loss_of_step(objective, given, dataclasses.replace(state, networks=networks), steps)
        return loss_fn(networks.trained)[0]

    def measure(state: TrainState, raw: Any) -> dict[str, Layers]:
        for told in calls.values():
            told.clear()
        ask((raw, prepare), state).block_until_ready()
        jax.effects_barrier()
        return {name: _together(told) for name, told in calls.items()}

    return measure


class _Probe(eqx.Module):
    """A network of one example that sends out the statistics of its activations over the batch that it is mapped over.

    Each call, when it is traced, opens a list for them; in a loop the list gets several.
    """

    network: Any
    opened: Callable[[], Callable[[Layers], Any]] = eqx.field(static=True)

    @property
    def velocity(self) -> "_Probe":
        return dataclasses.replace(self, network=self.network.velocity)

    def __call__(self, x: Array, t: Array, d: Array, cond: PyTree, *, key: PRNGKeyArray | None = None) -> Array:
        arrays, static = eqx.partition(self.network, eqx.is_array)

        @jax.custom_batching.custom_vmap
        def told(x, t, d, cond, arrays):
            return x

        @told.def_vmap
        def _(size, batched, x, t, d, cond, arrays):
            values = jax.vmap(lambda *inputs: _activations(eqx.combine(arrays, static), *inputs))(x, t, d, cond)
            jax.debug.callback(
                self.opened(), Layers((name, _statistics([value], name == STACKED, axis=1)) for name, value in values.items())
            )
            return x, True

        return self.network(told(x, t, d, cond, arrays), t, d, cond, key=key)


def _activations(network: Any, *inputs: Any) -> OrderedDict[str, Array]:
    told = getattr(network, "activations", None)
    return OrderedDict(answer=network(*inputs)) if told is None else OrderedDict(told(*inputs))


def rows(found: Layers) -> Layers:
    """The same with a row for each layer of each block, in order: `blocks/qkv` as `blocks/0/qkv`, `blocks/1/qkv` ..."""
    stacked = [name for name in found if np.ndim(found[name].norm)]
    single = Layers()
    for name, statistics in found.items():
        if name not in stacked:
            single[name] = statistics
        elif name == stacked[0]:
            for i in range(np.size(statistics.norm)):
                for layer in stacked:
                    single[layer.replace(STACKED, f"{STACKED}/{i}", 1)] = jax.tree.map(lambda a, i=i: a[i], found[layer])
    return single


def first_bad(found: Layers, *, backward: bool = False) -> str | None:
    """The first layer, as `rows` names it, with a number that is not finite; None if there is none.

    `backward`: for gradients, which are computed from the last layer to the first.
    """
    bad = [name for name, statistics in rows(found).items() if statistics.bad]
    return None if not bad else bad[-1 if backward else 0]


def _statistics(arrays: list[Array], stacked: bool, *, axis: int = 0) -> Statistics:
    # One row a block, or one for all.
    parts = [jnp.moveaxis(a, axis, 0).reshape(a.shape[axis], -1) if stacked else a.reshape(1, -1) for a in arrays]
    parts = [part.astype(jnp.float32) for part in parts]
    found = Statistics(
        norm=jnp.sqrt(functools.reduce(jnp.add, [jnp.sum(jnp.square(part), axis=1) for part in parts])),
        largest=functools.reduce(jnp.maximum, [jnp.max(jnp.abs(part), axis=1, initial=0) for part in parts]),
        bad=functools.reduce(jnp.add, [jnp.sum(~jnp.isfinite(part), axis=1) for part in parts]),
    )
    return found if stacked else jax.tree.map(lambda a: a[0], found)


def _together(calls: list[Layers]) -> Layers:
    def merged(several: list[Statistics]) -> Statistics:
        return Statistics(
            norm=np.sqrt(functools.reduce(np.add, [np.square(part.norm) for part in several])),
            largest=functools.reduce(np.maximum, [part.largest for part in several]),
            bad=functools.reduce(np.add, [part.bad for part in several]),
        )

    return Layers((name, merged([call[name] for call in calls])) for name in calls[0])
