"""An experiment: a name, its settings, and the command line that runs it. Light, so that `--help` answers at once."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from .. import cli
from ..optimizer import AdamW, Muon
from .config import Config, Expected, Judge

if TYPE_CHECKING:
    from .run import Run

Presets = Mapping[str, tuple[str, Config]]
"""Settings by name, each with a line of help; the first is the default."""


@dataclasses.dataclass(frozen=True)
class Experiment:
    """Settings under a name: `.main()` reads a command line and runs what it asks for, `.run(config)` runs settings."""

    name: str
    """The folder of its runs is RUNS/NAME."""
    presets: Presets
    """Its settings, of which the command line changes some."""
    doc: str | None = None
    """The text above the options of `--help`."""
    expected: Expected | None = None
    """Shape of its examples and number of classes, for a plan where the data are absent."""
    judge: Judge | None = None
    """More measures of its samples."""

    def main(self, args: Sequence[str] | None = None) -> None:
        """The command line: a preset (the first if none is named), then what is changed of it. Ends the process on errors."""
        default, rest = self._chosen(args)
        cli.command(self.run, type(default), self._described(), default=default, args=rest)

    def parse(self, args: Sequence[str]) -> Config:
        """The settings that a command line asks for. Raises ValueError where they contradict themselves."""
        default, rest = self._chosen(args)
        return cli.parse(type(default), self._described(), default=default, args=rest)

    def run(self, config: Config) -> None:
        """Trains (or continues) the run of these settings, or prints the plan or the step that they ask for instead.

        Raises ValueError, CheckpointError, Diverged or OSError, each a sentence with what to do.
        """
        from .. import distributed, storage
        from .plan import plan
        from .replay import replay
        from .training import execute

        try:
            with cli.room_for(config.runs / self.name):
                distributed.initialize(os.environ | config.processes.environment)
                if not distributed.is_main_process():
                    sys.stdout = open(os.devnull, "w")  # the first speaks for all
                if config.dry_run:
                    plan(config, self.expected)
                    return
                folder = config.folder(self.name)
                if config.replay is not None and not storage.exists(folder / "config.json"):
                    raise ValueError(f"{folder} holds no run to replay: name it with --runs and --name, as it was trained")
                with self._opened(config) as run:
                    if config.replay is None:
                        execute(run, self.judge)
                    else:
                        replay(run, config.replay)
        except KeyboardInterrupt as stop:
            stop.add_note("outside training: the same command continues from the last checkpoint")
            raise

    @contextlib.contextmanager
    def _opened(self, config: Config) -> Iterator["Run"]:
        """The run on its devices, which the network is told of by `jax.set_mesh`, with its data read."""
        import jax

        from .. import compilation
        from .checks import check
        from .devices import chosen_mesh
        from .examples import open_data
        from .run import Run

        compilation.use_compilation_cache()
        mesh = chosen_mesh(config)
        with compilation.compiled_for(mesh), jax.set_mesh(mesh):
            check(config)
            yield Run(self.name, config, open_data(config, mesh), mesh)

    def _chosen(self, args: Sequence[str] | None) -> tuple[Config, list[str]]:
        """The preset that a command line names, and the rest of the line."""
        args = sys.argv[1:] if args is None else args
        name, *rest = args if args and args[0] in self.presets else (next(iter(self.presets)), *args)
        default = self.presets[name][1]
        if "optimizer:muon" in rest:  # with the preset's rate, schedule and all else that both have
            shared = {field.name: getattr(default.optimizer, field.name) for field in dataclasses.fields(AdamW)}
            default = dataclasses.replace(default, optimizer=Muon(**shared))
        return default, rest

    def _described(self) -> str:
        listed = "\n".join(f"    {preset}: {text}" for preset, (text, _) in self.presets.items())
        return f"{self.doc or ''}\nPresets, named first:\n{listed}"
