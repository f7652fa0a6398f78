"""All methods side by side on one data set: the same images, blocks, batch and budget, several seeds.

    python experiments/compare.py digits                                    # equal steps, one seed
    python experiments/compare.py push-t --seeds 3 --more="--data.path pusht_cchi_v7_replay.zarr"
    python experiments/compare.py digits --costs costs.json --seeds 5 --methods shortcut mean-flow flow-matching

Only what is missing in RUNS is trained, so the same command continues, and other methods or seeds can be added. With the file
of `benchmarks/cost.py DATA --out` the budget is equal time instead: the time that shortcut takes for the preset's steps. The
options of each method (step embedding, learning rate, average) are in methods.py. Writes OUT/table.md and table.json (each
run with the commands that make it, and those that were there before), quality.png and methods.png, and samples-1.png and
samples-4.png of the first seed: the same noise down the columns, a row a method. Run it in the repository.
"""

import collections
import concurrent.futures
import dataclasses
import datetime
import importlib.metadata
import itertools
import json
import os
import pathlib
import platform
import queue
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, NamedTuple

from eqx_shortcut.interrupts import interruptible

with interruptible():
    import tyro

    from eqx_shortcut import ranges
    from eqx_shortcut.cli import command
    from eqx_shortcut.evaluate.results import TITLES, TRAINED, common, compared, read, read_results, rows, stem, table
    from eqx_shortcut.ranges import Count
    from methods import EXPERIMENTS, SETTINGS, TEACHER, Method, Setting, parsed, settings_of

REFERENCE = "shortcut"
COLUMNS = 10
"""Samples of a run side by side."""
Command = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Config:
    """A table of methods by number of sampling steps."""

    data: Annotated[
        Literal["digits", "digits-ablations", "fashion-mnist", "cifar10", "push-t", "toy2d", "toy2d-moons"],
        tyro.conf.Positional,
    ]
    """The data set, or shortcut models on it with one setting changed each."""
    methods: tuple[str, ...] = ()
    """The methods to train; by default all."""
    seeds: Count = 1
    """Seeds of each, from 0 (1 or more)."""
    steps: Count | None = None
    """Training steps, with --costs those of shortcut; by default the preset's (1 or more)."""
    costs: pathlib.Path | None = None
    """File of what each method's step costs, for a budget of equal time; by default all have equal steps."""
    workers: Count = 1
    """Runs at once, each on its share of the CPU cores (1 or more)."""
    more: str = ""
    """Options of all trainings, as in --more="--data.path FOLDER"."""
    out: pathlib.Path | None = None
    """Folder to write; by default comparison/DATA, for equal time comparison/DATA-time."""
    runs: pathlib.Path | None = None
    """Folder of all runs; by default runs/compare/DATA, for equal time runs/compare/DATA-time."""

    def __post_init__(self):
        ranges.check(self)
        if unknown := set(self.methods) - set(self.setting.methods):
            raise ValueError(f"--methods {' '.join(sorted(unknown))}: choose among {', '.join(self.setting.methods)}")
        if self.costs is not None and TEACHER not in self.setting.methods:
            raise ValueError(f"--costs {self.costs}: {self.data} compares settings of one method, at equal steps")

    @property
    def setting(self) -> Setting:
        """The settings of the data set."""
        return SETTINGS[self.data]

    @property
    def name(self) -> str:
        """The name of the table: data set and kind of budget."""
        return self.data if self.costs is None else f"{self.data}-time"

    @property
    def all_runs(self) -> pathlib.Path:
        """The folder of the runs of all experiments."""
        return self.runs or pathlib.Path("runs/compare") / self.name

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the runs of this table's experiment."""
        return self.all_runs / self.setting.script

    @property
    def table(self) -> pathlib.Path:
        """The folder to write the table to."""
        return self.out or pathlib.Path("comparison") / self.name


class Cell(NamedTuple):
    """A method and a seed."""

    method: str
    seed: int

    @property
    def name(self) -> str:
        """The name of the run."""
        return f"{self.method}-{self.seed}"


