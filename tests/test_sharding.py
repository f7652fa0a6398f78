"""Layouts: batches split over the devices, states whole on each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import sharding


@pytest.mark.parametrize("n", [1, 2, 8])
def test_a_batch_is_split_evenly_and_a_state_is_whole_on_every_device(n):
    mesh = sharding.make_mesh(devices=jax.devices()[:n])
    assert dict(mesh.shape) == {"data": n, "fsdp": 1, "tensor": 1}
    batch = jax.device_put(jnp.arange(16.0), sharding.batch_sharding(mesh))
    assert [shard.data.shape for shard in batch.addressable_shards] == [(16 // n,)] * n
    tree = sharding.replicate({"a": jnp.arange(3.0), "b": "static", "key": jax.random.key(0)}, mesh)
    assert tree["b"] == "static" and tree["a"].sharding.is_fully_replicated and tree["key"].sharding.is_fully_replicated
    assert len(tree["a"].addressable_shards) == n
    np.testing.assert_array_equal(tree["a"], [0, 1, 2])


def test_the_mesh_is_over_all_devices_by_default():
    assert sharding.make_mesh().devices.size == jax.device_count() == 8


def test_replicate_constrains_inside_jit():
    mesh = sharding.make_mesh()
    split = jax.device_put(jnp.arange(8.0), sharding.batch_sharding(mesh))
    assert not split.sharding.is_fully_replicated
    assert jax.jit(lambda x: sharding.replicate(x + 1, mesh))(split).sharding.is_fully_replicated


@pytest.mark.parametrize(("batch", "advice"), [(12, "use 8 or 16"), (7, "use 8"), (17, "use 16 or 24")])
def test_a_batch_that_the_devices_do_not_divide_is_refused_with_the_nearest_that_do(batch, advice):
    with pytest.raises(ValueError, match=f"batch {batch} does not divide over 8 devices: {advice}$"):
        sharding.check_batch(batch, sharding.make_mesh())


def test_each_turn_of_a_batch_is_divided_too():
    with pytest.raises(ValueError, match=r"batch 24 does not divide over 8 devices in 2 microbatches: use 16 or 32$"):
        sharding.check_batch(24, sharding.make_mesh(), accumulate=2)
    sharding.check_batch(32, sharding.make_mesh(), accumulate=4)


@pytest.mark.parametrize(("rows", "share"), [(16, 2), (12, 12)])
def test_rows_are_spread_over_the_mesh_in_use_where_it_divides_them_and_made_whole_again(rows, share):
    x, mesh = jnp.arange(3.0 * rows).reshape(rows, 3), sharding.make_mesh(data=2, fsdp=4)
    inside = jax.jit(lambda x: sharding.sharded(x) + 1)
    with jax.set_mesh(mesh):
        spread, again = inside(x), jax.jit(lambda x: sharding.replicated(sharding.sharded(x) + 1))(x)
    assert len(spread.addressable_shards[0].data) == share
    assert again.sharding.is_fully_replicated
    assert inside(x).sharding.num_devices == 1, "without a mesh nothing is sent"
    np.testing.assert_array_equal(again, x + 1)


def test_arrays_of_any_rank_have_a_place_whatever_their_names():
    """Those of a network of one's own may be called as those of the transformer, and have other axes."""
    mesh = sharding.make_mesh(fsdp=4, tensor=2)
    kernel = lambda *shape: {"kernel": np.zeros(shape), "bias": np.zeros(())}  # noqa: E731
    tree = {"blocks": {"qkv": kernel(8), "up": [kernel(), kernel(8, 8)], "out": kernel(8)}, "kernel": np.zeros(())}
    found = {
        jax.tree_util.keystr(path, simple=True, separator="/"): tuple(place.spec)
        for path, place in jax.tree_util.tree_leaves_with_path(sharding.layout(tree, mesh))
    }
    assert found["blocks/up/1/kernel"] == (None, "fsdp") and found["blocks/out/kernel"] == (None,)
    assert found["blocks/qkv/kernel"] == (None,) and found["blocks/up/0/kernel"] == found["kernel"] == ()


def test_a_batch_that_the_devices_divide_is_accepted():
    sharding.check_batch(24, sharding.make_mesh())
    sharding.check_batch(7, sharding.make_mesh(devices=jax.devices()[:1]))
