"""Statistics by layer: as computed by hand, of the step that follows; a number that is not finite is where it was planted."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqx_shortcut import Batch, sharding
from eqx_shortcut.experiment import health
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import Objective, Shortcut
from eqx_shortcut.train import TrainState, init_state, make_step

NETWORK, TX = DiTConfig(hidden=16, depth=3, heads=2, patch=2), optax.sgd(0.5)
OBJECTIVE = Shortcut(steps=4, bootstrap_every=2)
IMAGES = jax.random.normal(jax.random.key(3), (8, 4, 4, 1))
LAYERS = [
    "patches", "time/hidden", "time/out", "step/hidden", "step/out", "label", "blocks/modulation", "blocks/qkv", "blocks/out",
    "blocks/up", "blocks/down", "final/modulation", "final/out", "logvar",
]  # fmt: skip


def to_batch(raw, key) -> Batch:
    return Batch(raw, jnp.arange(raw.shape[0]) % 3)


@pytest.fixture(scope="module")
def state() -> TrainState:
    """A state whose layers are none of them zero."""
    state = init_state(lambda key: NETWORK.build((4, 4, 1), 3, key=key), TX, jax.random.key(0), null=3)
    rng = np.random.default_rng(0)
    shaken = jax.tree.map(lambda a: a + 0.1 * rng.standard_normal(a.shape).astype(np.float32), state.networks.online)
    return eqx.tree_at(lambda s: (s.networks.online, s.networks.ema), state, (shaken, shaken))


@pytest.fixture(scope="module")
def asked():
    return health.make_activations(OBJECTIVE, prepare=to_batch, steps=10)


def planted(state: TrainState, where, value: float = jnp.nan) -> TrainState:
    return eqx.tree_at(where, state, replace_fn=lambda a: a.at[(1,) * a.ndim].set(value))


def test_layers_are_in_the_order_of_computation_and_blocks_are_kept_apart(state):
    found, network = health.layers(state.networks.online), state.networks.online
    assert list(found) == LAYERS
    for i in range(3):
        numbers = np.concatenate([np.asarray(a[i]).ravel() for a in (network.blocks.qkv.kernel, network.blocks.qkv.bias)])
        np.testing.assert_allclose(np.asarray(found["blocks/qkv"].norm)[i], np.linalg.norm(numbers), rtol=1e-5)
        assert np.asarray(found["blocks/qkv"].largest)[i] == np.abs(numbers).max()
    assert all(np.ndim(found[name].norm) == name.startswith("blocks") and not np.any(found[name].bad) for name in found)
    names = list(health.rows(found))
    assert names[:7] == [*LAYERS[:6], "blocks/0/modulation"] and names[10:12] == ["blocks/0/down", "blocks/1/modulation"]
    assert len(names) == 6 + 3 * 5 + 3


def test_numbers_that_are_not_finite_are_counted(state):
    bad = planted(planted(state, lambda s: s.networks.online.blocks.up.kernel), lambda s: s.networks.online.label, jnp.inf)
    found = health.rows(health.layers(bad.networks.online))
    assert {name: int(s.bad) for name, s in found.items() if s.bad} == {"label": 1, "blocks/1/up": 1}
    assert np.isnan(found["blocks/1/up"].norm) and np.isinf(found["label"].largest)


class Line(eqx.Module):
    """`x @ w + b`."""

    w: jax.Array
    b: jax.Array


@dataclasses.dataclass(frozen=True)
class Squares(Objective):
    """`mean |w x + b - noise|^2`, the noise drawn from the step's key."""

    def __call__(self, networks, batch: Batch, key, progress):
        line, noise = networks.online, jax.random.normal(key, (batch.x.shape[0], 2))
        loss = jnp.mean((batch.x @ line.w + line.b[None] - noise) ** 2)
        return loss, {"loss": loss}

    def sampling(self, network): ...


