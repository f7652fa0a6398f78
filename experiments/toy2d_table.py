"""All objectives on points in the plane, side by side: the runs of toy2d.py, of several seeds, and their table.

python experiments/toy2d_table.py --seeds 5                                     # all objectives, eight Gaussians and moons
python experiments/toy2d_table.py --objectives shortcut flow-matching --seeds 1

Each has the settings of its class, and network, optimizer, batch and steps of toy2d.py; only runs that are not in RUNS/toy2d
are made, about half a minute each on two cores. Prints a table a distribution: mean, smallest and largest distance over the
seeds, and how the means compare with flow matching's.
"""

import dataclasses
import json
import pathlib
from typing import Any, get_args

from config import AnyObjective
from opening import check_out, command
from places import Place
from toy2d import Config as Run
from toy2d import Data

BASELINE = "flow-matching"
OBJECTIVES = {name.name: kind for kind, name in map(get_args, get_args(AnyObjective))}


@dataclasses.dataclass(frozen=True)
class Config:
    """Distances by objective, distribution and number of steps."""

    objectives: tuple[str, ...] = tuple(OBJECTIVES)
    """Objectives, as toy2d.py names them; those that distil have a teacher trained first."""
    data: tuple[Data, ...] = ("eight-gaussians", "moons")
    """Distributions of the points."""
    seeds: int = 5
    """Seeds, from 0."""
    steps: int = Run.steps
    """Training steps."""
    out: pathlib.Path = pathlib.Path("toy2d.json")
    """File to write: what each run measured, by distribution, objective and seed."""
    runs: Place = pathlib.Path("runs")
    """Folder of all runs."""

    def __post_init__(self):
        if unknown := set(self.objectives) - set(OBJECTIVES):
            raise ValueError(f"--objectives {' '.join(sorted(unknown))}: choose among {', '.join(OBJECTIVES)}")
        if self.seeds < 1:
            raise ValueError(f"--seeds {self.seeds}: use 1 or more")


def main(config: Config) -> None:
    """Makes the runs that are missing, writes the file after each, prints the tables."""
    from tqdm import tqdm

    check_out(config.out, ".json")
    found: dict[str, dict[str, dict[int, Any]]] = {}
    cases: list[tuple[Data, str, int]] = [
        (data, name, seed) for seed in range(config.seeds) for data in config.data for name in config.objectives
    ]
    for data, name, seed in tqdm(cases, desc="runs", unit="run", dynamic_ncols=True):
        run = Run(objective=OBJECTIVES[name](), data=data, seed=seed, steps=config.steps, runs=config.runs)
        found.setdefault(data, {}).setdefault(name, {})[seed] = measured(run)
        config.out.write_text(json.dumps(found, indent=1))
    for data, rows in found.items():
        print(f"\n{data}\n\n{table(rows)}")


def measured(run: Run) -> dict[str, Any]:
    """What quality.json of the run holds, which is made if it is not there."""
    from eqx_shortcut import settings
    from toy2d import run as make
    from toy2d import settle

    if not (run.folder / "quality.json").exists():
        return make(run)
    settle(run)
    return settings.read(run.folder / "quality.json")


def table(rows: dict[str, dict[int, Any]]) -> str:
    """Markdown; its last columns are means over those of flow matching, if it is among them, in fewest and in most steps."""
    from results import Comparison
    from results import table as compared

    curves: dict[str, dict[int, list[float]]] = {}
    for name, seeds in rows.items():
        for quality in seeds.values():
            for row in quality["results"]:
                curves.setdefault(name, {}).setdefault(row["steps"], []).append(row["sliced_wasserstein"])
    floors = {quality["held_out"]["sliced_wasserstein"] for seeds in rows.values() for quality in seeds.values()}
    text = compared(Comparison("sliced_wasserstein", curves, sorted(floors), []))
    if BASELINE not in curves:
        return text
    ends = [min(curves[BASELINE]), max(curves[BASELINE])]
    header, line, *body = text.splitlines()
    ratios = [" | ".join(f"{sum(curve[n]) / sum(curves[BASELINE][n]):.2f}" for n in ends) for curve in curves.values()]
    ratios += [" | "] * len(floors)
    titles = " | ".join(f"{n} step{'s'[: n > 1]}, over {BASELINE}" for n in ends)
    return "\n".join([f"{header} {titles} |", f"{line}---|---|", *map("{} {} |".format, body, ratios)])


if __name__ == "__main__":
    command(main, Config, __doc__)
