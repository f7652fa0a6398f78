"""Results of earlier versions in the form of today's: quality.json of a run, or the table.json of compare.py.

    eqx-shortcut convert runs/digits/* comparison/digits/table.json

A run gets an evaluation.json, which keeps what `eqx-shortcut evaluate` measured; a table is changed in place.
"""

import dataclasses
import json
import pathlib
from typing import Annotated, Any

import tyro

from .. import settings, storage
from ..evaluate.results import converted, merged, read_results, write_results


@dataclasses.dataclass(frozen=True)
class Config:
    """Converts results."""

    paths: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Run folders, and files of tables."""


def main(config: Config) -> None:
    """Converts each and says so."""
    for path in config.paths:
        (convert_table if path.suffix == ".json" else convert_run)(path)
        print(f"{path}: converted")


def convert_run(run: pathlib.Path) -> None:
    """Adds the rows of quality.json to evaluation.json. Raises ValueError if there is none."""
    if not (run / "quality.json").exists():
        raise ValueError(f"{run} holds no quality.json: there is nothing to convert")
    write_results(run, merged(read_results(run), converted(settings.read(run / "quality.json"))))


def convert_table(path: pathlib.Path) -> None:
    """Converts the quality of each run in a table.json."""
    table = settings.read(path)
    runs = {name: _converted(run) for name, run in table["runs"].items()}
    storage.write(path, json.dumps({**table, "runs": runs}, indent=1) + "\n")


def _converted(run: dict[str, Any]) -> dict[str, Any]:
    if "quality" not in run:
        return run
    rest = {name: value for name, value in run.items() if name not in ("quality", "evaluation")}
    return {"evaluation": merged(run.get("evaluation", {"results": [], "floors": {}}), converted(run["quality"])), **rest}
