"""Writes what of the pages comes from code: docs/options.md, the table in docs/commands.md, the programs in docs/extending.

python docs/generate.py; a test compares the pages with what this writes.
"""

import ast
import dataclasses
import importlib
import inspect
import itertools
import pathlib
import re
import textwrap
from collections.abc import Iterator
from typing import Any, get_type_hints

import tyro

from eqx_shortcut import cli, data
from eqx_shortcut.experiment import Config
from eqx_shortcut.experiment.config import AnyObjective, AnyOptimizer
from eqx_shortcut.experiment.main import members
from eqx_shortcut.models import DiTConfig, MLPConfig

DOCS = pathlib.Path(__file__).parent

OPENING = """# Options

Every option of the experiments and of the commands, as `--help` lists them; [commands](commands.md) says which experiments
there are. An experiment changes some of the defaults: `python experiments/digits.py --help` shows its own. *Reference* means
[kvfrans/shortcut-models](original.md). `docs/generate.py` writes this page from the dataclasses that define the options.
"""


def documented(kind: type) -> dict[str, str]:
    """The text below each field of a dataclass, those of its bases included, in one line."""
    found = {}
    for base in reversed(kind.__mro__):
        if not dataclasses.is_dataclass(base):
            continue
        (body,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(body, ast.ClassDef)
        for field, text in itertools.pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
                    found[field.target.id] = " ".join(str(text.value.value).split())
    return found


def default_of(field: dataclasses.Field) -> str:
    """A field's default as the page shows it; empty where one has to be named."""
    made = field.default_factory is not dataclasses.MISSING
    value: Any = field.default_factory() if made else field.default  # pyright: ignore[reportCallIssue]
    if value is dataclasses.MISSING:
        return ""
    if isinstance(value, tuple):
        value = " ".join(map(str, value)) or "none"
    return f"`{value}`"


def nested(hint: Any) -> type | None:
    """The dataclass that a field's type is; None for a number, a text, or a choice of several."""
    return hint if dataclasses.is_dataclass(hint) and isinstance(hint, type) else None


def section(title: str, kind: type, prefix: str = "", *, skip: tuple[str, ...] = (), level: int = 2) -> Iterator[str]:
    """A heading, the first line of the class and a table of its options; then the dataclasses inside it."""
    texts, hints = documented(kind), get_type_hints(kind, include_extras=True)
    fields = [field for field in dataclasses.fields(kind) if field.name not in skip]
    first = (inspect.getdoc(kind) or "").partition("\n\n")[0].replace("\n", " ")
    yield f"\n{'#' * level} {title}\n"
    if first and not first.startswith(f"{kind.__name__}("):
        yield f"{first}\n"
    rows = [field for field in fields if nested(hints[field.name]) is None]
    if rows:
        yield "| option | default | what it sets |\n|---|---|---|"
    for field in rows:
        text = texts.get(field.name, "").replace("|", "\\|")
        about = getattr(hints[field.name], "__metadata__", ())
        called = next((given for part in about if (given := getattr(part, "name", None))), field.name)
        name = field.name.upper() if tyro.conf.Positional in about else f"--{prefix}{called.replace('_', '-')}"
        yield f"| `{name}` | {default_of(field)} | {text} |"
    for field in fields:
        if (inside := nested(hints[field.name])) is not None:
            name = f"{prefix}{field.name.replace('_', '-')}"
            yield from section(f"`--{name}.*`", inside, f"{name}.", level=min(level + 1, 4))


def options() -> str:
    """The whole page docs/options.md."""
    lines = [OPENING]
    lines += section("Training", Config, skip=("data", "network", "objective", "optimizer"))
    lines += ["\n## Networks"]
    for kind in (DiTConfig, MLPConfig):
        lines += section(f"`{kind.__name__}`", kind, "network.", level=3)
    lines += ["\n## Optimizers\n\nThe first is the default; `optimizer:muon` chooses the other."]
    for name, kind in members(AnyOptimizer).items():
        lines += section(f"`optimizer:{name}`", kind, "optimizer.", level=3)
    lines += ["\n## Objectives\n\n`objective:NAME` chooses one; [the methods](methods.md) has their equations."]
    for name, kind in members(AnyObjective).items():
        lines += section(f"`objective:{name}`", kind, "objective.", level=3)
    lines += ["\n## Data\n\n`data:NAME` chooses where images of your own come from; [data](data.md) says what is read."]
    for name, kind in members(data.ImageSource).items():
        lines += section(f"`data:{name}`", kind, "data.", level=3)
    for kind in (data.Digits, data.FashionMNIST, data.CIFAR10):
        lines += section(f"`{kind.__name__}`", kind, "data.", level=3)
    lines += section("Latents", data.LatentImages, skip=("images", "classes"))
    lines += ["\n## Commands\n\nPositional arguments, such as a run folder, come first."]
    for name in cli.commands():
        module = importlib.import_module(f"eqx_shortcut.commands.{name}")
        one = {f"`eqx-shortcut {name}`": module.Config}
        several = {} if dataclasses.is_dataclass(module.Config) else members(module.Config)
        for title, kind in ({f"`eqx-shortcut {name} {part}`": kind for part, kind in several.items()} or one).items():
            lines += section(title, kind, level=3)
    return "\n".join(lines) + "\n"


def commands(page: str) -> str:
    """The page docs/commands.md with its table of commands written anew."""
    rows = "\n".join(f"| `{name}` | {text} |" for name, text in cli.commands().items())
    table = f"<!-- commands -->\n| command | what it makes |\n|---|---|\n{rows}\n<!-- end of commands -->"
    return re.sub(r"<!-- commands -->.*?<!-- end of commands -->", lambda _: table, page, flags=re.DOTALL)


def programs(page: str) -> str:
    """A page of docs/extending with each program, a block below its file's name, as it is tested in tests/birds."""

    def program(found: re.Match[str]) -> str:
        path = DOCS.parent / "tests" / "birds" / found[1]
        return f"`{found[1]}`\n\n```python\n{path.read_text()}```"

    return re.sub(r"`(\w+\.py)`\n\n```python\n.*?```", program, page, flags=re.DOTALL)


if __name__ == "__main__":
    (DOCS / "options.md").write_text(options())
    for path in (DOCS / "commands.md", *(DOCS / "extending").glob("*.md")):
        path.write_text(programs(commands(path.read_text())))
