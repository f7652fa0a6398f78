"""What is known of a run that is done, as pictures, files and a table."""

import json
from typing import Any

from .. import figures, storage
from . import log
from .examples import Data
from .judging import table


def report(folder: storage.Path, data: Data, quality: dict[str, Any] | None) -> None:
    """Writes and says what is known of a run that is done."""
    report_replaced(folder, data.replaced)
    drawn = draw_records(folder)
    if quality is not None:
        report_quality(folder, quality)
        drawn += ["quality.json", "quality.png"]
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


def report_quality(folder: storage.Path, quality: dict[str, Any]) -> None:
    """Writes quality.json and quality.png, and prints the table."""
    storage.write(folder / "quality.json", json.dumps(quality, indent=1))
    curve = {row["steps"]: row["frechet"] for row in quality["results"]}
    figures.quality_plot(
        {folder.name: curve}, folder / "quality.png", measure="pixel Frechet distance", floor=quality["held_out"]["frechet"]
    )
    print(table(quality))
