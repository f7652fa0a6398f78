"""Paths of disks and of an object store: told apart by their name, read and written alike."""

import importlib.util
import os
import pathlib

import pytest

from eqx_shortcut import storage
from object_store import Objects


def test_a_name_is_a_local_path_unless_it_is_an_address():
    for name in ("runs", "/runs/a:b", "gs:/bucket", pathlib.Path("runs")):
        path = storage.as_path(name)
        assert isinstance(path, pathlib.Path) and path == pathlib.Path(name) and not storage.is_remote(path)
    path = storage.as_path("gs://bucket/runs") / "a"
    assert str(path) == "gs://bucket/runs/a" and storage.is_remote(path)
    assert storage.as_path(path) == path == storage.absolute(path)
    assert storage.absolute(pathlib.Path("runs")) == pathlib.Path.cwd() / "runs"


@pytest.mark.parametrize("name", ["s3://bucket/runs", "http://host/runs", "://runs"])
def test_an_address_of_another_store_is_refused(name):
    with pytest.raises(storage.StorageError, match=f"{name} is in no store that can be used: name a folder, or one of gs://"):
        storage.as_path(name)


@pytest.mark.parametrize("error", [ImportError("Please install gcsfs to access Google Storage"), OSError("no route\nat all")])
def test_a_store_that_cannot_be_reached_is_one_sentence(error, monkeypatch):
    path = storage.as_path("gs://bucket/runs")

    def refuse(*args: object) -> None:
        raise error

    for method in ("exists", "write_bytes"):
        monkeypatch.setattr(type(path), method, refuse)
    for use in (lambda: storage.exists(path), lambda: storage.write(path, "text")):
        with pytest.raises(storage.StorageError) as caught:
            use()
        reason = str(error).splitlines()[0]
        assert str(caught.value).startswith(f"gs://bucket/runs cannot be reached ({type(error).__name__}: {reason}): install")
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(importlib.util.find_spec("gcsfs") is not None, reason="gcsfs is installed")
def test_the_package_for_the_store_is_named_if_it_is_missing():
    with pytest.raises(storage.StorageError, match="ImportError: Please install gcsfs"):
        storage.exists(storage.as_path("gs://bucket/runs"))


def test_what_a_name_stands_for_is_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """A loss of power would leave an empty file under the name otherwise."""
    synced = []
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((os.fstat(number).st_ino, os.fstat(number).st_size)))
    storage.write(tmp_path / "a", "text")
    assert synced == [((tmp_path / "a").stat().st_ino, 4)]


def test_a_file_that_could_not_be_written_is_as_it_was(tmp_path, monkeypatch):
    storage.write(tmp_path / "a.json", "old")

    def half(path: pathlib.Path, data: bytes) -> None:
        with path.open("wb") as file:
            file.write(data[:1])
        raise OSError("no space")

    monkeypatch.setattr(pathlib.Path, "write_bytes", half)
    with pytest.raises(OSError, match="no space"):
        storage.write(tmp_path / "a.json", "new")
    assert (tmp_path / "a.json").read_text() == "old"


@pytest.fixture(params=["disk", "store"])
def folder(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> storage.Path:
    """An empty folder of either kind."""
    if request.param == "disk":
        return tmp_path
    request.getfixturevalue("store")
    return storage.as_path("gs://bucket") / tmp_path.name


def test_files_are_written_listed_and_summed_alike(folder):
    assert storage.files(folder / "none") == [] and not storage.exists(folder / "none")
    for name, data in {"b": b"beta", "a/x": b"alpha", "a/y": "gamma"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        storage.write(folder / name, "other")
        storage.write(folder / name, data)
    found = storage.files(folder)
    assert [str(path.relative_to(folder)) for path in found] == ["a/x", "a/y", "b"]
    # sha256sum of "alphagammabeta"
    assert storage.checksum(found) == "5140b11dc066e00594385c919d559ca5636f17a660cc19b0193fd6ae6dcc26e1"


def test_what_others_write_is_seen(store: Objects):
    """Arrays are written by TensorStore, of which gcsfs knows nothing."""
    folder = storage.as_path("gs://bucket/shared")
    store["bucket/shared/1/a"] = b"", 1
    assert [path.name for path in storage.files(folder)] == ["a"]
    store["bucket/shared/1/b"] = b"", 1
    assert [path.name for path in storage.files(folder)] == ["a", "b"]
    assert sorted(path.name for path in folder.glob("*")) == ["1"]


def test_a_file_that_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    def full(path, data):
        with path.open("wb") as file:
            file.write(data[:2])
        raise OSError("No space left on device")

    storage.write(tmp_path / "a.txt", "before")
    monkeypatch.setattr(pathlib.Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        storage.write(tmp_path / "a.txt", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"] and (tmp_path / "a.txt").read_text() == "before"
