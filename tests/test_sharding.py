"""Layouts: batches split over the devices, states whole on each."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import sharding


@pytest.mark.parametrize("n", [1, 2, 8])
def test_a_batch_is_split_evenly_and_a_state_is_whole_on_every_device(n):
    mesh = sharding.data_mesh(jax.devices()[:n])
    assert dict(mesh.shape) == {"data": n}
    batch = jax.device_put(jnp.arange(16.0), sharding.batch_sharding(mesh))
    assert [shard.data.shape for shard in batch.addressable_shards] == [(16 // n,)] * n
    tree = sharding.replicate({"a": jnp.arange(3.0), "b": "static", "key": jax.random.key(0)}, mesh)
    assert tree["b"] == "static" and tree["a"].sharding.is_fully_replicated and tree["key"].sharding.is_fully_replicated
    assert len(tree["a"].addressable_shards) == n
    np.testing.assert_array_equal(tree["a"], [0, 1, 2])


def test_the_mesh_is_over_all_devices_by_default():
    assert sharding.data_mesh().devices.size == jax.device_count() == 8


def test_replicate_constrains_inside_jit():
    mesh = sharding.data_mesh()
    split = jax.device_put(jnp.arange(8.0), sharding.batch_sharding(mesh))
    assert not split.sharding.is_fully_replicated
    assert jax.jit(lambda x: sharding.replicate(x + 1, mesh))(split).sharding.is_fully_replicated


@pytest.mark.parametrize(("batch", "advice"), [(12, "use 8 or 16"), (7, "use 8"), (17, "use 16 or 24")])
def test_a_batch_that_the_devices_do_not_divide_is_refused_with_the_nearest_that_do(batch, advice):
    with pytest.raises(ValueError, match=f"batch {batch} does not divide over 8 devices: {advice}$"):
        sharding.check_batch(batch, sharding.data_mesh())


def test_a_batch_that_the_devices_divide_is_accepted():
    sharding.check_batch(24, sharding.data_mesh())
    sharding.check_batch(7, sharding.data_mesh(jax.devices()[:1]))
