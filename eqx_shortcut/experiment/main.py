"""An experiment: a name, its settings, and the command line that runs it. Light, so that `--help` answers at once."""

import contextlib
import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

import tyro

from .. import cli
from ..data import ImageSource
from .config import AnyObjective, AnyOptimizer, Config, Judge

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
    """Its settings by the name of their preset; options change single fields."""
    doc: str | None = None
    """The text above the options of `--help`."""
    judge: Judge | None = None
    """More measures of its samples."""

    def main(self, args: Sequence[str] | None = None) -> None:
        """The command line: a preset (the first if none is named), then what is changed of it. Ends the process on errors."""
        try:
            default, rest = self._chosen(args)
        except ValueError as error:
            cli.fail(str(error), status=2)
        cli.command(self.run, offered(default), self._described(), default=default, args=rest)

    def parse(self, args: Sequence[str]) -> Config:
        """The settings that a command line asks for. Raises ValueError where they contradict themselves."""
        default, rest = self._chosen(args)
        return cli.parse(offered(default), self._described(), default=default, args=rest)

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
                    plan(config)
                    return
                folder = config.folder(self.name)
                if config.replay is not None and not storage.exists(folder / "config.json"):
                    raise ValueError(f"{folder} holds no run to replay: name it with --runs and --name, as it was trained")
                with self._opened(config) as run:
                    execute(run, self.judge) if config.replay is None else replay(run, config.replay)
        except KeyboardInterrupt as stop:
            stop.add_note("outside training: the same command continues from the last checkpoint")
            raise

    @contextlib.contextmanager
    def _opened(self, config: Config) -> Iterator["Run"]:
        """The run on its devices, which the network is told of by `jax.set_mesh`, with its data read."""
        import jax

        from .. import compilation
        from .checks import check
        from .plan import chosen_mesh
        from .run import Run, open_data

        if unkept := compilation.use_compilation_cache():
            print(unkept, file=sys.stderr)
        mesh = chosen_mesh(config)
        with compilation.compiled_for(mesh), jax.set_mesh(mesh):
            check(config)
            yield Run(self.name, config, open_data(config, mesh), mesh)

    def _chosen(self, args: Sequence[str] | None) -> tuple[Config, list[str]]:
        """The preset that a command line names, and the rest of the line."""
        args = sys.argv[1:] if args is None else args
        name, *rest = args if args and args[0] in self.presets else (next(iter(self.presets)), *args)
        default = self.presets[name][1]
        chosen = {field: switched(getattr(default, field), f"{field}:", choice, rest) for field, choice in CHOICES.items()}
        return dataclasses.replace(default, **chosen), rest

    def _described(self) -> str:
        listed = "\n".join(f"    {preset}: {text}" for preset, (text, _) in self.presets.items())
        return f"{self.doc or ''}\nPresets, the first word of a command:\n{listed}"


CHOICES = {"data": ImageSource, "optimizer": AnyOptimizer}
"""Fields whose class may be changed by a subcommand: the new class takes the preset's values of all fields that both have."""


def members(choice: Any) -> dict[str, type]:
    """The classes of a union by their words on a command line."""
    return {named.name: kind for kind, named in map(get_args, get_args(choice))}


def switched(value: Any, prefix: str, choice: Any, words: Sequence[str]) -> Any:
    """`value` or, where one of the words chooses another class of its union, one of that class with all that both have.

    Raises ValueError, with the choices, where such a word is of none: the parser, which knows the class chosen, names no other.
    """
    kinds = {prefix + name: kind for name, kind in members(choice).items()}
    found = next((kinds[word] for word in words if word in kinds), None)
    if type(value) not in kinds.values():
        return value
    for before, word in zip(("", *words), words, strict=False):
        if word.startswith(prefix) and word not in kinds and not before.startswith("--"):
            raise ValueError(f"no {word}: choose one of {', '.join(kinds)}")
    if found is None:
        return value
    both = {field.name for field in dataclasses.fields(found)} & {field.name for field in dataclasses.fields(value)}
    return found(**{name: getattr(value, name) for name in both})


def offered(default: Config) -> Any:
    """The type of settings that are offered beside a preset: its own classes, and the choice where one is of a union."""

    def choice(union: Any, value: Any) -> Any:
        return union if type(value) in members(union).values() else type(value)

    name = tyro.conf.arg(name=getattr(type(default.data), "prefix", "data"))
    data, objective = choice(ImageSource, default.data), choice(AnyObjective, default.objective)
    return Config[Annotated[data, name], type(default.network), objective]
