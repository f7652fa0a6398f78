"""Pairs of noise and sample: read as written, refused if not whole, and batched with their noise."""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import sharding
from eqx_shortcut.data import DataError, Pairs, batches, prepare, read_pairs
from eqx_shortcut.data.pairs import MANIFEST, shard_path, shards, write_shard

COUNT, SHARD, SHAPE, CLASSES = 10, 4, (2, 3, 1), 7


def pairs(count: int = COUNT) -> Pairs:
    rng = np.random.default_rng(0)
    noise, x = (rng.standard_normal((count, *SHAPE)).astype(np.float32) for _ in range(2))
    return Pairs(noise, x, np.arange(count, dtype=np.int32) % CLASSES, CLASSES)


def rows(given: Pairs, part: range) -> Pairs:
    at = slice(part.start, part.stop)
    return Pairs(given.noise[at], given.x[at], given.labels[at], given.classes)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    manifest = {"count": COUNT, "shard": SHARD, "shape": list(SHAPE), "classes": CLASSES}
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    for index, part in enumerate(shards(manifest)):
        write_shard(shard_path(tmp_path, index), rows(pairs(), part))
    return tmp_path


@pytest.mark.parametrize(("count", "size", "sizes"), [(10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 4, [3]), (1, 1, [1])])
def test_shards_are_all_numbers_in_order(count, size, sizes):
    found = shards({"count": count, "shard": size})
    assert [len(part) for part in found] == sizes
    assert [number for part in found for number in part] == list(range(count))


def test_what_is_read_is_what_was_written_to_half_precision(folder):
    found, given = read_pairs(folder, SHAPE), pairs()
    assert found.noise.dtype == found.x.dtype == np.float16 and found.classes == CLASSES
    np.testing.assert_allclose(found.noise, given.noise, rtol=2**-11, atol=2**-24)
    np.testing.assert_allclose(found.x, given.x, rtol=2**-11, atol=2**-24)
    np.testing.assert_array_equal(found.labels, given.labels)
    assert sorted(path.name for path in folder.iterdir()) == ["00000.npz", "00001.npz", "00002.npz", MANIFEST]


def test_a_shard_written_twice_is_the_same_file(folder):
    before = shard_path(folder, 0).read_bytes()
    write_shard(shard_path(folder, 0), rows(pairs(), range(0, SHARD)))
    assert shard_path(folder, 0).read_bytes() == before


def test_a_shard_that_could_not_be_written_whole_has_no_name(folder, monkeypatch):
    def fail(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    shard_path(folder, 1).unlink()
    monkeypatch.setattr(np, "savez_compressed", fail)
    with pytest.raises(OSError):
        write_shard(shard_path(folder, 1), pairs())
    assert not shard_path(folder, 1).exists()
    with pytest.raises(DataError, match=r"1 of 3 files of pairs are missing in .*, the first 00001.npz: repeat the command"):
        read_pairs(folder, SHAPE)


@pytest.mark.parametrize("text", [None, "", "[]", "{", '{"count": 10}', '{"count": "x", "shard": 4}'])
def test_a_folder_without_a_manifest_holds_no_pairs(folder, text):
    (folder / MANIFEST).unlink()
    if text is not None:
        (folder / MANIFEST).write_text(text)
    with pytest.raises(DataError, match=rf"{folder} holds no pairs .*: make them with eqx-shortcut pairs"):
        read_pairs(folder, SHAPE)


def truncate(path: pathlib.Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[90] ^= 0xFF
    path.write_bytes(bytes(raw))


def without_labels(path: pathlib.Path) -> None:
    np.savez(path, noise=np.zeros((SHARD, *SHAPE)), x=np.zeros((SHARD, *SHAPE)))


DAMAGE = {"empty": lambda path: path.write_bytes(b""), "truncated": truncate, "flipped": flip, "incomplete": without_labels}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_file_is_named_with_the_remedy(folder, damage):
    DAMAGE[damage](shard_path(folder, 1))
    with pytest.raises(DataError, match=r"00001.npz is damaged .*: delete it and repeat the command that makes the pairs"):
        read_pairs(folder, SHAPE)


def test_a_file_of_fewer_pairs_is_refused(folder):
    write_shard(shard_path(folder, 1), pairs(3))
    with pytest.raises(DataError, match=r"00001.npz does not hold 4 pairs: delete it"):
        read_pairs(folder, SHAPE)


def test_pairs_of_another_shape_are_refused(folder):
    with pytest.raises(DataError, match=r"pairs in .* are of shape \(2, 3, 1\), the data of \(4, 4, 1\): make others"):
        read_pairs(folder, (4, 4, 1))


def test_a_batch_keeps_noise_sample_and_label_together(folder, key):
    found = read_pairs(folder, SHAPE)
    loader = batches(found, 8, seed=0, sharding=sharding.batch_sharding(sharding.make_mesh()))
    raw = next(loader)
    loader.close()
    batch = prepare(found, mirror=True)(raw, key)
    assert batch.x.dtype == jnp.float32 and batch.noise is not None and batch.noise.dtype == jnp.float32
    places = [int(np.argmin(np.abs(found.x - np.asarray(x)).max(axis=(1, 2, 3)))) for x in batch.x]
    assert len(set(places)) == 8
    np.testing.assert_array_equal(batch.x, found.x[places].astype(np.float32))
    np.testing.assert_array_equal(batch.noise, found.noise[places].astype(np.float32))
    np.testing.assert_array_equal(batch.cond, found.labels[places])
    hidden = prepare(found, labelled=False)(raw, jax.random.key(1))
    np.testing.assert_array_equal(hidden.cond, np.full(8, CLASSES))
    np.testing.assert_array_equal(hidden.x, batch.x)
