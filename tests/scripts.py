"""Experiments and benchmarks, which lie in no package, as modules; and what runs a command or one of them."""

import importlib
import pathlib
import sys
from typing import Any

ROOT = pathlib.Path(__file__).parents[1]
EXPERIMENTS = ROOT / "experiments"

sys.path += [str(EXPERIMENTS), str(ROOT / "benchmarks")]


def script(name: str) -> Any:
    """The module of a file in experiments/ or benchmarks/."""
    return importlib.import_module(name)


def program(name: str) -> list[str]:
    """What Python is given to run an experiment, or else a command of the package."""
    path = EXPERIMENTS / f"{name}.py"
    return [str(path)] if path.exists() else ["-m", "eqx_shortcut", name]
