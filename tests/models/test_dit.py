import dataclasses
import functools
import math
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch, flops, losses, sharding
from eqx_shortcut.guidance import Guidance, Guided
from eqx_shortcut.models import DiTConfig, NetworkField
from eqx_shortcut.models.attention import QKNormed, rotary_table
from eqx_shortcut.models.dit import PRESETS, TwoHeads, _step_input, from_patches, preset, to_patches
from eqx_shortcut.models.guided import GuidedLabel
from eqx_shortcut.models.layers import Dense, position_table
from eqx_shortcut.objectives import FlowMatching, Shortcut

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
    assert float(jnp.abs(network.blocks.out.kernel).max()) > 0
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


def blocks_of(network, x, t, d):
    """Tokens behind each block, and what the first is told."""
    found = network.activations(x, jnp.float32(t), jnp.float32(d), jnp.int32(1))
    return found["blocks"], found["conditioning"], found["final"]


def test_a_split_network_sees_the_time_and_then_the_end_of_the_step():
    """Blocks before the split answer the same at every `d`; those behind are those of a plain network at `t + d`."""
    split, plain, x, t, d = network_of(split=1, step="none"), network_of(step="none"), inputs()[0][1], 0.25, 0.5
    (first, second), _, final = blocks_of(split, x, t, d)
    (early, at_start), _, _ = blocks_of(plain, x, t, d)
    np.testing.assert_array_equal(first, early)
    assert float(jnp.abs(second - at_start).max()) > 1e-2
    _, later, _ = blocks_of(plain, x, t + d, 0.0)
    block = jax.tree.map(lambda a: a[1], plain.blocks)
    expected = block(first, jax.nn.silu(later), plain.config, None, None)
    np.testing.assert_allclose(second, expected, atol=1e-5)
    np.testing.assert_allclose(final, plain.final(expected, jax.nn.silu(later), "layer"), atol=1e-5)
    for a, b in zip(blocks_of(split, x, t, 0.0), blocks_of(plain, x, t, 0.0), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, err_msg="a flow model's answer at d = 0")


def test_a_split_network_is_for_several_step_sizes_told_by_their_ends():
    config = dataclasses.replace(CONFIG, split=1, step="none")
    config.check(Shortcut())
    with pytest.raises(ValueError, match=r"FlowMatching knows one step size, and --network.split is for several"):
        config.check(FlowMatching())


def test_step_none_ignores_d():
    x, t, d, label = inputs()
    network = network_of(step="none")
    np.testing.assert_array_equal(run(network, x, t, d, label), run(network, x, t, 0 * d, label))


@pytest.mark.parametrize("step", ["log2", "linear"])
def test_other_steps_see_d(step):
    x, t, d, label = inputs()
    network = network_of(step=step)
    assert float(jnp.abs(run(network, x, t, d, label) - run(network, x, t, d / 2, label)).max()) > 1e-4


def test_time_none_ignores_t():
    x, t, d, labels = inputs()
    network = network_of(time="none")
    np.testing.assert_array_equal(run(network, x, t, d, labels), run(network, x, 1 - t, d, labels))
    at_zero = run(network_of(), x, jnp.zeros_like(t), d, labels)
    np.testing.assert_allclose(run(network, x, t, d, labels), at_zero, atol=1e-6)


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


# Options beside the reference's


OPTIONS = [{"norm": "rms"}, {"qk_norm": True}, {"positions": "rotary"}, {"positions": "both"}, {"mlp": "swiglu"}]
OPTIONS += [{"guided": "scale"}, {"guided": "interval"}, {"velocity_head": True}, {"split": 1, "step": "none"}]
TOLD = {"guided": "interval", "velocity_head": True}
MODERN = {"norm": "rms", "qk_norm": True, "positions": "both", "mlp": "swiglu"}


def built(**options):
    """A network of these options, no parameter zero."""
    structure, rng = structure_of(dataclasses.replace(CONFIG, **options)), np.random.default_rng(0)
    return jax.tree.map(lambda a: jnp.asarray(0.2 * rng.standard_normal(a.shape), jnp.float32), structure)


