"""The command line that the experiments share. Light, so that `--help` answers at once."""

import contextlib
import dataclasses
import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping

import tyro

from config import Config, Expected, Judge
from eqx_shortcut.optimizer import AdamW, Muon

Presets = Mapping[str, tuple[str, Config]]
"""Settings by name, each with a line of help; the first is the default."""


def main(experiment: str, presets: Presets, *, doc: str | None, expected: Expected, judge: Judge | None = None) -> None:
    """The command line of an experiment: reads the settings, runs it, turns what goes wrong into one sentence."""
    config = parse(presets, doc=doc)
    quieten()
    from eqx_shortcut import distributed
    from eqx_shortcut.checkpoint import CheckpointError
    from eqx_shortcut.train import Diverged
    from planning import plan
    from replaying import replay
    from running import Interrupted, run

    try:
        with _terminable():
            distributed.initialize(os.environ | config.processes.environment)
            if not distributed.first():
                sys.stdout = open(os.devnull, "w")  # the first speaks for all
            if config.dry_run:
                plan(config, expected)
            elif config.replay is not None:
                replay(experiment, config, config.replay)
            else:
                run(experiment, config, judge)
    except Interrupted as stop:
        if distributed.first():
            print(f"\n{stop}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        print(
            f"\nstopped by {number.name} outside training: the same command continues from the last checkpoint", file=sys.stderr
        )
        sys.exit(128 + number)
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else error.strerror or error
        folder = config.runs / experiment
        print(f"\nerror: {what}: free space for {folder}, or make it writable, then repeat", file=sys.stderr)
        sys.exit(1)
    except (ValueError, CheckpointError, Diverged) as error:
        print(f"\nerror: {error}", file=sys.stderr)
        sys.exit(1)


class Terminated(KeyboardInterrupt):
    """SIGTERM outside training."""


@contextlib.contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM ends what is inside as SIGINT does, so that every file that is being written is taken back."""

    def stop(number: int, frame: object) -> None:
        raise Terminated

    usual = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, usual)


def quieten() -> None:
    """Silences the reports of background threads of libraries.

    What fails while a checkpoint is written is raised again where the run waits for it; Orbax's own reports, one an array,
    would bury that sentence.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None


def parse(presets: Presets, *, doc: str | None, args: list[str] | None = None) -> Config:
    """The settings that a command line asks for: a preset (the first if none is named), then what is changed of it."""
    args = sys.argv[1:] if args is None else args
    name, *rest = args if args and args[0] in presets else (next(iter(presets)), *args)
    listed = "\n".join(f"    {preset}: {text}" for preset, (text, _) in presets.items())
    description = f"{doc}\nPresets, named first:\n{listed}"
    try:
        default = presets[name][1]
        if "optimizer:muon" in rest:  # with the preset's rate, schedule and all else that both have
            shared = {field.name: getattr(default.optimizer, field.name) for field in dataclasses.fields(AdamW)}
            default = dataclasses.replace(default, optimizer=Muon(**shared))
        config = (tyro.conf.CascadeSubcommandArgs,)
        return tyro.cli(type(default), default=default, args=rest, description=description, config=config)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
