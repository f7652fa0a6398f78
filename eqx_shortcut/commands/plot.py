"""Draws quality against sampling steps for several trained runs, and prints the table.

    eqx-shortcut plot runs/digits/shortcut-* runs/digits/flow-matching-* --out quality.svg

Reads evaluation.json, what the runs and `eqx-shortcut evaluate` measured. Runs named NAME-SEED are one curve,
the mean with a band from the smallest to the largest.
"""

import dataclasses
import pathlib
from typing import Annotated

import tyro

from ..cli import check_out


@dataclasses.dataclass(frozen=True)
class Config:
    """Quality against sampling steps."""

    runs: Annotated[tuple[pathlib.Path, ...], tyro.conf.Positional]
    """Run folders."""
    measure: str | None = None
    """Measure to draw, such as FID; by default the first that all runs have."""
    group: tuple[str, ...] = ()
    """Names of the curves, one for each run; runs of one name are one curve. By default those of the folders, without -SEED."""
    title: str | None = None
    """Name of the axis of the measure."""
    out: pathlib.Path = pathlib.Path("quality.png")
    """Figure to write (.png, .svg, .pdf)."""

    def __post_init__(self):
        if not self.runs:
            raise ValueError("no runs: name one or more run folders")
        if self.group and len(self.group) != len(self.runs):
            raise ValueError(f"--group names {len(self.group)} of {len(self.runs)} runs: name each, or none")


def main(config: Config) -> None:
    """Reads the results, draws the figure, prints the table."""
    check_out(config.out, ".png", ".svg", ".pdf")
    from .. import figures
    from ..evaluate.results import TITLES, compare, table

    found = compare(config.runs, config.measure, config.group)
    title = config.title or TITLES.get(found.measure, found.measure)
    curves = {}
    for name, curve in found.curves.items():
        seeds = max(map(len, curve.values()))
        curves[f"{name} ({seeds} seeds)" if seeds > 1 else name] = curve
    figures.quality_plot(curves, config.out, measure=title, floor=list(found.floors))
    print(table(found))
    for note in found.notes:
        print(f"measured differently, {note}")
    print(f"{config.out}: {title} of {len(config.runs)} run{'s'[: len(config.runs) > 1]}")