def main(config: Config) -> None:
    """Trains what is missing, several at once if asked to, and writes table and pictures."""
    from eqx_shortcut.progress import bar

    costs = read_costs(config)
    budget = config.steps or parsed(config.setting, config.setting.methods[REFERENCE]).steps
    check_table(config, budget, costs)
    named = config.methods or tuple(config.setting.methods)
    cells = [Cell(method, seed) for seed in range(config.seeds) for method in named]
    plans = {cell: commands(config, cell, lengths(config, cell.method, budget, costs)) for cell in cells}
    # Those with a flow-matching model of their own seed share it: made first, it is not made twice at once.
    shared = dict.fromkeys(plan[0] for plan in plans.values() if len(plan) > 1)
    missing = {words for words in dict.fromkeys(itertools.chain(*plans.values())) if not finished(words)}
    failed: list[str] = []
    with bar(total=len(plans) + len(shared), desc="runs", unit="run") as shown:
        for jobs in ([[first] for first in shared], [plan[plan[0] in shared :] for plan in plans.values()]):
            for problem in worked([[words for words in job if words in missing] for job in jobs], config.workers):
                if problem and problem not in failed:
                    failed.append(problem)
                    shown.write(problem, file=sys.stderr)  # at once: the others may take hours
                shown.update()
    record = {cell.name: [shlex.join(words) for words in plan] for cell, plan in plans.items()}
    report(config, budget, costs, record)
    if failed:
        raise ValueError(f"{len(failed)} of the commands failed, as said above: the same again tries only these")


def read_costs(config: Config) -> dict[str, float] | None:
    """The time of a step relative to flow matching's, by method; None for a budget of equal steps."""
    if config.costs is None:
        return None
    try:
        record = json.loads(config.costs.read_bytes())
        costs = {name: row["ratio_quartiles"][1] for name, row in record["results"].items()}
        measured = record["data"]
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise ValueError(f"--costs {config.costs} is no file of benchmarks/cost.py ({error!r}): name one") from error
    if measured != config.data:
        raise ValueError(f"--costs {config.costs} is of {measured}: measure those of {config.data} with benchmarks/cost.py")
    methods = config.setting.methods
    costs |= {name: costs[TEACHER] for name, method in methods.items() if method.pairs and TEACHER in costs}
    # What goes on from a flow model has the step of what does not.
    same = {name: name.removesuffix("-from-flow") for name, method in methods.items() if method.goes_on is not None}
    costs |= {name: costs[other] for name, other in same.items() if other in costs}
    if missing := {REFERENCE, *(config.methods or methods)} - set(costs):
        raise ValueError(
            f"--costs {config.costs} does not know {', '.join(sorted(missing))}: measure them with benchmarks/cost.py"
        )
    return costs


def lengths(config: Config, name: str, budget: int, costs: dict[str, float] | None) -> list[int]:
    """Steps of each phase of a method, given the reference's. Raises ValueError if they are too few."""
    method = config.setting.methods[name]
    phases = [TEACHER, name][-len(method.shares) :]
    if costs is None:
        found = [budget if config.setting.whole else int(budget * share) for share in method.shares]
    else:
        left = budget * costs[REFERENCE]
        if method.pairs:
            # A training step is three forward passes of a batch.
            left -= config.setting.pairs * config.setting.grid / (3 * parsed(config.setting, method).batch)
        found = [round(left * share / costs[phase]) for share, phase in zip(method.shares, phases, strict=True)]
    if min(found) < 1:
        raise ValueError(f"--steps {budget} leave none for {name}, of {len(phases)} phases: use more, or other --methods")
    return found


def commands(config: Config, cell: Cell, steps: list[int]) -> list[Command]:
    """The commands of a cell, one after another."""
    setting, method = config.setting, config.setting.methods[cell.method]

    def train(of: Method, name: str, steps: int, *more: str) -> Command:
        words = *of.arguments.split(), *shlex.split(config.more), "--steps", str(steps), *more, "--seed", str(cell.seed)
        script, placed = f"experiments/{setting.script}.py", ("--runs", str(config.all_runs), "--name", name)
        return ("python", script, *setting.words, *words, *placed)

    judged = ("--quality.features", setting.features) if setting.features else ()
    if len(method.shares) == 1:
        return [train(method, cell.name, steps[0], *judged)]
    first, second = steps
    flow, tag = setting.methods[TEACHER], "" if method.goes_on is None else f"-{cell.method}"
    if method.goes_on is not None:
        flow = flow._replace(arguments=f"{flow.arguments} {method.goes_on}")
    teacher, pairs = f"teacher{tag}-{first}-{cell.seed}", config.folder / f"pairs-{first}-{cell.seed}"
    begun, run = train(flow, teacher, first), config.folder / teacher
    if not method.pairs:
        takes = "--teacher" if method.teacher else "--init-from"
        return [begun, train(method, cell.name, second, takes, str(run), *judged)]
    making = "python", "-m", "eqx_shortcut", "pairs", str(run), "--out", str(pairs), "--count", str(setting.pairs)
    learnt = train(method, cell.name, second, "--pairs", str(pairs), "--init-from", str(run), *judged)
    return [begun, (*making, "--steps", str(setting.grid), "--seed", str(cell.seed + 1)), learnt]


