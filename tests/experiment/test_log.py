"""Records of metrics: a continued run's file is that of an undisturbed one."""

import importlib.util
import io
import json
import math
import os

import numpy as np
import PIL.Image
import pytest

from eqx_shortcut import storage
from eqx_shortcut.experiment.log import JsonLines, Logger, TensorBoard, WandB, read_lines


def write(path, first: int, last: int, *, start: int) -> None:
    log = JsonLines(path, start=start)
    assert isinstance(log, Logger)
    for step in range(first, last + 1):
        log.write(step, {"loss": 1 / step, "lr": 0.1})
    log.close()


@pytest.fixture
def picture(tmp_path_factory):
    """A PNG of random gray levels and what is in it."""
    path = tmp_path_factory.mktemp("picture") / "picture.png"
    levels = np.random.default_rng(0).integers(0, 256, (5, 7), np.uint8)
    PIL.Image.fromarray(levels).save(path)
    return path, levels


def test_a_picture_is_no_line_of_the_records(tmp_path, picture):
    log = JsonLines(tmp_path / "metrics.jsonl", start=0)
    log.write_image(1, "errors", picture[0])
    log.close()
    assert read_lines(tmp_path / "metrics.jsonl") == []


def test_records_are_read_as_written(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 1, 3, start=0)
    assert read_lines(path) == [{"step": n, "loss": 1 / n, "lr": 0.1} for n in (1, 2, 3)]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_a_record_is_on_disk_as_soon_as_it_is_written(tmp_path):
    log = JsonLines(tmp_path / "metrics.jsonl", start=0)
    log.write(1, {"loss": 2.0})
    assert read_lines(tmp_path / "metrics.jsonl") == [{"step": 1, "loss": 2.0}]
    log.close()


def test_records_are_on_the_disk_after_a_flush(tmp_path, monkeypatch):
    """As the checkpoint is that follows: a loss of power leaves no gap before it."""
    logger, synced = JsonLines(tmp_path / "m.jsonl", start=0), []
    logger.write(1, {"loss": 1.0})
    monkeypatch.setattr(os, "fsync", lambda number: synced.append((os.fstat(number).st_ino, os.fstat(number).st_size)))
    logger.flush()
    logger.close()
    file = (tmp_path / "m.jsonl").stat()
    assert (file.st_ino, file.st_size) in synced and file.st_size > 0


@pytest.mark.parametrize("start", range(6))
def test_records_after_the_restored_step_are_cut_and_written_again(tmp_path, start):
    path, undisturbed = tmp_path / "metrics.jsonl", tmp_path / "undisturbed.jsonl"
    write(path, 1, 5, start=0)
    write(path, start + 1, 8, start=start)
    write(undisturbed, 1, 8, start=0)
    assert path.read_bytes() == undisturbed.read_bytes()


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_last_line_cut_short_is_left_out(tmp_path, cut):
    path, undisturbed = tmp_path / "metrics.jsonl", tmp_path / "undisturbed.jsonl"
    write(path, 1, 5, start=0)
    whole = path.read_text()
    path.write_text(whole[: whole.rindex("{") + cut])
    assert [record["step"] for record in read_lines(path)] == [1, 2, 3, 4]
    write(path, 5, 6, start=4)
    write(undisturbed, 1, 6, start=0)
    assert path.read_bytes() == undisturbed.read_bytes()


def test_what_a_full_disk_did_not_take_is_written_when_there_is_room(tmp_path):
    path, undisturbed = tmp_path / "metrics.jsonl", tmp_path / "undisturbed.jsonl"
    log = JsonLines(path, start=0)
    log.write(1, {"loss": 1.0})
    room, log._file = log._file, io.FileIO("/dev/full", "w")
    for step in (2, 3):
        with pytest.raises(OSError, match="No space left"):
            log.write(step, {"loss": 1.0})
    assert [line["step"] for line in read_lines(path)] == [1]
    log._file.close()
    log._file = room
    log.write(4, {"loss": 1.0})
    log.close()
    whole = JsonLines(undisturbed, start=0)
    for step in range(1, 5):
        whole.write(step, {"loss": 1.0})
    whole.close()
    assert path.read_bytes() == undisturbed.read_bytes()


