"""Converts results of earlier versions: quality.json of a run, or table.json of compare.py.

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
        if path.suffix == ".json":
            convert_table(path)
        elif (path / "quality.json").exists():
            write_results(path, merged(read_results(path), converted(settings.read(path / "quality.json"))))
        else:
            raise ValueError(f"{path} holds no quality.json: there is nothing to convert")
        print(f"{path}: converted")


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
