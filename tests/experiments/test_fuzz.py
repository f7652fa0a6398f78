"""Random settings from the types of all fields and their edges: each trains, or is refused in one sentence.

A setting is known by its number: `pytest tests/experiments/test_fuzz.py -m slow -k "[17-"` runs one again.
"""

import contextlib
import dataclasses
import io
import json
import math
import pathlib
import typing
from typing import Annotated, Any, Literal

import jax
import numpy as np
import pytest

from eqx_shortcut.experiment import Experiment, monitor
from eqx_shortcut.experiment.config import AnyObjective, AnyOptimizer, Config
from eqx_shortcut.experiment.main import members
from eqx_shortcut.models import DiTConfig
from scripts import script

WHOLE = (-1, 0, 1, 2, 2, 3, 4, 4, 7, 8, 16)
LARGE = (2**31, 2**32, 2**63, 2**64)
REAL = (0.0, 1e-12, 0.01, 0.3, 0.5, 0.9, 1.0, 1.5, 2.0, 4.0, 100.0, 1e30)
NONE = (-1.0, math.nan, math.inf, -math.inf)
LEFT_OUT = ("steps", "runs", "name", "processes", "wandb", "workers", "mesh", "dry_run", "network.depth", "optimizer")
"""What makes a run long, or needs a network or other processes; `steps` are two."""
TINY = (
    "--steps 2 --batch 16 --network.hidden 16 --network.depth 1 --network.heads 2 --figures.batches 0 --quality.steps".split()
)


def options(kind: type, prefix: str = "") -> list[tuple[str, Any]]:
    """The names on a command line of the fields of a dataclass and of those in it, and their types."""
    found, hints = [], typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        name, hint = prefix + field.name, hints[field.name]
        if name in LEFT_OUT:
            continue
        if dataclasses.is_dataclass(hint):
            found += options(typing.cast(type, hint), f"{name}.")
        elif not isinstance(hint, typing.TypeVar):
            found.append((name, hint))
    return found


def words(name: str, hint: Any, rng: np.random.Generator) -> list[str]:
    """An option with a value of its type, mostly one at an edge."""
    flag = "--" + name.replace("_", "-")
    if hint is bool:
        before, _, last = flag.rpartition(".")
        return [flag if rng.random() < 0.5 else f"{before}.no-{last}" if before else f"--no-{last[2:]}"]
    return [flag, *values(name, hint, rng)]


def values(name: str, hint: Any, rng: np.random.Generator) -> list[str]:
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return values(name, inner[0], rng)
    if origin is Literal:
        return [str(rng.choice([*map(str, inner), "nonsense"]))]
    if origin is tuple:
        count = int(rng.integers(0, 4)) if inner[-1] is Ellipsis else len(inner)
        return [word for _ in range(count) for word in values(name, inner[0], rng)]
    if inner:  # a union
        return values(name, inner[int(rng.integers(len(inner)))], rng)
    if hint is type(None):
        return ["None"]
    if hint is int:
        return [str(rng.choice(np.array(WHOLE + LARGE * (name.split(".")[-1] == "seed"), object)))]
    if hint is float:
        return [str(rng.choice(REAL if rng.random() < 0.9 else NONE))]
    return [str(rng.choice(["", "nowhere", "1:2", "2:1", "猫"]))]


def setting(number: int) -> list[str]:
    """The words of a command line: an objective, an optimizer, and one to four options at random."""
    rng = np.random.default_rng(number)
    objectives, optimizers = members(AnyObjective), members(AnyOptimizer)
    objective, optimizer = rng.choice(sorted(objectives)), rng.choice(sorted(optimizers))
    offered = options(Config) + options(DiTConfig, "network.") + [("data.mirror", bool)]
    own = options(objectives[objective], "objective.") + options(optimizers[optimizer], "optimizer.")
    chosen = [(own if rng.random() < 0.5 else offered) for _ in range(rng.integers(1, 4))]
    drawn = [word for some in chosen for word in words(*some[int(rng.integers(len(some)))], rng)]
    step = ["--network.step", "linear"] if objectives[objective].continuous else []
    how = ["--dry-run"] if number % 4 else []
    return [f"objective:{objective}", f"optimizer:{optimizer}", *TINY, *step, *drawn, *how]


def outcome(experiment: Experiment, args: list[str]) -> tuple[int, str, str]:
    """Exit status, and what is said."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            experiment.main(args)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
    return status, out.getvalue(), err.getvalue()


def check(number: int, folder: pathlib.Path) -> None:
    experiment = script("digits").EXPERIMENT
    status, out, err = outcome(experiment, [*setting(number), "--runs", str(folder)])
    said = f"{' '.join(setting(number))}\n{out}\n{err}"
    assert status in (0, 1, 2) and "Traceback" not in err, said
    if status == 1:
        assert len([line for line in err.splitlines() if line.startswith("error: ")]) == 1, said
    elif status == 2:
        assert "helptext" in err or "error" in err.lower(), said
    elif "--dry-run" in setting(number):
        assert "memory a device" in out and not list(folder.iterdir()), said
    else:
        (lines,) = folder.glob("digits/*/metrics.jsonl")
        records = [json.loads(line) for line in lines.read_text().splitlines()]
        assert records and records[-1]["step"] == 2, said
        assert all(math.isfinite(value) for record in records for value in record.values()), said


@pytest.fixture(autouse=True)
def few_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Samples in one step alone, each number of which is a program of its own."""
    monkeypatch.setattr(monitor, "GRID_STEPS", (1,))


@pytest.mark.parametrize("number", range(15))
def test_a_few_settings_train_or_are_refused_in_one_sentence(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    check(number, tmp_path / "runs")


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("number", range(15, 500))
def test_every_setting_trains_or_is_refused_in_one_sentence(number, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    check(number, tmp_path / "runs")
    jax.clear_caches()  # hundreds of programs in one process run into the kernel's limit of memory maps, and it crashes


def test_the_settings_reach_every_kind_of_option():
    drawn = {word for number in range(500) for word in setting(number) if word.startswith(("--", "objective:"))}
    assert len(drawn) > 130 and {word for word in drawn if ":" in word} == {
        f"objective:{name}" for name in members(AnyObjective)
    }
