"""The edge: from a command line to a call, and from what goes wrong to one sentence and an exit status.

Like the modules of the commands it is imported without JAX, so that `--help` answers at once.
"""

import ast
import contextlib
import dataclasses
import importlib
import io
import itertools
import logging
import os
import pathlib
import re
import select
import shutil
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import tyro

from .interrupts import Terminated, interruptible

if TYPE_CHECKING:
    from .storage import Path
else:
    Path = pathlib.PurePath  # as there


def main(args: Sequence[str] | None = None) -> None:
    """`eqx-shortcut COMMAND`, the same as `python -m eqx_shortcut COMMAND`: imports the module of that command alone."""
    name, *rest = (sys.argv[1:] if args is None else args) or ["--help"]
    with _edge():
        known = commands()
        if name in ("-h", "--help"):
            width = max(map(len, known))
            listed = "\n".join(f"    {name:{width}}  {line}" for name, line in known.items())
            print(f"usage: eqx-shortcut COMMAND [OPTIONS]\n\n{listed}\n\neqx-shortcut COMMAND --help lists the options of one.")
            return
        if name not in known:
            fail(f"no command {name}: choose one of {', '.join(known)}", status=2)
        sys.path.append(os.getcwd())  # as `python -m` has it: the user's classes that settings name
        module = importlib.import_module(f".commands.{name}", __package__)
        command(module.main, module.Config, module.__doc__, args=rest, prog=f"eqx-shortcut {name}")


def commands() -> dict[str, str]:
    """The first line of each command's module by the name of the command; none is imported."""
    paths = sorted(pathlib.Path(__file__).with_name("commands").glob("[!_]*.py"))
    described = {path.stem: ast.get_docstring(ast.parse(path.read_bytes())) for path in paths}
    return {name: (text or "").partition("\n")[0] for name, text in described.items()}


def command(
    main: Callable[[Any], None],
    config: Any,
    doc: str | None,
    *,
    default: Any = None,
    args: Sequence[str] | None = None,
    prog: str | None = None,
) -> None:
    """Calls `main` with the settings that a command line asks for, and ends the process if something goes wrong.

    What is expected to go wrong (settings, files, processes, a run that diverges) ends with one sentence and status 1, a signal
    with 128 and its number, as a shell has it. Notes of an exception follow its sentence. Anything else is a defect and raised.
    A terminal without some character prints another in its place; where output goes to a pipe that nobody reads any more, the
    process ends quietly.
    """
    with _edge():
        given = parse(config, doc, default=default, args=args, prog=prog)
        quieten()
        try:
            main(given)
        except Exception as error:
            if out_of_memory(error) is not None:
                error.add_note(", or ".join(_smaller(given)) or "free memory")
            elif isinstance(error, ValueError):
                error.args = (_of_option(str(error), sys.argv[1:] if args is None else args),)
            raise


@contextlib.contextmanager
def _edge() -> Iterator[None]:
    """Turns exceptions and signals inside into a sentence and an exit status, as described at `command`."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        with interruptible():
            try:
                yield
            finally:
                sys.stdout.flush()  # what is left for the end of the process would fail outside of this
    except Interrupted as stop:
        if text := str(stop):
            print(f"\n{text}", file=sys.stderr)
        sys.exit(128 + stop.signal)
    except KeyboardInterrupt as stop:
        number = signal.SIGTERM if isinstance(stop, Terminated) else signal.SIGINT
        print(f"\n{_noted(f'stopped by {number.name}', stop, ' ')}", file=sys.stderr)
        sys.exit(128 + number)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _unread():
            sys.exit(128 + signal.SIGPIPE)
        if (asked := out_of_memory(error)) is not None:
            fail(_noted(asked, error, ": "))
        if not _expected(error):
            raise
        fail(_noted(_sentence(error), error, ": "))


def parse(
    config: Any, doc: str | None, *, default: Any = None, args: Sequence[str] | None = None, prog: str | None = None
) -> Any:
    """The settings that a command line asks for: `default`, with what it changes. Ends the process where they refuse it."""
    given = {} if default is None else {"default": default}
    cascade = (tyro.conf.CascadeSubcommandArgs,)
    words, said = sys.argv[1:] if args is None else args, io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            about = None if doc is None else wrapped(doc)
            return tyro.cli(config, description=about, args=words, prog=prog, config=cascade, **given)
    except (SystemExit, ValueError) as stop:
        inner = stop.__context__ if isinstance(stop, SystemExit) else stop
        part = getattr(inner, "arg", "")  # the settings that refused, by name; where a word was no number, no name
        error = inner if isinstance(inner, ValueError) else inner and inner.__context__
        if isinstance(error, ValueError) and isinstance(part, str):
            fail(_of_option(str(error), words, part), status=2)
        print(UNASKED.sub("", said.getvalue()), end="", file=sys.stderr)
        raise


UNASKED = re.compile(r"[^\n]*Available[^\n]* subcommands:.*\n(?=[^\n]*Perhaps)", re.DOTALL)
"""The list of all subcommands in tyro's report of an unknown option, where a nearer name follows."""


