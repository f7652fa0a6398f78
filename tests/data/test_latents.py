"""Caches of latents: rows in any order are those that were written, batches follow the posterior, every fault is named."""

import json
import pathlib
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import storage
from eqx_shortcut.data import DataError, prepare, read_latents
from eqx_shortcut.data.latents import MANIFEST, Shard, blank, check_finite, copied, shard_rows
from object_store import Objects

COUNT, SIZE, SHAPE, SCALE, SHIFT = 10, 4, (3, 2, 5), 0.5, 0.25
MOMENTS = np.random.default_rng(0).normal(size=(COUNT, 2, 2, *SHAPE)).astype(np.float16)
LABELS = np.arange(COUNT, dtype=np.int32) % 3


@pytest.fixture
def cache(tmp_path: pathlib.Path) -> pathlib.Path:
    """Three shards, the last one short."""
    (tmp_path / "train").mkdir()
    ranges = shard_rows(COUNT, SIZE)
    for i, rows in enumerate(ranges):
        Shard(tmp_path / "train", i).write(MOMENTS[rows.start : rows.stop], LABELS[rows.start : rows.stop])
    manifest = {
        "moments": MOMENTS.shape[1:],
        "shard": SIZE,
        "classes": 3,
        "autoencoder": {"scale": SCALE, "shift": SHIFT},
        "parts": {
            "train": {"count": COUNT, "shards": [Shard(tmp_path / "train", i).checksum_file.read_text() for i in range(3)]}
        },
    }
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    return tmp_path


@pytest.mark.parametrize("indices", [np.arange(COUNT), np.array([9, 0, 4, 3, 3])])
def test_rows_in_any_order_are_those_written(cache, indices):
    for latents in (read := read_latents(cache, "train", check=True)), pickle.loads(pickle.dumps(read)):
        rows = latents.rows(indices)
        np.testing.assert_array_equal(rows["moments"], MOMENTS[indices])
        np.testing.assert_array_equal(rows["labels"], LABELS[indices])
        assert latents.shape == SHAPE and latents.classes == 3


def test_another_process_is_sent_the_place_and_not_the_latents(cache):
    latents = read_latents(cache, "train").first(7)
    sent = pickle.dumps(latents)
    assert len(sent) < 400 < MOMENTS.nbytes
    assert len(pickle.loads(sent).labels) == len(latents.labels) == 7


def many(latents, key, *, mirror: bool, count: int = 4000) -> np.ndarray:
    """Batches of the first image, whose moments are equal in every row."""
    raw = {name: jnp.asarray(value) for name, value in latents.rows(np.zeros(count, np.int64)).items()}
    return np.asarray(prepare(latents, mirror=mirror)(raw, key).x)


def test_a_batch_is_drawn_from_the_posterior_in_training_units(cache, key):
    x = many(read_latents(cache, "train"), key, mirror=False)
    mean, deviation = MOMENTS[0, 0, 0].astype(np.float32), np.exp(MOMENTS[0, 0, 1].astype(np.float32) / 2)
    bound = 5 * deviation * SCALE / np.sqrt(len(x))
    assert np.all(np.abs(x.mean(0) - (mean - SHIFT) * SCALE) < bound)
    np.testing.assert_allclose(x.std(0), deviation * SCALE, rtol=0.1)


@pytest.mark.parametrize(("mirror", "share"), [(True, 0.5), (False, 0.0)])
def test_about_half_the_rows_are_of_the_mirror_image(cache, key, mirror, share):
    moments = np.zeros((COUNT, 2, 1, *SHAPE), np.float16)
    moments[:, 1] = 1
    Shard(cache / "train", 0).write(moments[:SIZE], LABELS[:SIZE])
    for i in (1, 2):
        Shard(cache / "train", i).write(moments[i * SIZE : (i + 1) * SIZE], LABELS[i * SIZE : (i + 1) * SIZE])
    change(cache, moments=moments.shape[1:])
    x = many(read_latents(cache, "train"), key, mirror=mirror) / SCALE + SHIFT
    assert np.all((x == 0).all((1, 2, 3)) ^ (x == 1).all((1, 2, 3)))
    assert abs(x.mean() - share) < 4 * 0.5 / np.sqrt(len(x))


def change(cache: pathlib.Path, **entries) -> None:
    path = cache / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


def drop(cache: pathlib.Path, key: str) -> None:
    path = cache / MANIFEST
    path.write_text(json.dumps({name: value for name, value in json.loads(path.read_text()).items() if name != key}))


