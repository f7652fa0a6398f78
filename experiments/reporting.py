"""What compare.py makes of runs: tables, figures, samples, and the record of how each was made."""

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from eqx_shortcut import settings
from results import TITLES, common, compared, read, rows, stem, table

if TYPE_CHECKING:
    from compare import Config

COLUMNS = 10


def check_table(config: "Config", budget: int, costs: Mapping[str, float] | None) -> None:
    """Raises ValueError if the table that is there is of other data or another budget."""
    path = config.table / "table.json"
    if path.exists():
        there, here = settings.read(path).get("budget"), described(config, budget, costs)
        if different := settings.differences(there, here):
            raise ValueError(f"{path} is another table: {settings.named(different)}. Name another place with --out")


def described(config: "Config", budget: int, costs: Mapping[str, float] | None) -> dict[str, Any]:
    """What all runs of a table have in common."""
    return {"data": config.data, "steps of shortcut": budget, "costs": costs and dict(costs), "more": config.more}


def report(config: "Config", budget: int, costs: Mapping[str, float] | None, made: Mapping[str, Sequence[str]]) -> None:
    """Writes table, figures and samples, and prints the table: of the runs that OUT/table.json knows and of those here."""
    from eqx_shortcut import figures

    out, order = config.table, list(config.setting.methods)
    known = settings.read(out / "table.json") if (out / "table.json").exists() else {}
    found = known.get("runs", {})
    here = [path.parent for path in config.folder.glob("*-*/quality.json")]
    # The user's own runs may lie here, too.
    for run in (run for run in here if stem(run) in order and stem(run) != run.name):
        files = read(run)
        if found.get(run.name, {}).get("quality") != files.get("quality"):
            date = datetime.date.fromtimestamp((run / "quality.json").stat().st_mtime)
            found[run.name] = files | {"made on": {"date": f"{date}", **surroundings()}}
    names = sorted(found, key=lambda name: (order.index(stem(pathlib.Path(name))), int(name.rpartition("-")[2])))
    if not names:
        raise ValueError(f"{config.folder} holds no finished runs that were judged: there is no table")
    measured = {pathlib.Path(name): rows(pathlib.Path(name), found[name]) for name in names}
    # A spread between parts of the samples is none between seeds.
    measures = dict.fromkeys((config.setting.measure, *(name for name in common(measured) if not name.endswith(" std"))))
    tables = [compared(measured, name) for name in measures]
    notes = [f"Measured differently: {note}" for note in tables[0].notes if not note.startswith("training step")]
    text = "\n\n".join([*map(table, tables), *notes])
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n")
    kept = {"commands": known.get("commands", {}) | made, "runs": {name: found[name] for name in names}}
    (out / "table.json").write_text(json.dumps({"budget": described(config, budget, costs), **kept}, indent=1) + "\n")
    first, title = tables[0], TITLES.get(tables[0].measure, tables[0].measure)
    steps = sorted({n for curve in first.curves.values() for n in curve})
    figures.quality_plot(first.curves, out / "quality.png", measure=title, floor=list(first.floors))
    shown = dict.fromkeys((steps[0], *(n for n in steps if n == 4), steps[-1]))
    figures.dot_plot(first.curves, out / "methods.png", measure=title, steps=list(shown), floor=list(first.floors))
    drawn = [config.folder / name for name in names if name.endswith("-0") and (config.folder / name / "checkpoints").exists()]
    for n in (1, 4) if drawn else ():
        draw(drawn, n, out / f"samples-{n}.png")
    print(text)
    print(f"{out}: table.md, table.json, quality.png and methods.png of {len(names)} runs, samples-*.png of {len(drawn)}")


def draw(runs: Sequence[pathlib.Path], steps: int, path: pathlib.Path) -> None:
    """A picture of samples: a row a run, the same noise and labels down the columns."""
    import jax
    import numpy as np

    import eqx_shortcut
    from eqx_shortcut import figures

    images = [np.asarray(eqx_shortcut.sample(eqx_shortcut.load(run), jax.random.key(0), COLUMNS, steps=steps)) for run in runs]
    figures.grid(np.stack(images), path, labels=[stem(run) for run in runs])


def surroundings() -> dict[str, Any]:
    """What runs are made on."""
    import jax

    import eqx_shortcut

    found = {"chip": jax.devices()[0].device_kind, "cores": os.cpu_count(), "machine": platform.machine()}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "equinox", "optax")}
    return {**found, "python": platform.python_version(), "eqx_shortcut": eqx_shortcut.__version__, **versions}
