"""One process trains a run: who holds it is said, what a dead one left is taken, and a holder that lost it ends."""

import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import pytest

from eqx_shortcut.experiment import lock as locks
from eqx_shortcut.experiment.lock import NAME, Lock, LockError
from eqx_shortcut.storage import as_path

QUICK = {"beat": 0.05, "patience": 0.5}


def about(folder: pathlib.Path) -> dict:
    return json.loads((folder / NAME).read_text())


def test_a_second_start_is_told_who_runs_it_and_how_to_take_over(tmp_path):
    first = Lock(tmp_path / "run")
    with first.held():
        assert about(tmp_path / "run").items() >= {"process": os.getpid(), "host": os.uname().nodename}.items()
        with pytest.raises(LockError) as caught, Lock(tmp_path / "run").held():
            pass
        for word in (f"process {os.getpid()} on {os.uname().nodename} since", pathlib.Path(sys.argv[0]).name, "to take over"):
            assert word in str(caught.value)
        assert f"delete {tmp_path / 'run' / NAME}" in str(caught.value)
        first()
    assert list((tmp_path / "run").iterdir()) == []
    assert not [thread for thread in threading.enumerate() if thread.name == "lock"]


HOLD = """
import os, pathlib, signal, sys
from eqx_shortcut.experiment.lock import Lock
with Lock(pathlib.Path(sys.argv[1])).held():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_process_that_was_killed_is_no_holder_and_one_that_lives_is(tmp_path):
    """Before and after it has been waited for, as a container without an init leaves the dead."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(LockError, match=f"process {holder.pid} on"), Lock(tmp_path).held():
            pass
        holder.kill()
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
        left = (tmp_path / NAME).read_bytes()
        with Lock(tmp_path).held():
            assert about(tmp_path)["process"] == os.getpid()
    (tmp_path / NAME).write_bytes(left)
    with Lock(tmp_path).held():
        assert about(tmp_path)["process"] == os.getpid()


def test_a_number_that_is_another_process_by_now_is_no_holder(tmp_path):
    with Lock(tmp_path).held():
        left = about(tmp_path)
    (tmp_path / NAME).write_text(json.dumps(left | {"born": "1"}))
    with Lock(tmp_path).held():
        assert about(tmp_path)["born"] == left["born"]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"host": "there", "process": 1}'])
def test_what_nobody_keeps_up_is_taken_after_a_while(tmp_path, text, capsys):
    """Cut short, damaged, or of a dead process on another machine."""
    (tmp_path / NAME).write_text(text)
    with Lock(tmp_path, **QUICK).held():
        assert about(tmp_path)["process"] == os.getpid()
    assert "waiting 0.5 s for a sign of life" in capsys.readouterr().err


@pytest.mark.parametrize("machine", ["another boot", None])
def test_a_holder_on_another_machine_is_known_by_its_beat(tmp_path, monkeypatch, machine):
    with monkeypatch.context() as patch:
        patch.setattr(locks, "_machine", lambda: machine)
        there = Lock(tmp_path, beat=0.05)
    with there.held():
        time.sleep(0.1)
        with pytest.raises(LockError, match=r"seen .*to take over"), Lock(tmp_path, beat=0.05, patience=30).held():
            pass


def test_a_lock_that_goes_away_while_it_is_waited_for_is_free(tmp_path):
    (tmp_path / NAME).write_text("{}")
    threading.Timer(0.2, (tmp_path / NAME).unlink).start()
    begun = time.monotonic()
    with Lock(tmp_path, beat=0.05, patience=60).held():
        assert time.monotonic() - begun < 30


def ended(lock: Lock) -> str:
    """What a holder says that held the lock once."""
    for _ in range(200):
        try:
            lock()
        except LockError as error:
            return str(error)
        time.sleep(0.05)
    raise AssertionError("it goes on")


def test_a_holder_whose_file_is_deleted_ends(tmp_path):
    lock = Lock(tmp_path, beat=0.05)
    with lock.held():
        (tmp_path / NAME).unlink()
        assert "has been deleted" in ended(lock)


def test_a_holder_that_was_replaced_ends_and_leaves_the_other_its_lock(tmp_path):
    first, second = Lock(tmp_path, beat=0.05), Lock(tmp_path)
    with first.held():
        (tmp_path / NAME).unlink()
        with second.held():
            assert "taken over by process" in ended(first) or "deleted" in ended(first)
            kept = (tmp_path / NAME).read_bytes()
            first._done.set()
            assert (tmp_path / NAME).read_bytes() == kept
            second()


def test_a_lock_in_an_object_store_is_held_kept_up_and_let_go(store):
    folder = as_path("gs://bucket/locked")
    with Lock(folder, **QUICK).held():
        first = store["bucket/locked/lock.json"]
        with pytest.raises(LockError, match=r"delete gs://bucket/locked/lock\.json"), Lock(folder, **QUICK).held():
            pass
        while store["bucket/locked/lock.json"][1] == first[1]:
            time.sleep(0.05)
    assert "bucket/locked/lock.json" not in store
    store["bucket/locked/lock.json"] = first
    stale = json.loads(first[0]) | {"machine": "gone"}
    store["bucket/locked/lock.json"] = json.dumps(stale).encode(), 1
    with Lock(folder, **QUICK).held():
        assert store["bucket/locked/lock.json"] != first
