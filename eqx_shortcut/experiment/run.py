"""A run from its settings to its table: folder, training, pictures, quality."""

import contextlib
import json
import signal
from typing import Any

import equinox as eqx
import jax

from .. import compilation, distributed, flops, rng, sharding, storage
from ..checkpoint import Checkpoints
from ..cli import Interrupted
from ..data import ImageRecords, Images, Rows, batches, null_of, prepare
from ..data.pipeline import Batches
from ..train import Step, TrainState, every, fit, init_state, make_step
from ..trained import Trained
from ..types import Metrics
from . import initial
from .checks import check, check_data, check_record, described
from .config import Config, Judge, named
from .devices import chosen_mesh, in_words
from .examples import Data, open_data
from .judging import judge_samples, open_measures
from .monitor import Monitor
from .records import Norms, Profile, Recorder, SpikeWatch
from .report import report
from .saving import Saver, Snapshots, tolerant


def run(experiment: str, config: Config, judge: Judge | None) -> None:
    """Trains (or continues) the run, then draws its pictures and prints its table of quality against steps, if asked for."""
    compilation.use_compilation_cache()
    mesh = chosen_mesh(config)
    with compilation.compiled_for(mesh), jax.set_mesh(mesh):
        run_on(mesh, experiment, config, judge)


def run_on(mesh: jax.sharding.Mesh, experiment: str, config: Config, judge: Judge | None) -> None:
    """The run on these devices, which the network is told of by `jax.set_mesh`."""
    check(config, mesh)
    data = open_data(config, mesh)
    check_data(config, data)
    record = described(experiment, config, data)
    folder = config.runs / experiment / (config.name or named(config.objective))
    measures = open_measures(config, data.train, judge, folder) if isinstance(data.train, Images | ImageRecords) else None
    with distributed.barrier():
        check_record(folder, record)
    state = first_state(config, data.train, mesh, fresh=not Checkpoints.any(folder / "checkpoints"))
    with distributed.barrier():
        if distributed.is_main_process():
            open_folder(folder, record)
    monitor = Monitor(folder, config, data, measures, mesh)
    model = train_network(folder, config, data, state, record, mesh, monitor)
    quality = judge_samples(config, model, data, measures) if config.quality.steps and measures is not None else None
    if distributed.is_main_process():
        report(folder, data, quality)


def open_folder(folder: storage.Path, record: dict[str, Any]) -> None:
    """Makes the run folder and writes the settings."""
    path = folder / "config.json"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    storage.write(path, json.dumps(record, indent=1))


def first_state(config: Config, train: Rows, mesh: jax.sharding.Mesh, *, fresh: bool) -> TrainState:
    """The state before the first step; of a fresh run, with the weights that it takes from other runs."""
    state = init_state(
        lambda key: config.network.build(train.shape, train.classes, key=key),
        config.optimizer.build(config.steps),
        rng.key(config.seed),
        null=null_of(train),
        teacher=config.objective.stages > 0,
        extra=config.objective.extra,
        averages=config.averages.sigma_rel,
        shardings=lambda state: sharding.lay_out(state, mesh),
    )
    return initial.state(config, state) if fresh else state