def wrapped(doc: str) -> str:
    """A text at the width of the terminal, without blank lines; indented lines stay as they are.

    Each line begins with a space: tyro joins a line that begins with a letter to the one before, and wraps nothing.
    """
    width, lines = shutil.get_terminal_size().columns - 1, []
    for indented, group in itertools.groupby(doc.splitlines(), lambda line: line[:1] in ("", " ")):
        part = list(group)
        lines += filter(None, part) if indented else textwrap.wrap(" ".join(part), width, break_on_hyphens=False)
    return textwrap.indent("\n".join(lines), " ")


def _of_option(sentence: str, words: Sequence[str], part: str | None = None) -> str:
    """A sentence that starts with `field=value`, with the option as the words have it in place of the field.

    `part` is the name of the settings that hold the field, if known; `data.images.size` may be --data.size.
    """
    if (named := re.match(r"(\w+)=(\([^)]*\)|[^\s:]+)", sentence)) is None:
        return sentence
    field = named[1].replace("_", "-")
    whole = None if part is None else f"--{part}.{field}" if part else f"--{field}"
    given = {word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")}
    alike = [flag for flag in given if flag[2:].rpartition(".")[2] == field]
    option = alike[0] if whole not in given and len(alike) == 1 else whole
    value = named[2].strip("()").replace(",", "")
    return f"{option} {value}{sentence[named.end() :]}" if option else sentence


class Interrupted(Exception):
    """A command was stopped by a signal between two steps; the text says where."""

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


@contextlib.contextmanager
def renamed(here: Mapping[str, str]) -> Iterator[None]:
    """Renames options in the errors raised inside: `here` maps words of a message to this command's options."""
    try:
        yield
    except ValueError as error:
        sentence = str(error)
        for words, option in here.items():
            sentence = sentence.replace(words, option)
        error.args = (sentence,)
        raise


@contextlib.contextmanager
def room_for(folder: Path) -> Iterator[None]:
    """Adds the remedy to an error inside that a file cannot be written, or is not there."""
    try:
        yield
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        error.add_note("check the path" if missing else f"free space for {folder}, or make it writable, then repeat")
        raise


def _smaller(settings: Any, prefix: str = "") -> Iterator[str]:
    """One advice for each setting on which memory depends ("lower --batch 128"), nested settings included."""
    for field in dataclasses.fields(settings):
        value, flag = getattr(settings, field.name), f"--{prefix}{field.name.replace('_', '-')}"
        match field.name:
            case "batch" | "encode_batch" | "size" if isinstance(value, int) and value > 1:
                yield f"lower {flag} {value}"
            case "count" | "points" if not prefix:
                yield f"lower {flag} {value}"
            case "accumulate":
                yield f"raise {flag} {value}"
            case "remat" if value != "block":
                yield f"use {flag} block"
            case _ if dataclasses.is_dataclass(value):
                given = [about.name for about in getattr(field.type, "__metadata__", ()) if getattr(about, "name", None)]
                name = getattr(type(value), "prefix", next(iter(given), field.name))
                yield from _smaller(value, f"{prefix}{name}." if name else prefix)


EXHAUSTED = re.compile(r"RESOURCE_EXHAUSTED|out[ _]of[ _]memory|ALLOC_FAILED|bad_alloc", re.IGNORECASE)
BYTES = re.compile(r"(\d[\d,]{3,}) bytes")
UNITS = re.compile(r"allocat\w* (\d[\d.]*) ?([KMGTP])(?:i?B)?\b", re.IGNORECASE)


def out_of_memory(error: Exception) -> str | None:
    """The sentence for an error that says that a device or the host is out of memory; None for other errors."""
    if not isinstance(error, MemoryError):
        from jax.errors import JaxRuntimeError

        if not (isinstance(error, JaxRuntimeError) and EXHAUSTED.search(str(error))):
            return None
    where = "of this machine" if isinstance(error, MemoryError) else "of a device"
    if found := BYTES.search(str(error)):
        return f"out of memory {where}: {int(found[1].replace(',', '')) / 2**30:,.2f} GiB more were asked for at once"
    if found := UNITS.search(str(error)):
        return f"out of memory {where}: {found[1].rstrip('.')} {found[2].upper()}iB more were asked for at once"
    return f"out of memory {where}"


def quieten() -> None:
    """Silences the reports of background threads of libraries.

    What fails while a checkpoint is written is raised again where the run waits for it; Orbax's own reports, one an array,
    would bury that sentence.
    """
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    threading.excepthook = lambda _: None
    sys.unraisablehook = lambda _: None


def fail(sentence: str, *, status: int = 1) -> NoReturn:
    """Says what went wrong and ends the command."""
    print(f"error: {sentence}", file=sys.stderr)
    sys.exit(status)


def _unread() -> bool:
    """Whether standard output or error is a pipe that nobody reads any more, as after `| head`; both lead nowhere then."""
    streams, watched = (sys.stdout, sys.stderr), select.poll()
    for stream in streams:
        watched.register(stream.fileno(), 0)
    if not any(events & select.POLLERR for _, events in watched.poll(0)):
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream.fileno())  # else the end of the process would try once more, and report it
    return True


