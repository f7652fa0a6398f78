"""A run from its settings to its table: folder, training, pictures, quality."""

import contextlib
import json
import os
import pathlib
import signal
from typing import Any

import equinox as eqx
import jax
import numpy as np
from tqdm import tqdm

import eqx_shortcut
from config import Config, Judge, named
from devices import chosen_mesh, in_words
from encoding import identity
from eqx_shortcut import distributed, figures, flops, log, programs, settings, sharding, storage
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.data import Images, Rows, batches, prepare
from eqx_shortcut.data.pipeline import Batches
from eqx_shortcut.train import Step, TrainState, every, fit, init_state, make_step
from eqx_shortcut.trained import Trained, check_guidance
from eqx_shortcut.types import Metrics
from examples import Data, open_data
from judging import judge_samples, open_measures, table
from monitoring import Monitor
from places import cache_home
from profiling import Profile
from saving import Saver, Snapshots, Tolerance, tolerant
from start import check_start, start
from watching import Norms, SpikeWatch

# `checkpoint_every` and `keep` are what earlier versions called two of `checkpoint`.
MAY_CHANGE = (
    "version steps log_every sample_every checkpoint checkpoint_every keep health figures quality mesh accumulate tensorboard "
    "wandb workers vae cache encode_batch averages.every"
).split()

UNRECORDED = ("kind", "runs", "name", "processes", "dry_run", "replay", "profile")


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


def described(experiment: str, config: Config, data: Data) -> dict[str, Any]:
    """What defines a run, as its folder keeps it."""
    settled = {key: value for key, value in settings.dump(config).items() if key not in UNRECORDED}
    record = {
        "experiment": experiment,
        "version": eqx_shortcut.__version__,
        "shape": list(data.train.shape),
        "classes": data.train.classes,
        **settled,
    }
    if data.autoencoder is not None:
        record["autoencoder"] = identity(data.autoencoder)
    return record if data.latents is None else {**record, "latents": data.latents}


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