def train_network(
    folder: storage.Path,
    config: Config,
    data: Data,
    state: TrainState,
    record: dict[str, Any],
    mesh: jax.sharding.Mesh,
    monitor: Monitor,
) -> Trained:
    """The run's training, from its newest whole checkpoint to its last step."""
    rows = data.rows
    keep, milestones = config.checkpoint.keep, config.checkpoint.milestones
    checkpoints = Checkpoints(folder / "checkpoints", keep=keep, milestones=milestones, config=record)
    loader = open_loader(config, data, mesh)
    restored = checkpoints.restore(state)
    if restored is not None:
        state, position, notes = restored
        if position:
            loader.set_state(position)
        for note in notes:
            print(f"{note}: continuing from the one before")
        print(f"{folder}: continuing after step {int(state.step)}")
    else:
        print(f"{folder}: {parameter_count(state):,} parameters, {len(rows.labels):,} {rows.noun}, {in_words(mesh)}")
    step, begun = training_step(config, data, mesh), int(state.step)
    share = share_of_peak(config, data, state)
    norms = Norms(folder, config, data, mesh, start=begun)
    recording = Recorder(folder, config, record, start=begun, share=share)
    profile = Profile(folder / "profile", config.profile, start=begun)
    spikes, until = SpikeWatch(folder, config, record, checkpoints, loader.get_state), config.steps
    snapshots = Snapshots(folder, config, record, start=begun, sound=spikes.sound)
    with (
        contextlib.closing(loader),
        contextlib.closing(snapshots),
        contextlib.closing(profile),
        contextlib.closing(norms),
        recording as recorder,
        distributed.signals() as asked_to_stop,
    ):

        def keep_records() -> None:
            recorder.keep()
            norms.keep()
            snapshots.keep()

        save = Saver(checkpoints, loader.get_state, config.checkpoint, until=until, keep=keep_records, sound=spikes.sound)

        def stop_if_asked(number: int, state: TrainState, metrics: Metrics) -> None:
            if (number_of_signal := asked_to_stop(number)) is not None:
                save.last(state)
                name = signal.Signals(number_of_signal).name
                said = f"stopped by {name} after step {number}, checkpoint written: the same command continues"
                raise Interrupted(number_of_signal, said if distributed.is_main_process() else "")

        def draw(number: int, state: TrainState, metrics: Metrics) -> None:
            recorder.add({}, monitor.samples(trained(config, data.train, state)))

        def watch(number: int, state: TrainState, metrics: Metrics) -> None:
            recorder.add(*monitor(trained(config, data.train, state), state.networks))

        events = (
            profile,
            recorder,
            norms,
            tolerant(every(config.sample_every, until, draw), f"pictures to {folder}"),
            tolerant(every(config.figures.every or config.sample_every, until, watch), f"pictures to {folder}"),
            spikes,
            snapshots,
            save,
            stop_if_asked,
        )
        state = fit(norms.watching(step), state, loader, until=until, events=events)
    checkpoints.close()
    return trained(config, data.train, state)


def open_loader(config: Config, data: Data, mesh: jax.sharding.Mesh) -> Batches:
    """The batches that the run trains on."""
    layout = sharding.batch_sharding(mesh)
    return batches(data.rows, config.batch, seed=config.seed, sharding=layout, workers=config.workers)


def training_step(config: Config, data: Data, mesh: jax.sharding.Mesh) -> Step:
    """The step of the run, of states and batches on this mesh."""
    return make_step(
        config.objective,
        config.optimizer.build(config.steps),
        prepare=prepare(data.rows, mirror=data.mirror, labelled=not config.unconditional),
        ema_decay=config.ema_decay,
        steps=config.steps,
        accumulate=config.accumulate,
        shardings=lambda state: sharding.lay_out(state, mesh),
    )


def trained(config: Config, train: Rows, state: TrainState) -> Trained:
    """The average of the weights, as `eqx_shortcut.load` would return it."""
    step, labelled = int(state.step), not config.unconditional
    null = getattr(train, "null", None)
    return Trained(state.networks.ema, config.objective, train.shape, train.classes, step, labelled=labelled, null=null)


def parameter_count(state: TrainState) -> int:
    """Numbers in the network."""
    return sum(leaf.size for leaf in jax.tree.leaves(eqx.filter(state.networks.online, eqx.is_inexact_array)))


def share_of_peak(config: Config, data: Data, state: TrainState) -> float | None:
    """Model operations of an image over what the devices can do in a second (MFU at an image a second); None if unknown."""
    limit = flops.peak(jax.devices()[0])
    if limit is None:
        return None
    work = flops.of_step(config.objective, state.networks, config.batch, data.train.shape)
    return work / config.batch / (limit * jax.device_count())