@pytest.mark.parametrize("options", [*OPTIONS, MODERN], ids=str)
def test_each_option_has_the_products_that_its_settings_count(options):
    network, x = built(**options), [a[1] for a in inputs()]
    assert flops.flops(jax.make_jaxpr(network)(*x)) == network.config.flops(SHAPE)


@functools.cache
def modern_gradient():
    return square(built(**MODERN, remat="none"))


@pytest.mark.parametrize("remat", ["elementwise", *(pytest.param(n, marks=pytest.mark.slow) for n in ("mlp", "block"))])
def test_with_all_options_memory_changes_no_number(remat):
    (value, gradient), (plain, plain_grad) = square(built(**MODERN, remat=remat)), modern_gradient()
    assert value > 1e-3
    np.testing.assert_allclose(value, plain, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(gradient), jax.tree.leaves(plain_grad), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("name", PRESETS)
def test_a_gated_mlp_has_the_parameters_of_a_plain_one(name):
    count = lambda config: sum(  # noqa: E731
        math.prod(leaf.shape)
        for leaf in jax.tree.leaves(
            eqx.filter_eval_shape(lambda key: config.build((32, 32, 4), 10, key=key).blocks, jax.random.key(0))
        )
    )
    plain = preset(name)
    assert abs(count(dataclasses.replace(plain, mlp="swiglu")) / count(plain) - 1) < 0.01


@pytest.mark.parametrize("which", [0, 1], ids=["queries", "keys"])
def test_normalised_queries_and_keys_do_not_depend_on_the_size_of_their_kernels(which):
    """And others do."""
    for options, atol in (({"qk_norm": True}, 1e-5), ({}, None)):
        network = built(**options)
        where = lambda n: n.blocks.qkv.dense if "qk_norm" in options else n.blocks.qkv  # noqa: B023, E731
        larger = jax.tree.map(lambda a: a.at[..., which, :, :].multiply(7), where(network))
        difference = jnp.abs(run(eqx.tree_at(where, network, larger), *inputs()) - run(network, *inputs())).max()
        assert difference < atol if atol else difference > 1e-2


@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_layer_norm_takes_the_mean_off_and_rms_norm_does_not(norm):
    network = built(norm=norm)
    x, c = jax.random.normal(jax.random.key(0), (6, 16)), jnp.ones(16)
    block = jax.tree.map(lambda a: a[0], network.blocks)
    branches = jax.jit(lambda x: (network.final(x, c, norm), block(x, c, network.config, None, None) - x))
    for out, moved in zip(branches(x), branches(x + 3), strict=True):
        assert np.allclose(out, moved, atol=1e-3) is (norm == "layer")


@pytest.mark.parametrize("rotary", [False, True])
def test_blocks_know_the_places_of_patches_by_their_rotation_alone(rotary):
    """In another order the tokens have the same answers in that order, unless they are turned."""
    network = built(positions="rotary")
    block = jax.tree.map(lambda a: a[0], network.blocks)
    x, table = jax.random.normal(jax.random.key(0), (6, 16)), rotary_table(8, 2, 3)
    answer = eqx.filter_jit(lambda x: block(x, jnp.ones(16), network.config, table if rotary else None, None))
    assert np.allclose(answer(x), answer(x[::-1])[::-1], atol=1e-5) is not rotary


@pytest.mark.parametrize("positions", ["rotary", "both"])
def test_rotary_positions_stand_in_place_of_the_table_or_beside_it(positions):
    x, t, d, label = (a[1] for a in inputs())
    found = eqx.filter_jit(built(positions=positions).activations)(x, t, d, label)["position"]
    np.testing.assert_array_equal(found, position_table(16, 2, 3) * (positions == "both"))


def test_an_untrained_network_of_all_options_answers_zero_and_has_the_other_parameters_of_the_plain_one(key):
    network, plain = (eqx.filter_jit(dataclasses.replace(CONFIG, **o).build)(SHAPE, CLASSES, key=key) for o in (MODERN, {}))
    assert not np.any(run(network, *inputs()))
    assert isinstance(network.blocks.qkv, QKNormed) and isinstance(plain.blocks.qkv, Dense)
    np.testing.assert_array_equal(network.blocks.qkv.dense.kernel, plain.blocks.qkv.kernel)
    np.testing.assert_array_equal(network.blocks.modulation.kernel, plain.blocks.modulation.kernel)
    assert network.blocks.up.kernel.shape == (2, 16, 2, 8)
    np.testing.assert_allclose(jnp.abs(network.blocks.up.kernel).max(), math.sqrt(6 / 24), rtol=0.02)


def guided_by(scale: float, start: float = 0.0, stop: float = 1.0):
    """The inputs with guidance beside the labels."""
    x, t, d, label = inputs()
    return x, t, d, Guided(label, *(jnp.full_like(t, value) for value in (scale, start, stop)))


@pytest.mark.parametrize("guided", ["scale", "interval"])
def test_a_network_that_is_told_its_guidance_answers_by_it_and_to_a_label_alone_as_if_there_were_none(guided):
    network = built(guided=guided)
    apart = lambda a, b: float(jnp.abs(run(network, *a) - run(network, *b)).max())  # noqa: E731
    assert apart(guided_by(3.0), guided_by(1.0)) > 1e-3
    for times in ((0.2, 1.0), (0.0, 0.7)):
        assert (apart(guided_by(3.0, *times), guided_by(3.0)) > 1e-3) is (guided == "interval")
    assert apart(guided_by(1.0), inputs()) < 1e-5
    found = eqx.filter_jit(eqx.filter_vmap(network.activations))(*guided_by(3.0))
    told = [found[name] for name in ("time", "step", "label", "scale", *(("start", "stop") if guided == "interval" else ()))]
    np.testing.assert_allclose(found["conditioning"], sum(told), atol=1e-6)


def test_guidance_is_embedded_as_one_less_its_inverse():
    """So at scale 4 as t is at 3/4."""
    network = built(guided="scale")
    same = eqx.tree_at(lambda n: n.time, network, network.label.numbers["scale"])
    x, _, d, cond = jax.tree.map(lambda a: a[0], guided_by(4.0))
    found = eqx.filter_jit(same.activations)(x, jnp.float32(0.75), d, cond)
    np.testing.assert_allclose(found["scale"], found["time"], rtol=1e-6)


def test_guidance_told_to_a_network_without_an_input_for_it_is_refused():
    with pytest.raises(ValueError, match=r"tells a guidance scale and the network has no input for one: build it with guided="):
        NetworkField(network_of())(*guided_by(3.0))


def test_the_second_head_is_another_last_layer_of_the_same_network():
    network = built(velocity_head=True)
    other = eqx.tree_at(lambda n: n.final, network, network.final.average)
    out, velocity = run(network, *inputs()), run(network.velocity, *inputs())
    np.testing.assert_array_equal(out, run(other, *inputs()))
    assert float(jnp.abs(out - velocity).max()) > 1e-3
    np.testing.assert_array_equal(network.velocity.final.out.kernel, network.final.velocity.out.kernel)
    grad = eqx.filter_jit(eqx.filter_grad(lambda n: jnp.sum(NetworkField(n).velocity(*inputs()) ** 2)))(network)
    assert not np.any(grad.final.average.out.kernel) and np.any(grad.final.velocity.out.kernel) and np.any(grad.patches.kernel)
    with pytest.raises(ValueError, match=r"no head for the velocity: build it with velocity_head=True"):
        other.velocity  # noqa: B018


def test_inputs_for_guidance_leave_the_other_parameters_of_an_untrained_network_as_they_are(key):
    network, plain = (eqx.filter_jit(dataclasses.replace(CONFIG, **o).build)(SHAPE, CLASSES, key=key) for o in (TOLD, {}))
    assert isinstance(network.label, GuidedLabel) and isinstance(network.final, TwoHeads)
    others = eqx.tree_at(lambda n: (n.label, n.final), network, (network.label.label, network.final.average))
    for a, b in zip(jax.tree.leaves(others), jax.tree.leaves(plain), strict=True):
        np.testing.assert_array_equal(a, b)


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
    assert network.label.shape[0] == CLASSES + 1
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
    out = jnp.stack([from_patches(final, SHAPE, 2) for final in found["final"]])
    np.testing.assert_allclose(out, expected(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("shape", "patch"), [((4, 6, 2), 2), ((6, 3, 1), 3), ((2, 2, 5), 1), ((8, 4, 3), 4)])
def test_patches_invert_and_run_row_by_row(shape, patch):
    x = jnp.arange(float(math.prod(shape))).reshape(shape)
    tokens = to_patches(x, patch)
    np.testing.assert_array_equal(from_patches(tokens, shape, patch), x)
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
        (lambda: DiTConfig(hidden=12, heads=2, positions="both"), r"heads=2 of hidden=12 have 6 .*positions=both need: choose"),
        (lambda: dataclasses.replace(CONFIG, split=2, step="none"), r"split=2 of depth=2 leaves no block that sees the end"),
        (
            lambda: dataclasses.replace(CONFIG, split=1),
            r"split=1 shows the step by .* step=log2, .*: use step=none",
        ),
        (lambda: CONFIG.build((5, 4, 1), 1, key=jax.random.key(0)), r"5 x 4 is not divisible by patch=2: choose a patch"),
        (lambda: CONFIG.build((4, 5, 1), 1, key=jax.random.key(0)), r"4 x 5 is not divisible by patch=2: choose a patch"),
        (lambda: preset("B/3"), r"unknown preset 'B/3': choose one of .*B/2.*XL/2"),
    ],
    ids=["heads", "hidden", "rotary", "split", "split and step", "height", "width", "preset"],
)
def test_impossible_sizes_are_refused_with_the_remedy(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_presets_are_the_published_sizes():
    found = preset("XL/2")
    assert (found.hidden, found.depth, found.heads, found.patch, found.mlp_ratio) == (1152, 28, 16, 2, 4)
    assert preset("S/4").patch == 4
    assert all(preset(name).hidden % preset(name).heads == 0 for name in PRESETS)


@pytest.mark.slow
def test_loss_is_equal_on_one_and_eight_devices():
    network, n = network_of(), 32
    x = jnp.asarray(np.random.default_rng(2).standard_normal((n, *SHAPE)), jnp.float32)
    batch = Batch(x, jnp.arange(n) % CLASSES)

    @jax.jit
    def loss(batch):
        field = NetworkField(network)
        options = {"steps": 8, "bootstrap_every": 4, "guidance": Guidance(jnp.int32(CLASSES), 0.1, 2.0)}
        return losses.shortcut(field, batch, jax.random.key(0), target=field, **options)[0]

    sharded = jax.device_put(batch, sharding.batch_sharding(sharding.make_mesh()))
    assert len(sharded.x.devices()) == 8
    np.testing.assert_allclose(loss(sharded), loss(batch), rtol=1e-6)


def test_attention_by_cudnn_is_refused_without_a_gpu():
    with pytest.raises(ValueError, match="attention=cudnn on cpu in float32: it needs an NVIDIA GPU and bfloat16"):
        dataclasses.replace(preset("tiny"), attention="cudnn").build((8, 8, 4), 10, key=jax.random.key(0))


@pytest.mark.parametrize(
    ("options", "kind", "said"),
    [
        ({}, "NVIDIA H100 80GB HBM3", "--network.attention cudnn --network.remat none --network.unroll 4"),
        ({"attention": "cudnn", "remat": "none"}, "NVIDIA L4", "--network.unroll 4"),
        ({"attention": "cudnn", "remat": "none", "unroll": 4}, "NVIDIA L4", ""),
        ({"precision": "float32"}, "NVIDIA H100 80GB HBM3", ""),
        ({}, "TPU v5 lite", ""),
    ],
)
def test_the_faster_options_are_named_where_they_were_measured(options, kind, said):
    config = dataclasses.replace(preset("tiny"), **{"precision": "bfloat16"} | options)
    assert config.faster(SimpleNamespace(device_kind=kind)) == said
