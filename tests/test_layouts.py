"""The same training on every mesh, and what each mesh sends: collectives counted in the compiled step."""

import functools
import pathlib
from collections import Counter
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqx_shortcut import Batch, compilation, samplers, sharding
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import FlowMatching, Objective, Shortcut
from eqx_shortcut.train import Step, init_state, make_step, make_update
from scripts import script

collectives = script("collectives")

CONFIG = DiTConfig(hidden=16, depth=2, heads=2, patch=2)
SHAPE, CLASSES, STEPS = (4, 4, 1), 5, 5
IMAGES = jax.random.normal(jax.random.key(3), (STEPS, 16, *SHAPE))
LABELS = jnp.arange(16) % CLASSES
# Plain gradient descent: what a parameter moved is the sum of its gradients, which Adam would divide by their size.
TX = optax.sgd(0.02)
MESHES = {"fsdp": (1, 8, 1), "tensor x data": (2, 1, 2), "data": (8, 1, 1), "hybrid": (2, 4, 1), "all three": (2, 2, 2)}
names = pytest.mark.parametrize(
    "name", [*list(MESHES)[:1], *(pytest.param(n, marks=pytest.mark.slow) for n in list(MESHES)[1:])]
)


def mesh_of(data: int, fsdp: int, tensor: int) -> jax.sharding.Mesh:
    devices = jax.devices()[: data * fsdp * tensor]
    return sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor, devices=devices)


def build(key):
    network = CONFIG.build(SHAPE, CLASSES, key=key)
    # A network that answers 0, as at first, has no gradient but in its last layer.
    kernel = lambda network: network.final.out.kernel  # noqa: E731
    return eqx.tree_at(kernel, network, 0.1 * jax.random.normal(key, kernel(network).shape))


def prepare(raw: Any, key: Any) -> Batch:
    return Batch(*raw)


def state_on(mesh: jax.sharding.Mesh) -> Any:
    return init_state(
        build, TX, jax.random.key(0), null=CLASSES, averages=(0.1,), shardings=lambda state: sharding.lay_out(state, mesh)
    )


@functools.cache
def step_on(mesh: jax.sharding.Mesh) -> Step:
    """One step of the training below, compiled once for a mesh."""
    objective = Shortcut(steps=4, bootstrap_every=2)
    shardings = lambda state: sharding.lay_out(state, mesh)  # noqa: E731
    return make_step(objective, TX, prepare=prepare, ema_decay=0.9, steps=STEPS, shardings=shardings)


def stepped(mesh: jax.sharding.Mesh, state: Any, images: jax.Array) -> tuple[Any, list[Any]]:
    """State, and losses with gradient norms, after a step on each batch."""
    seen = []
    for x in images:
        state, metrics = step_on(mesh)(state, jax.device_put((x, LABELS), sharding.batch_sharding(mesh)))
        seen.append((metrics["loss"], metrics["grad_norm"]))
    return state, jax.device_get(seen)


@functools.cache
def trained(*sizes: int) -> tuple[Any, list[Any], Any]:
    """State, losses with gradient norms, and samples after five steps on a mesh."""
    mesh = mesh_of(*sizes)
    with compilation.compiled_for(mesh), jax.set_mesh(mesh):
        state, seen = stepped(mesh, state_on(mesh), IMAGES)
        noise = jax.device_put(IMAGES[0], sharding.batch_sharding(mesh))
        objective = Shortcut(steps=4, bootstrap_every=2)
        sampler = eqx.filter_jit(lambda network: samplers.euler(objective.sampling(network), noise, LABELS, steps=2))
        return state, seen, np.asarray(sampler(state.networks.ema))


