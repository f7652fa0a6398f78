"""A run from its first step to its table: folder, training, pictures, quality."""

import contextlib
import json
from collections.abc import Iterator

from .. import distributed, storage
from ..checkpoint import Checkpoints
from ..data.pipeline import Batches
from ..train import TrainState, every, fit
from ..trained import Trained
from ..types import Metrics
from . import report
from .checks import check_data, check_record
from .config import Judge
from .events import Events
from .judging import judged, open_measures
from .lock import Lock
from .monitor import Monitor
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
            report.ends(run, rows)


@contextlib.contextmanager
def opened_folder(run: Run) -> Iterator[Lock]:
    """Makes the run folder, which is this run's alone inside, and writes the settings. Raises LockError if it is another's."""
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
        else:
            report.begins(run, state)
        norms = Norms(run, start=int(state.step))
        with contextlib.closing(events_of(run, state, monitor, norms, checkpoints, loader)) as events:
            state = fit(norms.watching(run.step()), state, loader, until=run.config.steps, events=[lock, events])
    checkpoints.close()
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
        Profile(run.folder / "profile", config.profile, start=start),
        recorder,
        norms,
        Tolerant(every(config.sample_every, until, draw), pictures),
        Tolerant(every(config.figures.every or config.sample_every, until, watch), pictures),
        spikes,
        snapshots,
        saver,
        Signals(saver),
    )
