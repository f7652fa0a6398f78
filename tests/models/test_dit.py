import dataclasses
import functools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch, losses, sharding
from eqx_shortcut.models import DiTConfig, NetworkField
from eqx_shortcut.models.dit import PRESETS, _from_patches, _step_input, _to_patches, preset

SHAPE, CLASSES = (4, 6, 2), 3
CONFIG = DiTConfig(hidden=16, depth=2, heads=2, patch=2, mlp_ratio=1, precision="float32")


@functools.cache
def leaves() -> list[jax.Array]:
    """Parameters of CONFIG, none zero."""
    rng = np.random.default_rng(0)
    return [jnp.asarray(0.2 * rng.standard_normal(a.shape), jnp.float32) for a in jax.tree.leaves(structure_of(CONFIG))]


def structure_of(config: DiTConfig):
    return eqx.filter_eval_shape(lambda key: config.build(SHAPE, CLASSES, key=key), jax.random.key(0))


def network_of(**options):
    """The same parameters, whatever the options."""
    structure = structure_of(dataclasses.replace(CONFIG, **options))
    return jax.tree.unflatten(jax.tree.structure(structure), leaves())


def inputs(n: int = 4):
    x = jnp.asarray(np.random.default_rng(1).standard_normal((n, *SHAPE)), jnp.float32)
    return x, jnp.linspace(0, 0.9, n), 0.5 ** jnp.arange(n, dtype=jnp.float32), jnp.arange(n) % (CLASSES + 1)


@eqx.filter_jit
def run(network, *arguments):
    return NetworkField(network)(*arguments)


@functools.cache
def expected() -> jax.Array:
    return run(network_of(), *inputs())


@pytest.mark.parametrize(
    ("name", "classes", "count"), [("B/2", 1000, 131_091_728), ("B/2", 1, 130_324_496), ("XL/2", 1000, 676_440_848)]
)
def test_parameter_counts_are_the_published_models(name, classes, count):
    network = eqx.filter_eval_shape(lambda key: preset(name).build((32, 32, 4), classes, key=key), jax.random.key(0))
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(network)) == count


def test_an_untrained_network_answers_zero(key):
    network = eqx.filter_jit(CONFIG.build)(SHAPE, CLASSES, key=key)
    assert float(jnp.abs(network.blocks.qkv.kernel).max()) > 0
    assert not np.any(run(network, *inputs()))


def test_mapped_network_is_the_loop_over_examples():
    network = eqx.filter_jit(network_of())
    one_by_one = jnp.stack([network(*(a[i] for a in inputs())) for i in range(4)])
    assert float(jnp.abs(one_by_one).max()) > 0.1
    np.testing.assert_allclose(expected(), one_by_one, atol=1e-5, rtol=1e-4)


@eqx.filter_jit
@eqx.filter_value_and_grad
def square(network):
    return jnp.mean(jnp.square(NetworkField(network)(*inputs())))


@functools.cache
def plain_gradient():
    return square(network_of())


@pytest.mark.parametrize("options", [{"remat": "none"}, {"remat": "mlp"}, {"remat": "block"}, {"unroll": 9}], ids=str)
def test_memory_and_unrolling_change_no_number(options):
    (value, gradient), (plain, plain_grad) = square(network_of(**options)), plain_gradient()
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_bfloat16_is_close():
    out = run(network_of(precision="bfloat16"), *inputs())
    assert out.dtype == jnp.bfloat16
    error = np.asarray(out.astype(jnp.float32) - expected())
    assert 0 < np.sqrt(np.mean(error**2)) < 0.02 * float(jnp.sqrt(jnp.mean(expected() ** 2)))


def test_auto_precision_is_float32_on_cpu():
    assert DiTConfig(precision="auto").dtype() == jnp.float32
    assert DiTConfig(precision="bfloat16").dtype() == jnp.bfloat16


# What the network sees of the step