def finished(words: Command) -> bool:
    """Whether the run of a training command is done. Raises ValueError if its folder holds one of other settings."""
    from eqx_shortcut import settings
    from eqx_shortcut.experiment.checks import MAY_CHANGE, check_record

    given, experiment = dict(itertools.pairwise(words)), pathlib.Path(words[1]).stem
    if "--name" not in given:
        return False
    folder = pathlib.Path(given["--runs"]) / experiment / given["--name"]
    if not (folder / "config.json").exists():
        return False
    # Beside settings a record says what was found of the data.
    record = settings.read(folder / "config.json") | settings.dump(settings_of(experiment, words[2:]))
    remedy = "Name another place with --runs, or remove it"
    check_record(folder / "config.json", record, may_change={*MAY_CHANGE} - {"steps", "quality"}, remedy=remedy)
    judged = {row["steps"] for row in read_results(folder)["results"] if row["protocol"].get("statistics") == TRAINED}
    return judged >= set(record["quality"]["steps"])


def worked(jobs: list[list[Command]], workers: int) -> Iterator[str]:
    """Runs the commands of each job in order, `workers` jobs at once; yields an error, or "", after each job.

    On a terminal each worker has a line with the last output of its command.
    """
    from tqdm import tqdm

    shares: queue.SimpleQueue[set[int]] = queue.SimpleQueue()
    pinned = workers > 1 and hasattr(os, "sched_setaffinity")
    cores = sorted(os.sched_getaffinity(0)) if pinned else []
    lines: queue.SimpleQueue[tqdm] = queue.SimpleQueue()
    for i in range(workers):
        shares.put(set(cores[i::workers]) or set(cores))
        lines.put(tqdm(position=i + 1, bar_format="{desc}", leave=False, disable=None, dynamic_ncols=True))

    def begin() -> None:
        if pinned:
            os.sched_setaffinity(0, shares.get())  # of this thread, and of the processes that it starts

    def work(job: list[Command]) -> str:
        line = lines.get()
        try:
            return next(filter(None, (problem_of(words, line.set_description_str) for words in job)), "")
        finally:
            line.set_description_str()
            lines.put(line)

    with concurrent.futures.ThreadPoolExecutor(workers, initializer=begin) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            yield from (future.result() for future in concurrent.futures.as_completed(futures))
        finally:
            pool.shutdown(cancel_futures=True)


def problem_of(words: Command, tell: Callable[[str], None]) -> str:
    """Runs a command, passing on its output line by line; returns the last of it if the command failed, else ""."""
    # An experiment by its file, wherever this is run, or a command of the package.
    program = words[1:] if words[1] == "-m" else (str(EXPERIMENTS / pathlib.Path(words[1]).name), *words[2:])
    name = dict(itertools.pairwise(words)).get("--name", words[3] if words[1] == "-m" else pathlib.Path(words[1]).stem)
    last: collections.deque[str] = collections.deque(maxlen=2)
    whole, silent, pipe = [sys.executable, *program], subprocess.DEVNULL, subprocess.PIPE
    # As text, so that a bar that is drawn again is a line, too.
    with subprocess.Popen(whole, stdout=silent, stderr=pipe, text=True) as child:
        for line in child.stderr or ():
            if text := line.strip("│╭╰╮╯─ \n"):  # also of what tyro says in a frame
                last.append(text)
                tell(f"{name}: {text}")
    return f"{shlex.join(words)} failed: {'; '.join(last) or f'exit code {child.returncode}'}" if child.returncode else ""


