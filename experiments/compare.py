"""All methods side by side on one data set: the same network, batch and budget, several seeds.

    python experiments/compare.py digits                                    # equal steps, one seed
    python experiments/compare.py digits --costs costs.json --seeds 5 --methods shortcut mean-flow flow-matching

Only what is missing in RUNS/EXPERIMENT is trained, so the same command continues, and other methods or seeds can be added. With
the file of `benchmarks/cost.py EXPERIMENT --out` the budget is equal time instead: that of shortcut for the preset's steps.
Writes OUT/table.md and table.json (each run with the commands that make it, and those that were there before), quality.png and
methods.png, and samples-1.png and samples-4.png of the first seed: the same noise down the columns, a row a method. Run it in
the repository.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import os
import pathlib
import queue
import shlex
import subprocess
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal, NamedTuple

import tyro

from methods import EXPERIMENTS, SETTINGS, TEACHER, Method, Setting, parsed
from opening import command
from places import Place

REFERENCE = "shortcut"
COLUMNS = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """A table of methods by number of sampling steps."""

    data: Annotated[Literal["digits", "digits-ablations", "fashion-mnist", "cifar10"], tyro.conf.Positional]
    """The data set, or shortcut models on it with one setting changed each."""
    methods: tuple[str, ...] = ()
    """The methods to train; by default all."""
    seeds: int = 1
    """Seeds of each, from 0."""
    steps: int | None = None
    """Training steps; by default the preset's."""
    costs: pathlib.Path | None = None
    """File of what each method's step costs, for a budget of equal time; by default all have equal steps."""
    workers: int = 1
    """Runs at once, each on its share of the CPU cores."""
    out: pathlib.Path = pathlib.Path("comparison")
    """Folder to write."""
    runs: Place = pathlib.Path("runs/compare")
    """Folder of all runs; one for each budget."""
    more: str = ""
    """What all trainings are told besides, as in --more="--data.path FOLDER"."""

    def __post_init__(self):
        if unknown := set(self.methods) - set(self.setting.methods):
            raise ValueError(f"--methods {' '.join(sorted(unknown))}: choose among {', '.join(self.setting.methods)}")
        for field in ("seeds", "workers", "steps"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ValueError(f"--{field} {value}: use 1 or more")

    @property
    def setting(self) -> Setting:
        """What is told of the data set."""
        return SETTINGS[self.data]

    @property
    def folder(self) -> pathlib.Path:
        """Where the runs lie."""
        return self.runs / self.setting.script


class Cell(NamedTuple):
    """A method and a seed."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """Name of its run."""
        return f"{self.method}-{self.seed}"


def main(config: Config) -> None:
    """Trains what is missing, several at once if asked to, and writes table and pictures."""
    from tqdm import tqdm

    costs = read_costs(config)
    budget = config.steps or parsed(config.setting, config.setting.methods[REFERENCE]).steps
    named = config.methods or tuple(config.setting.methods)
    cells = [Cell(method, seed) for seed in range(config.seeds) for method in named]
    plans = {cell: commands(config, cell, lengths(config, cell.method, budget, costs)) for cell in cells}
    # Those with a flow-matching model of their own seed share it: made first, it is not made twice at once.
    shared = dict.fromkeys(plan[0] for plan in plans.values() if len(plan) > 1)
    with tqdm(total=len(plans) + len(shared), desc="runs", unit="run", dynamic_ncols=True) as bar:
        for jobs in ([[first] for first in shared], [plan[plan[0] in shared :] for plan in plans.values()]):
            for _ in worked(jobs, config.workers):
                bar.update()
    record = {str(cell.name): [shlex.join(words) for words in plan] for cell, plan in plans.items()}
    report(config, record)


def read_costs(config: Config) -> dict[str, float] | None:
    """What a step costs over flow matching's, by method; None for a budget of equal steps."""
    if config.costs is None:
        return None
    found = json.loads(config.costs.read_text())["results"]
    costs = {name: row["ratio_quartiles"][1] for name, row in found.items()}
    methods = config.setting.methods
    costs |= {name: costs[TEACHER] for name, method in methods.items() if method.pairs and TEACHER in costs}
    if missing := {REFERENCE, *(config.methods or methods)} - set(costs):
        raise ValueError(
            f"--costs {config.costs} does not know {', '.join(sorted(missing))}: measure them with benchmarks/cost.py"
        )
    return costs


def lengths(config: Config, name: str, budget: int, costs: dict[str, float] | None) -> list[int]:
    """Steps of each phase of a method, given the reference's."""
    method = config.setting.methods[name]
    if costs is None:
        return [budget // method.phases] * method.phases
    left = budget * costs[REFERENCE]
    if method.pairs:
        # A training step is three forward passes of a batch.
        left -= config.setting.pairs * config.setting.grid / (3 * parsed(config.setting, method).batch)
    phases = [TEACHER, name] if method.phases == 2 else [name]
    return [round(left / len(phases) / costs[phase]) for phase in phases]


def commands(config: Config, cell: Cell, steps: list[int]) -> list[tuple[str, ...]]:
    """The commands of a cell, one after another."""
    setting, method = config.setting, config.setting.methods[cell.method]

    def train(of: Method, name: str, steps: int, *more: str) -> tuple[str, ...]:
        preset = () if setting.preset == "default" else (setting.preset,)
        told = *of.arguments.split(), *shlex.split(config.more), "--steps", str(steps), *more, "--seed", str(cell.seed)
        return "python", f"experiments/{setting.script}.py", *preset, *told, "--runs", str(config.runs), "--name", name

    judged = ("--quality.features", setting.features) if setting.features else ()
    if method.phases == 1:
        return [train(method, cell.name, steps[0], *judged)]
    first, second = steps
    teacher, pairs = f"teacher-{first}-{cell.seed}", config.folder / f"pairs-{first}-{cell.seed}"
    begun, run = train(setting.methods[TEACHER], teacher, first), config.folder / teacher
    if method.teacher:
        return [begun, train(method, cell.name, second, "--teacher", str(run), *judged)]
    making = "python", "experiments/make_pairs.py", str(run), "--out", str(pairs), "--count", str(setting.pairs)
    learnt = train(method, cell.name, second, "--pairs", str(pairs), "--init-from", str(run), *judged)
    return [begun, (*making, "--steps", str(setting.grid), "--seed", str(cell.seed + 1)), learnt]


def worked(jobs: list[list[tuple[str, ...]]], workers: int) -> Iterator[None]:
    """Runs the commands of each job in order, so many jobs at once; yields after each job. Raises ValueError if one fails."""
    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    pinned = workers > 1 and hasattr(os, "sched_setaffinity")
    cores = sorted(os.sched_getaffinity(0)) if pinned else []
    for i in range(workers):
        shares.put(set(cores[i::workers]) or set(cores))

    def begin() -> None:
        if pinned:
            os.sched_setaffinity(0, shares.get())  # of this thread, and of the processes that it starts

    with concurrent.futures.ThreadPoolExecutor(workers, initializer=begin) as pool:
        futures = [pool.submit(lambda job=job: [finish(words) for words in job]) for job in jobs]
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)


def finish(words: tuple[str, ...]) -> None:
    """Runs a command unless its run is finished already. Raises ValueError, with what it said last, if it fails."""
    given = dict(itertools.pairwise(words))
    experiment = pathlib.Path(words[1]).stem
    if "--name" in given and (pathlib.Path(given["--runs"]) / experiment / given["--name"] / "quality.json").exists():
        return
    script = EXPERIMENTS / f"{experiment}.py"
    done = subprocess.run([sys.executable, str(script), *words[2:]], capture_output=True, text=True, check=False)
    if done.returncode:
        # Also of what tyro says in a frame.
        said = [text for line in done.stderr.replace("\r", "\n").splitlines() if (text := line.strip("│╭╰╮╯─ "))]
        raise ValueError(f"{shlex.join(words)} failed: {'; '.join(said[-2:]) or f'exit code {done.returncode}'}")


def report(config: Config, made: dict[str, list[str]]) -> None:
    """Writes table, figure and samples, and prints the table: of the runs that OUT/table.json knows and of those here."""
    from eqx_shortcut import figures, settings
    from results import TITLES, common, compared, read, rows, stem, table

    record, order = config.out / "table.json", list(config.setting.methods)
    known = settings.read(record) if record.exists() else {"commands": {}, "runs": {}}
    here = [path.parent for path in config.folder.glob("*-*/quality.json") if stem(path.parent) in order]
    runs = known["runs"] | {run.name: read(run) for run in here}
    names = sorted(runs, key=lambda name: (order.index(stem(pathlib.Path(name))), int(name.rpartition("-")[2])))
    measured = {pathlib.Path(name): rows(pathlib.Path(name), runs[name]) for name in names}
    # A spread between parts of the samples is none between seeds.
    measures = dict.fromkeys((config.setting.measure, *(name for name in common(measured) if not name.endswith(" std"))))
    found = compared(measured, config.setting.measure)
    config.out.mkdir(parents=True, exist_ok=True)
    text, title = "\n\n".join(table(compared(measured, m)) for m in measures), TITLES.get(found.measure, found.measure)
    (config.out / "table.md").write_text(text + "\n")
    kept = {"commands": known["commands"] | made, "runs": {name: runs[name] for name in names}}
    record.write_text(json.dumps(surroundings() | kept, indent=1) + "\n")
    figures.quality_plot(found.curves, config.out / "quality.png", measure=title, floor=found.floors)
    figures.dot_plot(found.curves, config.out / "methods.png", measure=title, floor=found.floors)
    drawn = [config.folder / name for name in names if name.endswith("-0") and (config.folder / name).exists()]
    for steps in (1, 4) if drawn else ():
        draw(drawn, steps, config.out / f"samples-{steps}.png")
    print(text)
    print(
        f"{config.out}: table.md, table.json, quality.png and methods.png of {len(names)} runs, samples-*.png of {len(drawn)}"
    )


def draw(runs: list[pathlib.Path], steps: int, path: pathlib.Path) -> None:
    """A picture of samples: a row a run, the same noise and labels down the columns."""
    import jax
    import numpy as np

    import eqx_shortcut
    from eqx_shortcut import figures
    from results import stem

    rows = [np.asarray(eqx_shortcut.sample(eqx_shortcut.load(run), jax.random.key(0), COLUMNS, steps=steps)) for run in runs]
    figures.grid(np.stack(rows), path, labels=[stem(run) for run in runs], side=32)


def surroundings() -> dict[str, Any]:
    """What the table was made on."""
    import importlib.metadata
    import platform

    import jax

    versions = {name: importlib.metadata.version(name) for name in ("jax", "equinox", "optax")}
    chip = jax.devices()[0].device_kind
    return {"chip": chip, "machine": platform.machine(), "python": platform.python_version(), "versions": versions}


if __name__ == "__main__":
    command(main, Config, __doc__)