def check(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Refuses, before anything is read or written, settings that contradict each other."""
    sharding.check_batch(config.batch, mesh, config.accumulate)
    config.objective.check(config.batch)
    check_start(config)
    check_network(config)
    for guidance in (config.quality.guidance, config.figures.guidance):
        check_guidance(config.objective, guidance)


def check_network(config: Config) -> None:
    """Refuses a network without an input or a head that the objective needs."""
    name = type(config.objective).__name__
    if config.objective.continuous and config.network.step == "log2":
        raise ValueError(
            f"{name} asks the network at continuous step sizes, 0 included, where the "
            "embedding --network.step log2 is infinite: use --network.step linear"
        )
    told = config.objective.told
    if told is not None and config.network.guided not in ("interval", *(() if told.intervals else ("scale",))):
        needed = "interval" if told.intervals else "scale"
        raise ValueError(
            f"{name} tells the network the {needed} of its guidance, for which --network.guided {config.network.guided} has no "
            f"input: use --network.guided {needed}"
        )
    if getattr(config.objective, "velocity_head", False) and not config.network.velocity_head:
        raise ValueError(f"{name} trains a second head, which the network does not have: use --network.velocity-head")


def check_data(config: Config, data: Data) -> None:
    """Refuses, before the run folder is written, examples that the network does not fit or that cannot be compared."""
    train, held_out = data.train, data.held_out
    if train.shape != held_out.shape:
        raise ValueError(
            f"training images are of size {train.shape}, held-out images of {held_out.shape}: resize one of the two"
        )
    eqx.filter_eval_shape(lambda key: config.network.build(train.shape, train.classes, key=key), jax.random.key(0))


def check_record(folder: pathlib.Path, record: dict[str, Any]) -> None:
    """Makes sure that a run folder, if there is one, holds this run; raises ValueError naming what differs."""
    path = folder / "config.json"
    if storage.exists(path):
        # Parsed and dumped again, so that fields added since are there with their defaults. What the record leaves out
        # altogether (an imported run does not know its data) is settled by the command that continues it.
        stored = {key: settings.dump(settings.parse(value)) for key, value in settings.read(path).items()}
        found = settings.differences(stored, record)
        settled = stored.keys() - set(MAY_CHANGE)
        contradictions = {key: pair for key, pair in found.items() if key.split(".")[0] in settled and key not in MAY_CHANGE}
        if contradictions:
            raise ValueError(
                f"{folder} holds another run: {settings.named(contradictions)}. Repeat its settings to continue it, or start a "
                "new one with --name"
            )


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
    step, start = training_step(config, data, mesh), int(state.step)
    share = share_of_peak(config, data, state)
    norms = Norms(folder, config, data, mesh, start=start)
    recording = Recorder(folder, config, record, start=start, share=share)
    profile = Profile(folder / "profile", config.profile, start=start)
    spikes, until = SpikeWatch(folder, config, record, checkpoints, loader.get_state), config.steps
    snapshots = Snapshots(folder, config, record, start=start, sound=spikes.sound)
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


def loggers(folder: pathlib.Path, config: Config, record: dict[str, Any], *, start: int) -> list[log.Logger]:
    """Where the metrics of a run go that continues after step `start`."""
    found: list[log.Logger] = [log.JsonLines(folder / "metrics.jsonl", start=start)]
    if config.tensorboard:
        found.append(log.TensorBoard(folder, start=start))
    if config.wandb.enabled:
        name = f"{folder.parent.name}-{folder.name}"
        w = config.wandb
        found.append(log.WandB(folder, project=w.project, name=name, offline=w.offline, config=record))
    return found


class Recorder:
    """Progress bar, metrics and pictures of a run. Metrics are read one step late, so that the device never waits for them.

    Speed goes to the bar, TensorBoard and W&B: metrics.jsonl, which holds nothing that depends on the clock, goes without.
    """

    def __init__(self, folder: pathlib.Path, config: Config, record: dict[str, Any], *, start: int, share: float | None):
        self._rate, self._every = config.optimizer.rate(config.steps), config.log_every
        self._until, self._batch, self._share = config.steps, config.batch, share
        self._loggers = loggers(folder, config, record, start=start) if distributed.first() else []
        silent = start >= config.steps or not distributed.first()
        self._bar = tqdm(initial=start, total=config.steps, unit="step", dynamic_ncols=True, disable=silent)
        self._last: tuple[int, Metrics] | None = None
        self._pending: tuple[int, Metrics] | None = None
        self._added: log.Values = {}
        self._tolerated = Tolerance(f"metrics to {folder}")

    def __call__(self, step: int, state: TrainState, metrics: Metrics) -> None:
        self.flush()
        self._last = step, metrics
        if step % self._every == 0 or step == self._until:
            self._pending = step, metrics
        self._bar.update()

    def add(self, values: log.Values, pictures: dict[str, pathlib.Path]) -> None:
        """Puts numbers into the record of the last step, which is made if there is none yet, and pictures beside it."""
        assert self._last is not None
        if values:
            self._pending = self._last
            self._added |= values
        with self._tolerated():
            for logger in self._loggers:
                for name, path in pictures.items():
                    logger.write_image(self._last[0], name, path)

    def flush(self) -> None:
        """Writes what is waiting to be written."""
        if self._pending is None:
            return
        (step, metrics), self._pending = self._pending, None
        values = {name: float(value) for name, value in metrics.items()} | {"lr": float(np.asarray(self._rate(step - 1)))}
        values, self._added = values | self._added, {}
        speed = (self._bar.format_dict["rate"] or 0) * self._batch
        text, speeds = f"loss {values['loss']:.4f}, {speed:,.0f} images/s", {"images_per_second": speed}
        if self._share is not None:
            text, speeds = f"{text}, {speed * self._share:.0%} MFU", speeds | {"mfu": speed * self._share}
        with self._tolerated():
            for logger in self._loggers:
                logger.write(step, values if isinstance(logger, log.JsonLines) else values | speeds)
        self._bar.set_postfix_str(text)

    def keep(self) -> None:
        """Makes sure that what was written is there after a crash, as the checkpoint that follows is."""
        self.flush()
        with self._tolerated():
            for logger in self._loggers:
                logger.flush()

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, *error: object) -> None:
        self.flush()
        self._bar.close()
        for logger in self._loggers:
            with self._tolerated():
                logger.close()
