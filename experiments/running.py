"""A run from its settings to its table: folder, training, pictures, quality."""

import contextlib
import json
import os
import pathlib
import signal
from typing import Any

import equinox as eqx
import jax

from checking import check, check_data, check_record, described
from config import Config, Judge, named
from devices import chosen_mesh, in_words
from eqx_shortcut import distributed, figures, flops, log, programs, sharding, storage
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.data import Images, Rows, batches, prepare
from eqx_shortcut.data.pipeline import Batches
from eqx_shortcut.train import Step, TrainState, every, fit, init_state, make_step
from eqx_shortcut.trained import Trained
from eqx_shortcut.types import Metrics
from examples import Data, open_data
from judging import judge_samples, open_measures, table
from monitoring import Monitor
from places import cache_home
from profiling import Profile
from recording import Recorder
from saving import Saver, Snapshots, tolerant
from start import start
from watching import Norms, SpikeWatch


class Interrupted(Exception):
    """A run stopped by a signal, after its checkpoint was written."""

    def __init__(self, signal: int, message: str):
        super().__init__(message)
        self.signal = signal


def run(experiment: str, config: Config, judge: Judge | None) -> None:
    """Trains (or continues) the run, then draws its pictures and prints its table of quality against steps, if asked for."""
    use_compilation_cache()
    mesh = chosen_mesh(config)
    with programs.compiled_for(mesh), jax.set_mesh(mesh):
        run_on(mesh, experiment, config, judge)


def run_on(mesh: jax.sharding.Mesh, experiment: str, config: Config, judge: Judge | None) -> None:
    """The run on these devices, which the network is told of by `jax.set_mesh`."""
    check(config, mesh)
    data = open_data(config, mesh)
    check_data(config, data)
    record = described(experiment, config, data)
    folder = config.runs / experiment / (config.name or named(config.objective))
    measures = open_measures(config, data.train, judge, folder) if isinstance(data.train, Images) else None
    with distributed.together():
        check_record(folder, record)
    state = first_state(config, data.train, mesh, fresh=not Checkpoints.any(folder / "checkpoints"))
    with distributed.together():
        if distributed.first():
            open_folder(folder, record)
    monitor = Monitor(folder, config, data, measures, mesh)
    model = train_network(folder, config, data, state, record, mesh, monitor)
    quality = judge_samples(config, model, data, measures) if config.quality.steps and measures is not None else None
    if distributed.first():
        report(folder, data, quality)


def report(folder: pathlib.Path, data: Data, quality: dict[str, Any] | None) -> None:
    """Writes and says what is known of a run that is done."""
    report_replaced(folder, data.replaced)
    drawn = draw_records(folder)
    if quality is not None:
        report_quality(folder, quality)
        drawn += ["quality.json", "quality.png"]
    print(f"pictures and numbers: {folder}/{', '.join(drawn)}")


def draw_records(folder: pathlib.Path) -> list[str]:
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


def report_replaced(folder: pathlib.Path, replaced: dict[int, str]) -> None:
    """Says how many bad images were replaced, and lists them in replaced.json."""
    if replaced:
        storage.write(folder / "replaced.json", json.dumps(dict(sorted(replaced.items())), indent=1))
        print(f"bad images replaced by the next good ones: {len(replaced)}, listed in {folder}/replaced.json")


def report_quality(folder: pathlib.Path, quality: dict[str, Any]) -> None:
    """Writes quality.json and quality.png, and prints the table."""
    storage.write(folder / "quality.json", json.dumps(quality, indent=1))
    curve = {row["steps"]: row["frechet"] for row in quality["results"]}
    figures.quality_plot(
        {folder.name: curve}, folder / "quality.png", measure="pixel Frechet distance", floor=quality["held_out"]["frechet"]
    )
    print(table(quality))


def use_compilation_cache() -> None:
    """Keeps compiled programs on disk, so that a second run of the same settings starts in seconds."""
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(cache_home() / "xla"))


def open_folder(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Makes the run folder and writes the settings."""
    path = folder / "config.json"
    (folder / "samples").mkdir(parents=True, exist_ok=True)
    storage.write(path, json.dumps(record, indent=1))


def first_state(config: Config, train: Rows, mesh: jax.sharding.Mesh, *, fresh: bool) -> TrainState:
    """The state before the first step; of a fresh run, with the weights that it takes from other runs."""
    state = init_state(
        lambda key: config.network.build(train.shape, train.classes, key=key),
        config.optimizer.build(config.steps),
        jax.random.key(config.seed),
        teacher=config.objective.stages > 0,
        extra=config.objective.extra,
        averages=config.averages.sigma_rel,
        shardings=lambda state: sharding.lay_out(state, mesh),
    )
    return start(config, state) if fresh else state


def train_network(
    folder: pathlib.Path,
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
                raise Interrupted(
                    number_of_signal, f"stopped by {name} after step {number}, checkpoint written: the same command continues"
                )

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
    return Trained(state.networks.ema, config.objective, train.shape, train.classes, step, labelled=labelled)


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