def test_step_none_ignores_d():
    x, t, d, label = inputs()
    network = network_of(step="none")
    np.testing.assert_array_equal(run(network, x, t, d, label), run(network, x, t, 0 * d, label))


@pytest.mark.parametrize("step", ["log2", "linear"])
def test_other_steps_see_d(step):
    x, t, d, label = inputs()
    network = network_of(step=step)
    assert float(jnp.abs(run(network, x, t, d, label) - run(network, x, t, d / 2, label)).max()) > 1e-4


@pytest.mark.parametrize(
    ("step", "d", "value"), [("log2", 1 / 128, 7), ("log2", 1, 0), ("linear", 0.25, 0.25), ("none", 0.5, 0)]
)
def test_the_step_enters_as_its_logarithm_itself_or_nothing(step, d, value):
    np.testing.assert_allclose(_step_input(jnp.float32(d), step), value, atol=1e-6)


@pytest.mark.parametrize("d", [1 / 128, 0.5])
@pytest.mark.parametrize("step", ["log2", "linear", "none"])
def test_a_network_held_at_a_step_answers_at_every_step_as_there(step, d):
    """To rounding: it adds a constant where the other adds a product."""
    x, t, steps, label = inputs()
    network = network_of(step=step)
    held, there = network.held_at(d), run(network, x, t, jnp.full_like(steps, d), label)
    for other in (steps, jnp.full_like(steps, d), jnp.full_like(steps, 1 / 1024)):
        np.testing.assert_allclose(run(held, x, t, other, label), there, atol=1e-5)
    assert jax.tree.structure(held) == jax.tree.structure(network)
    trained = eqx.filter_grad(lambda n: jnp.sum(run(n, x, t, steps, label) ** 2))(held)
    assert step == "none" or float(jnp.abs(trained.step.out.kernel).max()) > 0


def test_time_and_step_are_scaled_alike():
    network = network_of(embed_scale=100.0)
    assert network.time.scale == network.step.scale == 100.0


def test_linear_is_finite_at_zero_with_its_tangent():
    x, t, d, label = inputs()
    network = NetworkField(network_of(step="linear"))
    tangents = jnp.ones_like(x), jnp.ones_like(t), -jnp.ones_like(d)
    field = lambda x, t, d: network(x, t, d, label)  # noqa: E731
    out, tangent = jax.jit(lambda *primals: jax.jvp(field, primals, tangents))(x, t, 0 * d)
    assert np.all(np.isfinite(out)) and np.all(np.isfinite(tangent))
    assert float(jnp.abs(tangent).max()) > 1e-3


# Dropout, labels


def test_dropout_needs_a_key():
    np.testing.assert_allclose(run(network_of(dropout=0.5), *inputs()), expected(), atol=1e-5, rtol=1e-4)


def test_dropout_is_a_function_of_the_key_and_differs_between_rows(key):
    network = network_of(dropout=0.5)
    same = jax.tree.map(lambda a: jnp.broadcast_to(a[:1], a.shape), inputs())
    dropped = eqx.filter_jit(lambda network, k: NetworkField(network, k)(*same))
    out, again, other = dropped(network, key), dropped(network, key), dropped(network, jax.random.key(1))
    np.testing.assert_array_equal(out, again)
    assert np.abs(out - other).max() > 1e-3
    assert np.abs(np.diff(out, axis=0)).max(axis=(1, 2, 3)).min() > 1e-3


def test_a_key_without_dropout_changes_nothing(key):
    found = eqx.filter_jit(lambda network, k: NetworkField(network, k)(*inputs()))(network_of(), key)
    np.testing.assert_allclose(found, expected(), atol=1e-5, rtol=1e-4)


def test_null_is_the_row_after_the_classes():
    network = network_of()
    assert int(network.null) == CLASSES and network.label.shape[0] == CLASSES + 1
    x, t, d, _ = inputs()
    labels = jnp.array([0, 3, 1, 3])
    changed = eqx.tree_at(lambda n: n.label, network, network.label.at[-1].add(1.0))
    difference = np.abs(run(changed, x, t, d, labels) - run(network, x, t, d, labels)).max(axis=(1, 2, 3))
    np.testing.assert_array_equal(difference > 1e-3, [False, True, False, True])


