"""How far long work is: a bar on a terminal or in a notebook, and elsewhere, as in a log file, a line now and then."""

import sys
import time
from collections.abc import Iterable
from typing import Any

import tqdm.auto
import tqdm.notebook

EVERY = 30.0
"""Seconds between lines, at least."""


def bar(iterable: Iterable[Any] | None = None, *, unit: str, quiet: bool = False, **options: Any) -> tqdm.tqdm:
    """A bar over an iterable, or of `total` units, to be updated and closed; nothing is shown if it is `quiet`.

    `options` are tqdm's: `desc`, `total`, `initial`, `delay`, `leave`.
    """
    kind = tqdm.tqdm if sys.stderr.isatty() else tqdm.auto.tqdm if notebook() else Lines
    return kind(iterable, unit=unit, disable=quiet, dynamic_ncols=True, **options)


def notebook() -> bool:
    """Whether this process shows its output in a notebook, which has bars of its own."""
    return issubclass(tqdm.auto.tqdm, tqdm.notebook.tqdm)


class Lines(tqdm.tqdm):
    """A bar that writes a plain line at most every 30 s: none of short work, and a last one of work that had some."""

    def __init__(self, *args: Any, desc: str | None = None, **options: Any):
        self._begun = self._written = now()
        self._written_n = -1  # units that the last line told
        form = "{desc}{unit} {n_fmt} of {total_fmt}, {rate_fmt}, {remaining} left{postfix}"
        super().__init__(*args, desc=desc and f"{desc}: ", bar_format=form, **options)
        self.sp = None  # what there is of a bar on a terminal has nothing to clear here

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Writes the line if it is time."""
        if now() - self._written >= EVERY:
            self._write()

    def clear(self, nolock: bool = False) -> None:
        """Leaves the lines where they are."""

    def unpause(self) -> None:
        """Leaves the time until now out of the rate, as a terminal's bar does; the next line comes 30 s later."""
        super().unpause()
        self._begun = self._written = now()

    def close(self) -> None:
        """Writes the last line."""
        if not self.disable and self._written > self._begun and self._written_n != self.n:
            self._write()
        super().close()

    def _write(self) -> None:
        self._written, self._written_n = now(), self.n
        # The mean since the start: tqdm's rate of the last steps is that of the pictures where a line comes after them.
        self.fp.write(f"{self.format_meter(**{**self.format_dict, 'rate': None})}\n")
        self.fp.flush()


now = time.monotonic
