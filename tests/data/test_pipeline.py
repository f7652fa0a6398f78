"""From images to batches: every row once an epoch, in an order that is a function of the seed, from an exact position."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import sharding
from eqx_shortcut.data import Images, batches, prepare
from eqx_shortcut.data.pipeline import WholeBatches, host_batches, own_rows

COUNT, SIZE = 22, 8
IMAGES = Images(np.arange(COUNT * 6, dtype=np.uint8).reshape(COUNT, 2, 3, 1), np.arange(COUNT, dtype=np.int32), classes=COUNT)


def whole(seed: int = 0, size: int = SIZE, share: np.ndarray | None = None) -> WholeBatches:
    return WholeBatches(IMAGES, size, seed=seed, share=share)


def rows(source: WholeBatches, first: int, last: int) -> np.ndarray:
    return np.concatenate([source[i]["labels"] for i in range(first, last)])


def test_every_row_comes_once_an_epoch():
    """11 batches of 8 are 4 epochs of 22; three batches of each epoch span two."""
    for epoch in rows(whole(), 0, 11).reshape(4, COUNT):
        assert sorted(epoch) == list(range(COUNT))


@pytest.mark.parametrize("size", [50, 44, 22, 1])
def test_a_batch_may_be_longer_than_an_epoch(size):
    drawn = rows(whole(size=size), 0, -(-COUNT * 6 // size))[: COUNT * 6].reshape(6, COUNT)
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in drawn)


def test_the_order_is_new_each_epoch_and_a_function_of_the_seed():
    orders = rows(whole(), 0, 11).reshape(4, COUNT)
    assert len({tuple(order) for order in orders}) == 4
    assert np.array_equal(rows(whole(), 0, 11), orders.ravel())
    assert not np.array_equal(rows(whole(seed=1), 0, 11), orders.ravel())


def test_access_in_any_order_gives_the_same_batches():
    one, other = whole(), whole()
    for i in (9, 0, 5, 10, 2, 5):
        assert np.array_equal(one[i]["labels"], other[i]["labels"])
    assert np.array_equal(rows(one, 0, 11), rows(whole(), 0, 11))


def test_pixels_stay_with_their_labels():
    batch = whole()[3]
    np.testing.assert_array_equal(batch["pixels"], IMAGES.pixels[batch["labels"]])


def test_shares_of_two_processes_are_the_batch_of_one():
    shares = [whole(share=np.arange(8)[half]) for half in (slice(4), slice(4, 8))]
    for i in range(11):
        together = np.concatenate([share[i]["labels"] for share in shares])
        np.testing.assert_array_equal(together, whole()[i]["labels"])


LABELLED = Images(np.zeros((23, 2, 2, 1), np.uint8), np.repeat([3, 0, 2], [5, 8, 10]).astype(np.int32), classes=4)


def grouped(groups: int, size: int = 12, **options) -> WholeBatches:
    return WholeBatches(LABELLED, size, seed=0, groups=groups, **options)


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_a_batch_of_groups_is_sets_of_one_label_each_of_which_every_one_comes_once_a_round(groups):
    sets = np.concatenate([grouped(groups)[i]["labels"] for i in range(9)]).reshape(9 * groups, -1)
    assert (sets == sets[:, :1]).all()
    assert all(sorted(turn) == [0, 2, 3] for turn in sets[:, 0].reshape(-1, 3))
    assert groups == 1 or len({tuple(turn) for turn in sets[:, 0].reshape(-1, 3)}) > 1


def test_a_row_comes_once_in_an_epoch_of_its_label():
    """Sets of 4 rows, of which 40 rounds are 32, 20 and 16 epochs of labels 3, 0 and 2."""
    rows = np.concatenate([grouped(3).indices(i) for i in range(40)])
    for label, count in ((3, 5), (0, 8), (2, 10)):
        of_label = rows[LABELLED.labels[rows] == label].reshape(-1, count)
        assert all(sorted(epoch) == np.flatnonzero(LABELLED.labels == label).tolist() for epoch in of_label)
        assert len({tuple(epoch) for epoch in of_label}) > len(of_label) / 2


def test_groups_are_a_function_of_the_position_whatever_the_share():
    shares = [grouped(3, share=np.arange(12)[half]) for half in (slice(6), slice(6, 12))]
    for i in (7, 0, 3):
        together = np.concatenate([share.indices(i)[share.share] for share in shares])
        np.testing.assert_array_equal(together, grouped(3).indices(i))
    layout = sharding.batch_sharding(sharding.make_mesh(devices=jax.devices()[:1]))
    iterator = batches(LABELLED, 12, seed=0, sharding=layout, groups=3)
    iterator.set_state({"next_index": 5})
    np.testing.assert_array_equal(next(iterator)["labels"], grouped(3)[5]["labels"])
    iterator.close()


def test_groups_that_are_no_sets_are_refused():
    with pytest.raises(ValueError, match=r"batch 12 is not a multiple of groups=5"):
        grouped(5)
    alone = Images(np.zeros((3, 2, 2, 1), np.uint8), np.array([0, 1, 1], np.int32), classes=2)
    with pytest.raises(ValueError, match=r"class 0 has 1 of the images, .* leave the class out, or train with --unconditional"):
        WholeBatches(alone, 4, seed=0, groups=2)


class OfProcess(jax.sharding.Sharding):
    """A layout of which this process has some devices only."""

    def __init__(self, layout: jax.sharding.Sharding, devices: list[Any]):
        self.layout, self.devices = layout, devices

    def addressable_devices_indices_map(self, global_shape: tuple[int, ...]):
        return {
            device: index for device, index in self.layout.devices_indices_map(global_shape).items() if device in self.devices
        }


@pytest.mark.parametrize(("sizes", "shares"), [((2, 2, 2), 2), ((4, 1, 2), 2), ((8, 1, 1), 2), ((1, 2, 4), 2), ((1, 1, 8), 1)])
def test_a_process_reads_the_rows_of_its_devices(sizes, shares):
    """Devices that share the weights of the same rows need them all, in whichever process they are."""
    mesh = sharding.make_mesh(data=sizes[0], fsdp=sizes[1], tensor=sizes[2])
    layout, devices = sharding.batch_sharding(mesh), list(mesh.devices.flat)
    found = [own_rows(OfProcess(layout, half), 16) for half in (devices[:4], devices[4:])]
    np.testing.assert_array_equal(np.concatenate(found[:shares]), np.arange(16))
    assert shares == 2 or np.array_equal(found[0], found[1])


def loader(seed: int = 0):
    return batches(IMAGES, SIZE, seed=seed, sharding=sharding.batch_sharding(sharding.make_mesh()))


def labels(iterator, count: int) -> np.ndarray:
    return np.stack([np.asarray(next(iterator)["labels"]) for _ in range(count)])


def test_the_loader_yields_the_batches_in_order_laid_out_over_the_devices():
    iterator = loader()
    batch = next(iterator)
    assert len(batch["pixels"].sharding.device_set) == 8 and batch["pixels"].dtype == jnp.uint8
    assert np.array_equal(batch["labels"], whole()[0]["labels"])
    np.testing.assert_array_equal(labels(iterator, 10).ravel(), rows(whole(), 1, 11))
    iterator.close()


def test_the_state_is_that_of_the_batches_handed_out_whatever_was_read_ahead():
    iterator = loader()
    labels(iterator, 5)
    state = iterator.get_state()
    rest = labels(iterator, 4)
    iterator.set_state(state)
    np.testing.assert_array_equal(labels(iterator, 4), rest)
    fresh = loader()
    fresh.set_state(state)
    np.testing.assert_array_equal(labels(fresh, 4), rest)
    assert fresh.get_state() == iterator.get_state()
    np.testing.assert_array_equal(rest.ravel(), rows(whole(), 5, 9))
    iterator.close()
    fresh.close()


def test_the_state_is_one_number_that_json_holds():
    import json

    iterator = loader()
    labels(iterator, 3)
    assert json.loads(json.dumps(iterator.get_state())) == iterator.get_state() and 3 in iterator.get_state().values()
    iterator.close()


RAW = {"pixels": jnp.asarray(IMAGES.pixels), "labels": jnp.asarray(IMAGES.labels)}


def test_pixels_are_scaled_to_minus_1_and_1(key):
    batch = prepare(IMAGES, mirror=False)(RAW, key)
    assert batch.x.dtype == jnp.float32
    np.testing.assert_allclose(batch.x, IMAGES.scaled(), atol=1e-6)
    ends = {"pixels": jnp.array([[[[0]]], [[[16]]]], jnp.uint8), "labels": jnp.zeros(2, jnp.int32)}
    sixteen = Images(np.zeros((1, 1, 1, 1), np.uint8), np.zeros(1, np.int32), classes=1, peak=16)
    np.testing.assert_array_equal(prepare(sixteen, mirror=False)(ends, key).x.ravel(), [-1, 1])


def test_labels_pass_and_unlabelled_hides_them_all(key):
    assert np.array_equal(prepare(IMAGES, mirror=False)(RAW, key).cond, IMAGES.labels)
    hidden = prepare(IMAGES, mirror=False, labelled=False)(RAW, key).cond
    assert hidden.dtype == jnp.int32 and np.all(np.asarray(hidden) == IMAGES.classes)


def test_about_half_the_rows_are_mirrored_left_to_right_and_no_other_way(key):
    many = {name: jnp.tile(value, (50,) + (1,) * (value.ndim - 1)) for name, value in RAW.items()}
    x = np.asarray(prepare(IMAGES, mirror=True)(many, key).x)
    plain = np.tile(IMAGES.scaled(), (50, 1, 1, 1))
    same = np.isclose(x, plain, atol=1e-6).all(axis=(1, 2, 3))
    flipped = np.isclose(x, plain[:, :, ::-1], atol=1e-6).all(axis=(1, 2, 3))
    assert np.all(same ^ flipped)
    assert abs(flipped.mean() - 0.5) < 4 * 0.5 / np.sqrt(len(x))


def test_mirroring_is_a_function_of_the_key(key):
    to_batch = prepare(IMAGES, mirror=True)
    assert np.array_equal(to_batch(RAW, key).x, to_batch(RAW, key).x)
    assert not np.array_equal(to_batch(RAW, key).x, to_batch(RAW, jax.random.key(1)).x)


@pytest.mark.parametrize("size", [1, 4, 22, 100])
def test_host_batches_are_the_rows_in_order(size):
    parts = list(host_batches(IMAGES.labels, size))
    assert np.array_equal(np.concatenate(parts), IMAGES.labels)
    assert all(len(part) == size for part in parts[:-1]) and 0 < len(parts[-1]) <= size