def check_table(config: Config, budget: int, costs: Mapping[str, float] | None) -> None:
    """Raises ValueError if OUT holds a table of other data or of another budget."""
    from eqx_shortcut import settings

    path = config.table / "table.json"
    if path.exists():
        there, here = settings.read(path), record_of(config, budget, costs)
        if any("evaluation" not in run for run in there.get("runs", {}).values()):
            raise ValueError(f"{path} is of an earlier version: eqx-shortcut convert {path} makes it today's")
        if unknown := {stem(pathlib.Path(name)) for name in there.get("runs", {})} - config.setting.methods.keys():
            raise ValueError(f"{path} holds {', '.join(sorted(unknown))}, no methods of today. Name another place with --out")
        if different := settings.differences(there.get("budget"), here):
            raise ValueError(f"{path} is another table: {settings.named(different)}. Name another place with --out")


def record_of(config: Config, budget: int, costs: Mapping[str, float] | None) -> dict[str, Any]:
    """The settings shared by all runs of a table."""
    return {"data": config.data, "steps of shortcut": budget, "costs": costs and dict(costs), "more": config.more}


def report(config: Config, budget: int, costs: Mapping[str, float] | None, made: Mapping[str, Sequence[str]]) -> None:
    """Writes table, figures and samples, and prints the table: of the runs that OUT/table.json knows and of those here."""
    from eqx_shortcut import figures, settings

    out, order = config.table, list(config.setting.methods)
    known = settings.read(out / "table.json") if (out / "table.json").exists() else {}
    found = known.get("runs", {})
    here = [path.parent for path in config.folder.glob("*-*/evaluation.json")]
    # The user's own runs may lie here, too.
    for run in (run for run in here if stem(run) in order and stem(run) != run.name):
        results = read(run)
        if found.get(run.name, {}).get("evaluation") != results:
            date = datetime.date.fromtimestamp((run / "evaluation.json").stat().st_mtime)
            found[run.name] = {"evaluation": results, "made on": {"date": f"{date}", **surroundings()}}
    names = sorted(found, key=lambda name: (order.index(stem(pathlib.Path(name))), int(name.rpartition("-")[2])))
    if not names:
        raise ValueError(f"{config.folder} holds no finished runs that were judged: there is no table")
    measured = {pathlib.Path(name): rows(pathlib.Path(name), found[name]["evaluation"]) for name in names}
    # A spread between parts of the samples is none between seeds.
    measures = dict.fromkeys((config.setting.measure, *(name for name in common(measured) if not name.endswith(" std"))))
    tables = [compared(measured, name) for name in measures]
    notes = [f"Measured differently: {note}" for note in tables[0].notes if not note.startswith("training step")]
    text = "\n\n".join([*map(table, tables), *notes])
    out.mkdir(parents=True, exist_ok=True)
    (out / "table.md").write_text(text + "\n", encoding="utf-8")
    kept = {"commands": known.get("commands", {}) | made, "runs": {name: found[name] for name in names}}
    (out / "table.json").write_text(json.dumps({"budget": record_of(config, budget, costs), **kept}, indent=1) + "\n")
    first, title = tables[0], TITLES.get(tables[0].measure, tables[0].measure)
    steps = sorted({n for curve in first.curves.values() for n in curve})
    figures.quality_plot(first.curves, out / "quality.png", measure=title, floor=list(first.floors))
    shown = dict.fromkeys((steps[0], *(n for n in steps if n == 4), steps[-1]))
    figures.dot_plot(first.curves, out / "methods.png", measure=title, steps=list(shown), floor=list(first.floors))
    firsts = [config.folder / name for name in names if name.endswith("-0") and config.setting.pictures]
    drawn = [run for run in firsts if (run / "checkpoints").exists()]
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
    """The machine and the versions that runs are made with."""
    import jax

    import eqx_shortcut

    found = {"chip": jax.devices()[0].device_kind, "cores": os.cpu_count(), "machine": platform.machine()}
    versions = {name: importlib.metadata.version(name) for name in ("jax", "equinox", "optax")}
    return {**found, "python": platform.python_version(), "eqx_shortcut": eqx_shortcut.__version__, **versions}


if __name__ == "__main__":
    command(main, Config, __doc__)