@names
def test_losses_gradients_and_samples_are_those_of_one_device(name):
    """And the state keeps the layout it was made in, so that a step compiles once and a share is a share throughout."""
    one, many = trained(1, 1, 1), trained(*MESHES[name])
    np.testing.assert_allclose(many[1], one[1], rtol=1e-5)
    np.testing.assert_allclose(many[2], one[2], atol=1e-5)
    networks = [jax.tree.leaves(eqx.filter((s.networks, s.averages), eqx.is_array)) for s in (one[0], many[0])]
    for a, b in zip(*networks, strict=True):
        np.testing.assert_allclose(b, a, atol=1e-5)
    assert np.abs(np.diff(np.asarray(one[1])[:, 0])).min() > 1e-3, "nothing was learnt, nothing is compared"
    wanted = jax.tree.leaves(sharding.layout(many[0], mesh_of(*MESHES[name])))
    arrays = jax.tree.leaves(eqx.filter(many[0], eqx.is_array))
    assert all(array.sharding.is_equivalent_to(w, array.ndim) for array, w in zip(arrays, wanted, strict=True))


class Foreign(eqx.Module):
    """A network that the package has never heard of."""

    mlp: eqx.nn.MLP

    def __call__(self, x, t, d, label, *, key=None):
        return self.mlp(jnp.concatenate([x.ravel(), jnp.stack([t, d, label / CLASSES])])).reshape(x.shape)


def test_a_foreign_network_learns_on_eight_devices_what_it_learns_on_one():
    def losses(*sizes: int) -> list[Any]:
        mesh, size = mesh_of(*sizes), int(np.prod(SHAPE))
        lay_out = functools.partial(sharding.lay_out, mesh=mesh)
        own = lambda key: Foreign(eqx.nn.MLP(size + 3, size, 32, 2, key=key))  # noqa: E731
        with compilation.compiled_for(mesh), jax.set_mesh(mesh):
            state = init_state(own, TX, jax.random.key(0), null=CLASSES, shardings=lay_out)
            step = make_step(
                Shortcut(steps=4, bootstrap_every=2), TX, prepare=prepare, ema_decay=0.9, steps=STEPS, shardings=lay_out
            )
            seen = []
            for x in IMAGES:
                state, metrics = step(state, jax.device_put((x, LABELS), sharding.batch_sharding(mesh)))
                seen.append((metrics["loss"], metrics["grad_norm"]))
        return jax.device_get(seen)

    np.testing.assert_allclose(losses(1, 8, 1), losses(1, 1, 1), rtol=1e-5)


