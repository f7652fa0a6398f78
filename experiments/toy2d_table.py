"""All objectives on points in the plane, side by side: the runs of toy2d.py, of several seeds, and their table.

python experiments/toy2d_table.py --seeds 5                                     # all objectives, eight Gaussians and moons
python experiments/toy2d_table.py --objectives shortcut flow-matching --seeds 1

Each has the settings of toy2d.py; only runs that are not in RUNS/toy2d are made, about 20 s each on one core, with
pictures of the first seed. Prints a table a distribution: mean, smallest and largest distance over the seeds, and how the means
compare with flow matching's.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator
from typing import Any

from eqx_shortcut.cli import Place, check_out, command
from toy2d import OBJECTIVES, Data, in_the_plane
from toy2d import Config as Run

BASELINE = "flow-matching"


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
    workers: int = 1
    """Runs at the same time, each on one core if there are several: one run alone does not fill two."""

    def __post_init__(self):
        if unknown := set(self.objectives) - set(OBJECTIVES):
            raise ValueError(f"--objectives {' '.join(sorted(unknown))}: choose among {', '.join(OBJECTIVES)}")
        for field in ("seeds", "workers"):
            if getattr(self, field) < 1:
                raise ValueError(f"--{field} {getattr(self, field)}: use 1 or more")


def main(config: Config) -> None:
    """Makes the runs that are missing, writes the file after each, prints the tables."""
    from tqdm import tqdm

    check_out(config.out, ".json")
    found: dict[str, dict[str, dict[int, Any]]] = {}
    cases: list[tuple[Data, str, int]] = [
        (data, name, seed) for seed in range(config.seeds) for data in config.data for name in config.objectives
    ]
    runs = [
        Run(objective=in_the_plane(OBJECTIVES[name]), data=data, seed=seed, steps=config.steps, runs=config.runs)
        for data, name, seed in cases
    ]
    results = tqdm(several(runs, config.workers), total=len(cases), desc="runs", unit="run", dynamic_ncols=True)
    for (data, name, seed), result in zip(cases, results, strict=True):
        found.setdefault(data, {}).setdefault(name, {})[seed] = result
        config.out.write_text(json.dumps(found, indent=1))
    for data, rows in found.items():
        print(f"\n{data}\n\n{table(rows)}")


def several(runs: list[Run], workers: int) -> Iterator[dict[str, Any]]:
    """What is measured of each run, in their order, so many at a time."""
    if workers == 1:
        yield from map(measured, runs)
        return
    from concurrent.futures import ProcessPoolExecutor
    from multiprocessing import get_context

    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=take_one_core) as pool:
        yield from pool.map(measured, runs)


def take_one_core() -> None:
    """Settles what JAX and tqdm read when they are imported: one thread, and no progress bar among others'."""
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    os.environ |= {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {flags}", "TQDM_DISABLE": "1"}


def measured(run: Run) -> dict[str, Any]:
    """What quality.json of the run holds, which is made if it is not there."""
    from eqx_shortcut import settings
    from toy2d import run as make
    from toy2d import settle

    if not (run.folder / "quality.json").exists():
        return make(run, pictures=run.seed == 0)
    settle(run)
    return settings.read(run.folder / "quality.json")


def table(rows: dict[str, dict[int, Any]]) -> str:
    """Markdown; its last columns are means over those of flow matching, if it is among them, in fewest and in most steps."""
    from eqx_shortcut.evaluate.results import Comparison
    from eqx_shortcut.evaluate.results import table as compared

    curves: dict[str, dict[int, list[float]]] = {}
    for name, seeds in rows.items():
        for quality in seeds.values():
            for row in quality["results"]:
                curves.setdefault(name, {}).setdefault(row["steps"], []).append(row["sliced_wasserstein"])
    floors = {quality["held_out"]["sliced_wasserstein"] for seeds in rows.values() for quality in seeds.values()}
    text = compared(Comparison("sliced_wasserstein", curves, dict.fromkeys(sorted(floors), "real against real"), []))
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
