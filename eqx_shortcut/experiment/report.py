"""The output of a run when it begins and when it is done: lines, pictures, files and a table."""

import json
from typing import Any

import equinox as eqx
import jax

from .. import figures, storage
from ..data.identity import Identified, summary
from ..evaluate.results import TITLES, TRAINED, floor_key, markdown, read_results
from ..objectives import unsteady
from ..train import TrainState
from . import log
from .devices import in_words
from .run import Run


def begins(run: Run, state: TrainState) -> None:
    """Says how large the run is, what its images are, and what its settings leave to chance."""
    parameters = sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(state.networks.online, eqx.is_inexact_array)))
    rows = run.data.rows
    print(f"{run.folder}: {parameters:,} parameters, {len(rows.labels):,} {rows.noun}, {in_words(run.mesh)}")
    if (times := run.config.batch / len(rows.labels)) > 1 and run.config.overfit is None:
        print(f"note: --batch {run.config.batch} is {times:.3g} times the {rows.noun} there are: each comes as often in a step")
    train, held_out = run.data.train, run.data.held_out
    if isinstance(train, Identified) and isinstance(held_out, Identified):
        print(summary(train, held_out))
    if said := unsteady(run.config.objective, getattr(run.config.network, "embed_scale", 0.0)):
        print(f"note: {said}")


def ends(run: Run, rows: list[dict[str, Any]]) -> None:
    """Writes and says what is known of a run that is done."""
    folder = run.folder
    report_replaced(folder, run.data.replaced)
    drawn = draw_records(folder)
    if rows:
        report_quality(folder, rows)
        drawn += ["evaluation.json", "quality.png"]
    print(f"pictures and numbers: {folder}/{', '.join(drawn)}")


def draw_records(folder: storage.Path) -> list[str]:
    """Writes loss.png and, if distances were taken, distances.png; returns the names of all pictures that there are."""
    records = log.read_lines(folder / "metrics.jsonl")
    figures.loss_plot(records, folder / "loss.png")
    drawn = [name for name in ("samples", "errors", "denoising") if (folder / name).exists()] + ["loss.png"]
    if any(name.startswith("distance/") for record in records for name in record):
        figures.metric_plot(records, "distance", folder / "distances.png", measure="pixel Frechet distance")
        drawn.append("distances.png")
    if norms := log.read_lines(folder / "norms.jsonl"):
        figures.norms_plot(norms, folder / "norms.png")
        drawn.append("norms.png")
    return drawn


def report_replaced(folder: storage.Path, replaced: dict[int, str]) -> None:
    """Says how many bad images were replaced, and lists them in replaced.json."""
    if replaced:
        storage.write(folder / "replaced.json", json.dumps(dict(sorted(replaced.items())), indent=1))
        print(f"bad images replaced by the next good ones: {len(replaced)}, listed in {folder}/replaced.json")


def report_quality(folder: storage.Path, rows: list[dict[str, Any]]) -> None:
    """Writes quality.png and prints the table."""
    floors = read_results(folder)["floors"]
    floor = floors[floor_key(TRAINED, rows[0]["count"])]
    name: str = next(iter(rows[0]["measures"]))
    curve = {row["steps"]: row["measures"][name] for row in rows}
    figures.quality_plot({folder.name: curve}, folder / "quality.png", measure=TITLES.get(name, name), floor=floor[name])
    print(markdown({"results": rows, "floors": floors}))
