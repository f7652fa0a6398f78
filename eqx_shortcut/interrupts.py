"""SIGINT and SIGTERM end a command by an exception, or at once while it is being imported."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType


class Terminated(KeyboardInterrupt):
    """SIGTERM, where no part of the program waits for it."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """SIGTERM ends what is inside as SIGINT does, so that every file that is being written is taken back.

    In the middle of an import both end the process with one line: libraries catch what is raised there, and fail otherwise.
    Outside of the main thread, which alone may handle signals, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {signal.SIGTERM: signal.signal(signal.SIGTERM, _stop)}
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background jobs ignore it
        usual[signal.SIGINT] = signal.signal(signal.SIGINT, _stop)
    try:
        yield
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    if _imports(frame):
        os.write(2, f"\nstopped by {signal.Signals(number).name}\n".encode())
        os._exit(128 + number)
    raise Terminated if number == signal.SIGTERM else KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    return frame is not None and (frame.f_code.co_filename.startswith("<frozen importlib") or _imports(frame.f_back))
