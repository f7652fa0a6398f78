"""A run from its first step to its table: folder, training, pictures, quality."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import equinox as eqx
import jax

from .. import distributed, figures, storage
from ..checkpoint import Checkpoints
from ..data.identity import Identified, summary
from ..data.pipeline import Batches
from ..evaluate.results import TITLES, TRAINED, floor_key, markdown, read_results
from ..models import DiTConfig
from ..objectives import unsteady
from ..train import TrainState, every, fit
from ..trained import Trained
from ..types import Metrics
from . import log
from .checks import check_data, check_record
from .config import Judge
from .events import Events
from .judging import judged, open_measures
from .lock import Lock
from .monitor import Monitor, drawable
from .plan import in_words
from .records import Norms, Profile, Recorder, SpikeWatch
from .run import Run
from .saving import Saver, Signals, Tolerant, snapshots_of


def execute(run: Run, judge: Judge | None) -> None:
    """Trains (or continues) the run, then draws its pictures and prints its table of quality against steps, if asked for."""
    check_data(run)
    measures = open_measures(run, judge)
    with distributed.barrier():
        check_record(run.folder / "config.json", run.record)
    state = None if run.begun else run.first()
    with opened_folder(run) as lock:
        model = train(run, None if run.begun else state, Monitor(run, measures), lock)
        rows = judged(run, model, measures) if run.config.quality.steps else []
        if distributed.is_main_process():
            conclude(run, rows)


@contextlib.contextmanager
def opened_folder(run: Run) -> Iterator[Lock]:
    """Makes the run folder, locks it, and writes the settings. Raises LockError if another process trains the run."""
    lock, held = Lock(run.folder), contextlib.ExitStack()
    with held:
        with distributed.barrier():
            if distributed.is_main_process():
                held.enter_context(lock.held())
                storage.write(run.folder / "config.json", json.dumps(run.record, indent=1))
        yield lock


def train(run: Run, state: TrainState | None, monitor: Monitor, lock: Lock) -> Trained:
    """The run's training to its last step, from the state given, or from the newest whole checkpoint."""
    checkpoints = run.checkpoints()
    with contextlib.closing(run.loader()) as loader:
        if state is None:
            state = run.restore(checkpoints, loader)
            assert state is not None
            print(f"{run.folder}: continuing after step {int(state.step)}")
            if state.step > run.config.steps:
                print(f"note: the run has more steps than --steps {run.config.steps}: it stays as it is")
        else:
            announce(run, state)
        norms = Norms(run, start=int(state.step))
        with contextlib.closing(events_of(run, state, monitor, norms, checkpoints, loader)) as events:
            state = fit(norms.watching(run.step()), state, loader, until=run.config.steps, events=[lock, events])
    return run.average(state)


def events_of(run: Run, state: TrainState, monitor: Monitor, norms: Norms, checkpoints: Checkpoints, loader: Batches) -> Events:
    """The events of a run from `state` on. Their order decides what a crash keeps: records come before checkpoints."""
    config, start = run.config, int(state.step)
    recorder, spikes = Recorder(run, state), SpikeWatch(run, checkpoints, loader.get_state)
    snapshots = snapshots_of(run, start=start, sound=spikes.sound)
    before, until = Events(recorder, norms, snapshots), config.steps
    saver = Saver(checkpoints, loader.get_state, config.checkpoint, until=until, before=before, sound=spikes.sound)

    def draw(number: int, state: TrainState, metrics: Metrics) -> None:
        recorder.add({}, monitor.samples(run.average(state)))

    def watch(number: int, state: TrainState, metrics: Metrics) -> None:
        recorder.add(*monitor(run.average(state), state.networks))

    pictures = f"pictures to {run.folder}"
    return Events(
        Profile(run.folder / "profile", config.profile, start=start, until=until),
        recorder,
        norms,
        Tolerant(every(config.sample_every, until, draw), pictures),
        Tolerant(every(config.figures.every or config.sample_every, until, watch), pictures),
        spikes,
        snapshots,
        saver,
        Signals(saver),
    )


def announce(run: Run, state: TrainState) -> None:
    """Prints the size of the run, a summary of its images, and notes on settings that may not do what is meant."""
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
    network, devices = run.config.network, run.mesh.devices
    if isinstance(network, DiTConfig) and devices.size == 1:
        if faster := network.faster(devices.item()):
            print(f"note: on this GPU, where memory allows, a step is faster with {faster}")


def conclude(run: Run, rows: list[dict[str, Any]]) -> None:
    """Writes and says what is known of a run that is done."""
    folder = run.folder
    if replaced := run.data.replaced:
        storage.write(folder / "replaced.json", json.dumps(dict(sorted(replaced.items())), indent=1))
        print(f"bad images replaced by the next good ones: {len(replaced)}, listed in {folder}/replaced.json")
    drawn = draw_records(folder)
    if rows:
        report_quality(folder, rows)
        drawn += ["evaluation.json", "quality.png"]
    print(f"pictures and numbers: {folder}/{', '.join(drawn)}")
    numbers = " --steps 1 --out samples.npz" * (not drawable(run.data))
    print(f"sample from it: eqx-shortcut sample {folder}{numbers}")


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


def report_quality(folder: storage.Path, rows: list[dict[str, Any]]) -> None:
    """Writes quality.png and prints the table."""
    floors = read_results(folder)["floors"]
    floor = floors[floor_key(TRAINED, rows[0]["count"])]
    name: str = next(iter(rows[0]["measures"]))
    curve = {row["steps"]: row["measures"][name] for row in rows}
    figures.quality_plot({folder.name: curve}, folder / "quality.png", measure=TITLES.get(name, name), floor=floor[name])
    print(markdown({"results": rows, "floors": floors}))