def test_the_layers_are_those_of_the_step_that_follows_which_stays_as_it_is():
    """Of gradient descent, whose update is the gradient times minus the rate; all gradients together have the step's norm."""
    parts = Squares(), TX
    x, state = (
        jnp.arange(12.0).reshape(4, 3) / 10,
        init_state(lambda key: Line(jnp.ones((3, 2)), jnp.ones(2)), TX, jax.random.key(0)),
    )
    step = make_step(*parts, prepare=lambda raw, key: Batch(raw), ema_decay=0.9, steps=10)
    measure = health.make_layers(*parts, prepare=lambda raw, key: Batch(raw), steps=10)
    for _ in range(2):
        found, before = measure(state, x), jax.tree.map(np.array, state.networks.online)
        state, metrics = step(state, x)
        assert set(found) == {"batch", "weights", "gradient", "update"}
        assert list(found["gradient"]) == ["w", "b"] and list(found["batch"]) == ["x"]
        norms = [found["gradient"][layer].norm for layer in "wb"]
        np.testing.assert_allclose(np.linalg.norm(norms), metrics["grad_norm"], rtol=1e-6)
        for layer in "wb":
            change = getattr(state.networks.online, layer) - getattr(before, layer)
            np.testing.assert_allclose(found["weights"][layer].norm, np.linalg.norm(getattr(before, layer)), rtol=1e-6)
            np.testing.assert_allclose(found["update"][layer].norm, np.linalg.norm(change), rtol=1e-5)
            np.testing.assert_allclose(found["update"][layer].largest, np.abs(change).max(), rtol=1e-5)
            np.testing.assert_allclose(found["update"][layer].norm, 0.5 * found["gradient"][layer].norm, rtol=1e-6)
    found = measure(state, x.at[2, 0].set(jnp.nan))
    assert health.first_bad(found["batch"]) == "x" and health.first_bad(found["weights"]) is None
    assert health.first_bad(found["gradient"]) == "w"


def test_a_number_planted_in_the_weights_is_found_in_its_layer(state, asked):
    bad = planted(state, lambda s: s.networks.online.blocks.out.kernel)
    assert health.first_bad(health.layers(bad.networks.online)) == "blocks/1/out"
    found = asked(bad, IMAGES)
    assert {name: health.first_bad(layers) for name, layers in found.items()} == {
        "ema 1": None,
        "ema 2": None,
        "online 1": "blocks/1",
    }
    # An average that is not finite spoils the target alone, whose second half step starts where the first one ended.
    bad = planted(state, lambda s: s.networks.ema.final.out.kernel)
    assert {name: health.first_bad(layers) for name, layers in asked(bad, IMAGES).items()} == {
        "ema 1": "final",
        "ema 2": "patches",
        "online 1": None,
    }


def test_a_number_planted_in_the_batch_is_found_where_it_comes_in(state, asked):
    images = IMAGES.at[-1, 0, 0, 0].set(jnp.nan)
    assert health.first_bad(asked(state, images)["online 1"]) == "patches"


def test_a_gradient_that_is_not_finite_began_in_the_last_of_its_layers():
    def layer(bad):
        return health.Statistics(jnp.ones(()), jnp.ones(()), jnp.asarray(bad))

    found = health.Layers({"patches": layer(2), "label": layer(1), "final/out": layer(0)})
    assert health.first_bad(found, backward=True) == "label" and health.first_bad(found) == "patches"
    assert health.first_bad(health.Layers({"patches": layer(0)})) is None


def test_activations_are_those_of_the_network_over_rows_and_calls(state, asked):
    found = asked(state, IMAGES)
    assert list(found) == ["ema 1", "ema 2", "online 1"]
    online, network = found["online 1"], state.networks.online
    assert list(online) == ["patches", "position", "time", "step", "label", "conditioning", "blocks", "final"]
    # Each of 8 rows is asked once; its 4 positions have norm sqrt(hidden / 2), half of the target's rows the same labels.
    np.testing.assert_allclose(online["position"].norm, np.sqrt(8 * 4 * 16 / 2), rtol=1e-5)
    np.testing.assert_allclose(found["ema 1"]["position"].norm, np.sqrt(4 * 4 * 16 / 2), rtol=1e-5)
    assert online["label"].largest <= np.abs(network.label).max() and online["blocks"].norm.shape == (3,)


@pytest.mark.slow
def test_layers_on_eight_devices_are_those_on_one(state, asked):
    mesh = sharding.make_mesh(fsdp=4)
    options = {"prepare": to_batch, "steps": 10}
    split = health.make_layers(OBJECTIVE, TX, replicate=lambda tree: sharding.replicate(tree, mesh), **options)
    with jax.set_mesh(mesh):
        placed = sharding.lay_out(state, mesh)
        images = jax.device_put(IMAGES, sharding.batch_sharding(mesh))
        eight = split(placed, images), health.make_activations(OBJECTIVE, **options)(placed, images)
    one = health.make_layers(OBJECTIVE, TX, **options)(state, IMAGES), asked(state, IMAGES)
    for a, b in zip(jax.tree.leaves(eight), jax.tree.leaves(one), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
