"""One process at a time trains a run: a file in its folder says which, and whether it still lives."""

import contextlib
import json
import os
import pathlib
import secrets
import shlex
import socket
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from .. import storage

NAME = "lock.json"
BEAT = 20.0
"""Seconds after which the holder writes the file anew."""
PATIENCE = 3 * BEAT
"""Seconds without a beat after which a holder on another machine is taken for dead."""


class LockError(ValueError):
    """A run that another process trains: says which, and how to take over."""


class Lock:
    """Holds the run in a folder while it is open; as a hook between steps it ends this process where it holds it no more.

    A holder on this machine is dead when its process is gone; one elsewhere (another host or container, an object store) when
    its beats stop. An object store creates nothing exclusively: of two that start in the same
    moment one goes on, from the next beat.
    """

    def __init__(self, folder: storage.Path, *, beat: float = BEAT, patience: float = PATIENCE):
        self.path, self._beat, self._patience = folder / NAME, beat, patience
        self._key, self._done, self._lost = secrets.token_hex(8), threading.Event(), ""
        self._about = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "since": _now(),
            "command": shlex.join(sys.argv),
            "machine": _machine(),
            "born": _born(os.getpid()),
            "key": self._key,
        }
        self._thread = threading.Thread(target=self._beating, name="lock", daemon=True)

    def __call__(self, *_: object) -> None:
        """Raises LockError if the file was deleted, or is another process's."""
        if self._lost:
            raise LockError(self._lost)

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Raises LockError, naming the holder, if a living process has it."""
        self._take()
        self._thread.start()
        try:
            yield
        finally:
            self._done.set()
            self._thread.join()
            with contextlib.suppress(OSError):  # the file is left where nothing can be removed now: it is stale then
                if not self._lost and _about(_read(self.path)).get("key") == self._key:
                    self.path.unlink()

    def _take(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if (found := _read(self.path)) is not None:
            if self._lives(found):
                raise LockError(self._said(found))
            self.path.unlink(missing_ok=True)
        if storage.is_remote(self.path):
            self._write()
            return
        try:
            with self.path.open("x") as file:
                file.write(self._content())
        except FileExistsError as error:
            raise LockError(self._said(_read(self.path))) from error

    def _lives(self, found: bytes) -> bool:
        about = _about(found)
        if (machine := _machine()) is not None and about.get("machine") == machine:
            return (born := _born(about.get("process"))) is not None and born == about.get("born")
        print(f"{self.path} is {_who(about)}: waiting {self._patience:g} s for a sign of life", file=sys.stderr)
        deadline = time.monotonic() + self._patience
        while time.monotonic() < deadline:
            time.sleep(self._beat / 10)
            if (now := _read(self.path)) != found:
                return now is not None
        return False

    def _said(self, found: bytes | None) -> str:
        return (
            f"{self.path.parent} is being trained by {_who(_about(found))}: wait for it or stop it; to take over, delete "
            f"{self.path}, which ends it, and repeat"
        )

    def _beating(self) -> None:
        while not self._done.wait(self._beat) and not self._lost:
            with contextlib.suppress(OSError, storage.StorageError):  # a full disk is no reason to stop; the next one may do
                found = _read(self.path)
                if found is None:
                    self._lost = f"{self.path} has been deleted: this process leaves the run to another"
                elif (about := _about(found)).get("key") != self._key:
                    self._lost = f"{self.path.parent} has been taken over by {_who(about)}: this process ends"
                else:
                    self._write()

    def _write(self) -> None:
        storage.write(self.path, self._content())

    def _content(self) -> str:
        return json.dumps(self._about | {"seen": _now()}, indent=1)


def _read(path: storage.Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None


def _about(found: bytes | None) -> dict[str, Any]:
    """The contents of a lock file; empty if it is half written or damaged."""
    with contextlib.suppress(ValueError):
        if isinstance(about := json.loads(found or b"{}"), dict):
            return about
    return {}


def _who(about: dict[str, Any]) -> str:
    said = {key: about.get(key, "unknown") for key in ("process", "host", "since", "seen", "command")}
    return "process {process} on {host} since {since}, seen {seen} ({command})".format_map(said)


def _now() -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %Z")


def _machine() -> str | None:
    """The scope within which a process id is unique: this boot of the kernel and, for containers, the pid namespace."""
    with contextlib.suppress(OSError):
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    return None


def _born(process: int | None) -> str | None:
    """When a process of this machine began, in ticks: its number may be another's by now. None if it is gone."""
    with contextlib.suppress(OSError):
        state, *rest = pathlib.Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].decode().split()
        return None if state in "ZX" else rest[18]
    return None