# Inside


def test_activations_name_every_stage_of_the_forward_pass():
    x, t, d, label = inputs()
    found = eqx.filter_jit(eqx.filter_vmap(network_of().activations))(x, t, d, label)
    shapes = {name: value.shape[1:] for name, value in found.items()}
    vector, tokens = (16,), (6, 16)
    assert shapes == {
        "patches": tokens,
        "position": tokens,
        "time": vector,
        "step": vector,
        "label": vector,
        "conditioning": vector,
        "blocks": (2, *tokens),
        "final": (6, 8),
    }
    np.testing.assert_allclose(found["conditioning"], found["time"] + found["step"] + found["label"], atol=1e-6)
    out = jnp.stack([_from_patches(final, SHAPE, 2) for final in found["final"]])
    np.testing.assert_allclose(out, expected(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("shape", "patch"), [((4, 6, 2), 2), ((6, 3, 1), 3), ((2, 2, 5), 1), ((8, 4, 3), 4)])
def test_patches_invert_and_run_row_by_row(shape, patch):
    x = jnp.arange(float(math.prod(shape))).reshape(shape)
    tokens = _to_patches(x, patch)
    np.testing.assert_array_equal(_from_patches(tokens, shape, patch), x)
    columns = shape[1] // patch
    for token in range(tokens.shape[0]):
        row, column = divmod(token, columns)
        corner = x[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch]
        np.testing.assert_array_equal(tokens[token], corner.ravel())


def test_log_variance_reads_its_table_and_ends_at_one():
    network = eqx.tree_at(lambda n: n.logvar, network_of(), jnp.arange(256.0))
    t = jnp.array([0.0, 0.5, 255.9 / 256, 1.0])
    np.testing.assert_array_equal(jax.vmap(network.log_variance)(t), [0, 12800, 25500, 25500])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DiTConfig(hidden=16, heads=3), r"hidden=16 is not divisible by heads=3: choose heads"),
        (lambda: DiTConfig(hidden=18, heads=3), r"hidden=18 is not a multiple of 4, .*: round it up"),
        (lambda: CONFIG.build((5, 4, 1), 1, key=jax.random.key(0)), r"5 x 4 is not divisible by patch=2: choose a patch"),
        (lambda: CONFIG.build((4, 5, 1), 1, key=jax.random.key(0)), r"4 x 5 is not divisible by patch=2: choose a patch"),
        (lambda: preset("B/3"), r"unknown preset 'B/3': choose one of .*B/2.*XL/2"),
    ],
    ids=["heads", "hidden", "height", "width", "preset"],
)
def test_impossible_sizes_are_refused_with_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_presets_are_the_published_sizes():
    found = preset("XL/2")
    assert (found.hidden, found.depth, found.heads, found.patch, found.mlp_ratio) == (1152, 28, 16, 2, 4)
    assert preset("S/4").patch == 4
    assert all(preset(name).hidden % preset(name).heads == 0 for name in PRESETS)


def test_loss_is_equal_on_one_and_eight_devices():
    network, n = network_of(), 32
    x = jnp.asarray(np.random.default_rng(2).standard_normal((n, *SHAPE)), jnp.float32)
    batch = Batch(x, jnp.arange(n) % CLASSES)

    @jax.jit
    def loss(batch):
        field = NetworkField(network)
        options = {"steps": 8, "bootstrap_every": 4, "guidance": 2.0, "null": network.null, "dropout": 0.1}
        return losses.shortcut(field, batch, jax.random.key(0), target=field, **options)[0]

    sharded = jax.device_put(batch, sharding.batch_sharding(sharding.make_mesh()))
    assert len(sharded.x.devices()) == 8
    np.testing.assert_allclose(loss(sharded), loss(batch), rtol=1e-6)