@pytest.fixture(scope="module")
def halfway(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A checkpoint after two of the five steps, by 8 devices that share the weights."""
    mesh, folder = mesh_of(1, 8, 1), tmp_path_factory.mktemp("halfway")
    with compilation.compiled_for(mesh), jax.set_mesh(mesh):
        checkpoints = Checkpoints(folder)
        checkpoints.save(stepped(mesh, state_on(mesh), IMAGES[:2])[0], {})
        checkpoints.close()
    return folder


@pytest.mark.parametrize(
    "sizes",
    [(1, 1, 1), *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in ((1, 1, 2), (2, 1, 1), (2, 2, 1), (1, 2, 2)))],
)
def test_a_checkpoint_of_shared_weights_goes_on_with_fewer_devices_and_another_mesh(halfway, sizes):
    """To the losses, and the weights, of 8 devices throughout."""
    mesh = mesh_of(*sizes)
    with compilation.compiled_for(mesh), jax.set_mesh(mesh):
        found = Checkpoints(halfway).restore(state_on(mesh))
        assert found is not None
        state, seen = stepped(mesh, found[0], IMAGES[2:])
    whole = trained(1, 8, 1)
    np.testing.assert_allclose(seen, whole[1][2:], rtol=1e-5)
    networks = [jax.tree.leaves(eqx.filter((s.networks, s.averages), eqx.is_array)) for s in (whole[0], state)]
    for a, b in zip(*networks, strict=True):
        assert len(b.devices()) == mesh.size
        np.testing.assert_allclose(b, a, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 2), (1, 4, 2)])
def test_each_device_holds_its_share_of_every_kernel(sizes):
    mesh = mesh_of(*sizes)
    config = DiTConfig(hidden=32, depth=3, heads=4, patch=4)
    like = eqx.filter_eval_shape(lambda key: config.build((16, 16, 4), CLASSES, key=key), jax.random.key(0))
    places = sharding.layout(like, mesh)
    share = lambda leaf, place: np.prod(place.shard_shape(leaf.shape)) / leaf.size  # noqa: E731
    _, fsdp, tensor = sizes
    for name in ("qkv", "out", "up", "down"):
        kernel = getattr(like.blocks, name).kernel
        assert share(kernel, getattr(places.blocks, name).kernel) == 1 / (fsdp * tensor)
        assert getattr(places.blocks, name).kernel.spec[0] is None, "the depth is never split"
    for kernel, place in (
        (like.blocks.modulation.kernel, places.blocks.modulation.kernel),
        (like.final.out.kernel, places.final.out.kernel),
    ):
        assert share(kernel, place) == 1 / fsdp


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 4, 2)])
def test_gated_mlps_and_normalised_heads_are_shared_as_plain_ones_are(sizes):
    mesh = mesh_of(*sizes)
    config = DiTConfig(hidden=32, depth=3, heads=4, patch=4, mlp="swiglu", qk_norm=True)
    like = eqx.filter_eval_shape(lambda key: config.build((16, 16, 4), CLASSES, key=key), jax.random.key(0))
    blocks, tensor = sharding.layout(like, mesh).blocks, "tensor" if sizes[2] > 1 else None
    spec = jax.sharding.PartitionSpec
    assert blocks.up.kernel.spec == spec(None, "fsdp", None, tensor)
    assert blocks.up.bias.spec == spec(None, None, tensor)
    assert blocks.qkv.dense.kernel.spec == spec(None, "fsdp", None, tensor, None)
    assert blocks.qkv.query.is_fully_replicated and blocks.qkv.key.is_fully_replicated


def found_in(mesh: jax.sharding.Mesh, objective: Objective, config: DiTConfig, batch: int = 64) -> list[Any]:
    """The collectives of the compiled step."""
    state = eqx.filter_eval_shape(
        init_state, lambda key: config.build(SHAPE, CLASSES, key=key), optax.adamw(1e-3), jax.random.key(0), null=CLASSES
    )
    arrays, static = eqx.partition(state, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    place = lambda leaf, where: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)  # noqa: E731
    arrays = jax.tree.map(place, arrays, sharding.layout(arrays, mesh))
    split = sharding.batch_sharding(mesh)
    raw = (
        jax.ShapeDtypeStruct((batch, *SHAPE), jnp.float32, sharding=split),
        jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=split),
    )
    shardings = lambda state: sharding.lay_out(state, mesh)  # noqa: E731
    update = make_update(objective, optax.adamw(1e-3), ema_decay=0.99, steps=10, shardings=shardings)

    def step(arrays, raw):
        state, metrics = update((raw, prepare), eqx.combine(arrays, static))
        return eqx.filter(state, eqx.is_array), metrics

    # The gradient of JAX's attention mixes dtypes in half precision.
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):
        return collectives.read(jax.jit(step).lower(arrays, raw).compile().as_text() or "")


def counted(found: list[Any]) -> dict[str, Counter]:
    """How many of each kind the program's text has: outside of loops, and in each loop over the depth, in order."""
    places: dict[str, Counter] = {}
    for one in found:
        places.setdefault(one.place, Counter())[one.kind] += 1
    return places


@pytest.mark.parametrize("guidance", [1.5, pytest.param(1.0, marks=pytest.mark.slow)])
def test_data_parallel_sends_gradients_and_nothing_else(guidance):
    """Also the shortcut step, of whose batch a part becomes bootstrap rows, and of these a part is guided."""
    found = found_in(mesh_of(8, 1, 1), Shortcut(steps=4, bootstrap_every=2, guidance=guidance), CONFIG)
    assert {one.kind for one in found} == {"all-reduce"}
    network = eqx.filter_eval_shape(lambda key: CONFIG.build(SHAPE, CLASSES, key=key), jax.random.key(0))
    weights = sum(4 * leaf.size for leaf in jax.tree.leaves(network) if isinstance(leaf, jax.ShapeDtypeStruct))
    # Gradients of biases are summed over the examples before they are sent, over the tokens after.
    assert 0.95 * weights < sum(one.times * one.size for one in found) < 1.05 * weights


@pytest.mark.slow
def test_bootstrap_rows_that_the_devices_do_not_divide_send_rows_only():
    """12 of 24 rows on 8 devices: besides gradients a step sends no more than twice the batch, and no activation."""
    found = found_in(mesh_of(8, 1, 1), Shortcut(steps=4, bootstrap_every=2, guidance=1.5), CONFIG, batch=24)
    moved = sum(one.times * one.size for one in found if one.kind != "all-reduce")
    assert 0 < moved < 2 * 24 * 4 * np.prod(SHAPE)


@pytest.mark.parametrize(
    ("objective", "forward_passes", "remat", "precision"),
    [
        (FlowMatching(), 1, "elementwise", "bfloat16"),
        pytest.param(FlowMatching(), 1, "elementwise", "float32", marks=pytest.mark.slow),
        pytest.param(FlowMatching(), 1, "none", "bfloat16", marks=pytest.mark.slow),
        pytest.param(Shortcut(steps=4, bootstrap_every=2), 3, "none", "float32", marks=pytest.mark.slow),
        pytest.param(Shortcut(steps=4, bootstrap_every=2, guidance=1.5), 3, "elementwise", "bfloat16", marks=pytest.mark.slow),
        pytest.param(Shortcut(steps=4, bootstrap_every=2), 3, "block", "bfloat16", marks=pytest.mark.slow),
    ],
)
def test_fsdp_gathers_each_blocks_weights_once_a_pass(objective, forward_passes, remat, precision):
    """Five kernels a block, in the loop over the depth of each pass; never those of all blocks at once, and nothing else."""
    config = DiTConfig(hidden=16, depth=3, heads=2, patch=2, remat=remat, precision=precision)
    found = counted(found_in(mesh_of(1, 8, 1), objective, config))
    main = found.pop("main")
    assert set(main) == {"all-gather", "all-reduce"}
    backward = [counts for counts in found.values() if counts["all-reduce"]]
    forward = [counts for counts in found.values() if not counts["all-reduce"]]
    assert backward == [{"all-gather": 5, "all-reduce": 1}]
    assert len(forward) == forward_passes and all(counts == {"all-gather": 5} for counts in forward)


def test_tensor_parallel_sums_activations_twice_a_block_and_pass():
    found = counted(found_in(mesh_of(4, 1, 2), FlowMatching(), CONFIG))
    assert {kind for counts in found.values() for kind in counts} == {"all-reduce"}
    loops = sorted(counts["all-reduce"] for place, counts in found.items() if place != "main")
    assert loops == [2, 3], "two forward; two backward, and the gradient over the axis data"


@pytest.mark.parametrize(
    ("sizes", "sentence"), [((3, 2, 1), "data 3 x fsdp 2 x tensor 1 is not one of 8"), ((None, 3, 1), "data 2 x fsdp 3")]
)
def test_a_mesh_of_another_number_of_devices_is_refused(sizes, sentence):
    data, fsdp, tensor = sizes
    with pytest.raises(ValueError, match=sentence):
        sharding.make_mesh(data=data, fsdp=fsdp, tensor=tensor)


def test_rules_that_match_nothing_are_refused():
    with pytest.raises(ValueError, match="no rule for the layout of a/b, of shape"):
        sharding.layout({"a": {"b": jnp.zeros(3)}}, mesh_of(8, 1, 1), rules=[("kernel$", sharding.split(fsdp=0))])


def test_a_size_that_the_devices_do_not_divide_stays_whole():
    mesh = mesh_of(1, 4, 2)
    assert sharding.split(fsdp=0, tensor=1)((6, 6), mesh) == jax.sharding.PartitionSpec(None, "tensor")