def test_records_in_an_object_store_are_there_after_a_flush(store):
    """It appends nothing: the file is written anew, and what was not flushed before a crash is not there."""
    path = storage.as_path("gs://bucket/log/metrics.jsonl")
    write(path, 1, 3, start=0)
    log = JsonLines(path, start=2)
    log.write(3, {"loss": 3.0})
    log.flush()
    log.write(4, {"loss": 4.0})
    assert [(line["step"], line["loss"]) for line in read_lines(path)] == [(1, 1.0), (2, 0.5), (3, 3.0)]
    log.close()
    assert [line["step"] for line in read_lines(path)] == [1, 2, 3, 4]
    assert [name for name in store if "/log/" in name] == ["bucket/log/metrics.jsonl"]


def test_a_missing_or_empty_file_holds_no_records(tmp_path):
    assert read_lines(tmp_path / "none.jsonl") == []
    (tmp_path / "empty.jsonl").touch()
    assert read_lines(tmp_path / "empty.jsonl") == []


def test_values_that_are_not_finite_survive(tmp_path):
    log = JsonLines(tmp_path / "metrics.jsonl", start=0)
    log.write(1, {"loss": math.nan, "grad_norm": math.inf})
    log.close()
    (record,) = read_lines(tmp_path / "metrics.jsonl")
    assert math.isnan(record["loss"]) and record["grad_norm"] == math.inf


@pytest.mark.skipif(importlib.util.find_spec("tensorboardX") is None, reason="needs the extra `tensorboard`")
def test_tensorboard_gets_every_scalar_and_picture(tmp_path, picture):
    log = TensorBoard(tmp_path, start=0)
    assert isinstance(log, Logger)
    log.write(1, {"loss": 0.5})
    log.write_image(1, "errors", picture[0])
    log.close()
    (events,) = (tmp_path / "tensorboard").iterdir()
    written = events.read_bytes()
    assert b"loss" in written and b"errors" in written
    with PIL.Image.open(io.BytesIO(written[written.index(b"\x89PNG") :])) as found:
        np.testing.assert_array_equal(np.asarray(found), np.repeat(picture[1][..., None], 3, axis=2))


def missing(monkeypatch: pytest.MonkeyPatch, module: str) -> None:
    monkeypatch.setitem(__import__("sys").modules, module, None)


def test_tensorboard_without_its_extra_is_one_sentence(tmp_path, monkeypatch):
    missing(monkeypatch, "tensorboardX")
    with pytest.raises(ValueError, match=r"--tensorboard needs the extra: pip install 'eqx_shortcut\[tensorboard\]'"):
        TensorBoard(tmp_path, start=0)


def test_wandb_without_its_extra_is_one_sentence(tmp_path, monkeypatch):
    missing(monkeypatch, "wandb")
    with pytest.raises(ValueError, match=r"--wandb needs the extra: pip install 'eqx_shortcut\[wandb\]'"):
        WandB(tmp_path, project="p", name="n", offline=True, config={})
    assert list(tmp_path.iterdir()) == []


class FakeWandb:
    """The calls of the wandb client that this package makes, recorded."""

    class util:
        generate_id = staticmethod(lambda: "made-up")

    def __init__(self):
        self.calls, self.logged = [], []

    def Image(self, picture):
        return np.asarray(picture)

    def init(self, **arguments):
        self.calls.append(arguments)
        return self

    def log(self, values, step):
        self.logged.append((step, values))

    def finish(self):
        self.logged.append("finished")


def test_wandb_continues_under_the_id_it_began_with(tmp_path, monkeypatch):
    fake = FakeWandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    for offline in (True, False):
        log = WandB(tmp_path, project="p", name="n", offline=offline, config={"a": 1})
        log.write(1, {"loss": 0.5})
        log.close()
    first, second = fake.calls
    assert first["id"] == second["id"] == json.loads((tmp_path / "wandb.json").read_text())["id"] == "made-up"
    assert (first["mode"], second["mode"]) == ("offline", None) and first["resume"] == "allow"
    assert fake.logged == [(1, {"loss": 0.5}), "finished"] * 2


def test_wandb_gets_pictures(tmp_path, monkeypatch, picture):
    fake = FakeWandb()
    monkeypatch.setitem(__import__("sys").modules, "wandb", fake)
    log = WandB(tmp_path, project="p", name="n", offline=True, config={})
    assert isinstance(log, Logger)
    log.write_image(7, "errors", picture[0])
    ((step, logged),) = fake.logged
    assert step == 7 and list(logged) == ["errors"]
    np.testing.assert_array_equal(logged["errors"], picture[1])


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="needs the extra `wandb`")
def test_wandb_writes_offline_into_the_run_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    log = WandB(tmp_path, project="p", name="n", offline=True, config={})
    log.write(1, {"loss": 0.5})
    log.close()
    assert list((tmp_path / "wandb").glob("offline-run-*"))