def flip(path: pathlib.Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


PART = {"train": {"count": COUNT + SIZE, "shards": ["", "", ""]}}
FAULTS = {
    "no manifest": (lambda c: (c / MANIFEST).unlink(), "holds no finished cache of latents .*eqx-shortcut encode"),
    "no JSON": (lambda c: (c / MANIFEST).write_text("{"), "manifest.json cannot be read"),
    "no part": (lambda c: change(c, parts={}), "lacks 'train' and is no cache of latents: delete it and repeat"),
    "no sizes": (lambda c: drop(c, "moments"), "lacks 'moments'"),
    "more images": (lambda c: change(c, parts=PART), "names 3 shards, its images fill 4"),
    "other shape": (lambda c: change(c, moments=[2, 2, 4, 4, 4]), r"00000.npy holds float16 of shape .* delete its .sha256"),
    "other shards": (lambda c: change(c, shard=5, parts={"train": {"count": 10, "shards": ["", ""]}}), "by the manifest it is"),
    "no shard": (lambda c: Shard(c / "train", 1).moments.unlink(), "00001.npy cannot be read"),
    "short shard": (lambda c: Shard(c / "train", 2).moments.write_bytes(b"\x93NUMPY"), "00002.npy cannot be read"),
    "short labels": (lambda c: np.save(Shard(c / "train", 1).labels, LABELS[:1]), "00001.labels.npy holds int32 of shape"),
    "flipped bit": (
        lambda c: flip(Shard(c / "train", 1).moments),
        "00001.npy or its labels have changed .*00001.sha256",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_cache_that_contradicts_its_manifest_is_refused_in_one_sentence(cache, fault):
    spoil, words = FAULTS[fault]
    spoil(cache)
    with pytest.raises(DataError, match=words) as caught:
        read_latents(cache, "train", check=True)
    assert "\n" not in str(caught.value)


def test_a_draw_is_a_function_of_the_key(cache, key):
    latents = read_latents(cache, "train")
    assert np.array_equal(many(latents, key, mirror=True), many(latents, key, mirror=True))
    assert not np.array_equal(many(latents, key, mirror=True), many(latents, jax.random.key(1), mirror=True))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (np.nan, "are not numbers"),
        (np.inf, "are beyond half precision"),
        (-np.inf, "are beyond half precision"),
        (65520.0, "are beyond half precision"),  # the nearest number of half precision is infinite
        (1e30, "are beyond half precision"),
    ],
)
def test_latents_that_half_precision_does_not_hold_are_refused_before_they_are_written(tmp_path, value, words):
    moments = MOMENTS.astype(np.float32)
    moments[7, 1, 0, 2, 1, 3] = value
    with pytest.raises(DataError, match=rf"row 7 of .*00002.npy {words}.*, 1 of 10 encoded together: the autoenc"):
        Shard(tmp_path, 2).write(moments, LABELS)
    with pytest.raises(DataError, match=rf"latents of image 107 {words}"):
        check_finite(moments, lambda row: f"image {100 + row}")
    assert list(tmp_path.iterdir()) == []
    moments[7, 1, 0, 2, 1, 3] = 65504
    check_finite(moments, str)
    Shard(tmp_path, 2).write(moments, LABELS)


def test_a_cache_knows_the_names_of_its_classes(cache):
    assert read_latents(cache, "train").names == blank(cache).names == ()
    change(cache, identity={"names": ["bird", "cat", "dog"]})
    latents = read_latents(cache, "train")
    assert latents.names == latents.first(2).names == blank(cache).names == ("bird", "cat", "dog")
    assert pickle.loads(pickle.dumps(latents)).names == latents.names


def test_a_manifest_tells_the_kind_of_latents(cache):
    one = blank(cache)
    assert (one.shape, one.classes, one.mirrored, len(one.labels)) == (SHAPE, 3, True, 1)
    (cache / MANIFEST).write_text("{}")
    with pytest.raises(DataError, match=r"manifest.json lacks 'moments' and is no cache of latents"):
        blank(cache)


@pytest.fixture
def remote(cache: pathlib.Path, store: Objects) -> storage.Path:
    """The cache in an object store."""
    for path in storage.files(cache):
        store[f"bucket/{cache.name}/{path.relative_to(cache)}"] = path.read_bytes(), 1
    return storage.as_path(f"gs://bucket/{cache.name}")


def test_a_cache_in_an_object_store_is_copied_once_and_read_from_the_copy(remote, cache, store, tmp_path):
    seen: list[list[int]] = []

    def each(shards: list[Shard]) -> list[Shard]:
        seen.append([shard.index for shard in shards])
        return shards

    home = tmp_path / "home"
    local = copied(remote, home, each)
    np.testing.assert_array_equal(read_latents(local, "train", check=True).rows(np.arange(COUNT))["moments"], MOMENTS)
    Shard(local / "train", 1).checksum_file.unlink()
    assert copied(remote, home, each) == local and seen == [[0, 1, 2], [1]]
    assert [path.name for path in storage.files(local)] == [MANIFEST, *(path.name for path in storage.files(local / "train"))]
    assert len(storage.files(local / "train")) == 9
    store[f"bucket/{cache.name}/{MANIFEST}"] = b'{"parts": {}}', 2
    assert copied(remote, home) != local
    with pytest.raises(DataError, match=r"gs://.* cannot be mapped into memory: copy it to a disk first"):
        read_latents(remote, "train")


def test_a_copy_that_is_not_what_was_written_is_refused(remote, store, tmp_path):
    name = f"bucket/{remote.name}/train/00001.npy"
    store[name] = store[name][0][:-1] + b"?", 2
    with pytest.raises(DataError, match=r"gs://.*/train/00001.npy or its labels have changed since they were written"):
        copied(remote, tmp_path / "home")


def test_a_copy_for_which_there_is_no_room_is_refused(remote, tmp_path, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("shutil.copyfileobj", full)
    with pytest.raises(DataError, match=r"gs://.*/00000.npy could not be copied to .*No space left.*: free space there, or"):
        copied(remote, tmp_path / "home")
    assert storage.files(tmp_path / "home") == []