def _expected(error: Exception) -> bool:
    if isinstance(error, ValueError | OSError):
        return True
    from equinox import EquinoxRuntimeError

    from .checkpoint import CheckpointError
    from .train import Diverged

    return isinstance(error, CheckpointError | Diverged | EquinoxRuntimeError)


def _sentence(error: Exception) -> str:
    if not (isinstance(error, OSError) and error.strerror):
        # Equinox tells where a value was refused above its sentence, and how to debug below it.
        return str(error).rpartition("EquinoxRuntimeError: ")[2].partition("\n\n-----")[0].strip()
    return f"{error.filename}: {error.strerror}" if error.filename else error.strerror


def _noted(sentence: str, error: BaseException, between: str) -> str:
    ours = (note for note in getattr(error, "__notes__", ()) if not note.startswith("---"))  # JAX rules off its own
    return between.join([sentence, *ours])


def parsed(words: list[str]) -> Path:
    """The path that a word names (see eqx_shortcut.storage)."""
    from .storage import as_path

    # It raises what it reports, and tracebacks above an error would bury its sentence.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    return as_path(words[0])


Place = Annotated[
    Path,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=parsed,
        is_instance=lambda value: isinstance(value, pathlib.PurePath),
        str_from_instance=lambda path: [str(path)],
    ),
]
"""A folder, or gs://BUCKET/FOLDER."""


def check_out(path: pathlib.Path, *suffixes: str) -> None:
    """Raises ValueError unless a file, of one of these suffixes if any, can be written to a folder that exists."""
    if suffixes and path.suffix.lower() not in suffixes:
        raise ValueError(f"{path} does not say what to write: let its name end in {' or '.join(suffixes)}")
    if not path.absolute().parent.is_dir():
        raise ValueError(f"no folder {path.absolute().parent}: make it, or name another place")
