"""What is refused before a run begins: settings that contradict each other, examples that do not fit, another run's folder."""

from collections.abc import Collection
from typing import Any

import equinox as eqx
import jax

from .. import __version__, settings, sharding, storage
from ..data.encode import identity
from ..trained import check_guidance
from .config import Config, named
from .examples import Data
from .initial import check_start

# `checkpoint_every` and `keep` are what earlier versions called two of `checkpoint`.
MAY_CHANGE = (
    "version steps log_every sample_every checkpoint checkpoint_every keep health figures quality mesh accumulate tensorboard "
    "wandb workers vae cache encode_batch averages.every"
).split()

UNRECORDED = ("kind", "runs", "name", "processes", "dry_run", "replay", "profile")


def check(config: Config, mesh: jax.sharding.Mesh) -> None:
    """Refuses, before anything is read or written, settings that contradict each other."""
    sharding.check_batch(config.batch, mesh, config.accumulate)
    config.objective.check(config.batch)
    check_start(config)
    if config.pairs is not None and getattr(config.objective, "posterior_every", None) is not None:
        raise ValueError(
            f"--pairs {config.pairs} hold noise that depends on the data, and {named(config.objective)} takes means over all "
            "lines as if it did not: train on the images"
        )
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


def described(experiment: str, config: Config, data: Data) -> dict[str, Any]:
    """What defines a run, as its folder keeps it."""
    settled = {key: value for key, value in settings.dump(config).items() if key not in UNRECORDED}
    record = {
        "experiment": experiment,
        "version": __version__,
        "shape": list(data.train.shape),
        "classes": data.train.classes,
        **settled,
    }
    if data.autoencoder is not None:
        record["autoencoder"] = identity(data.autoencoder)
    return record if data.latents is None else {**record, "latents": data.latents}


def check_record(
    folder: storage.Path,
    record: dict[str, Any],
    *,
    may_change: Collection[str] = MAY_CHANGE,
    remedy: str = "Repeat its settings to continue it, or start a new one with --name",
) -> None:
    """Makes sure that a run folder, if there is one, holds this run; raises ValueError naming what differs."""
    path = folder / "config.json"
    if storage.exists(path):
        # Parsed and dumped again, so that fields added since are there with their defaults. What the record leaves out
        # altogether (an imported run does not know its data) is settled by the command that continues it.
        stored = {key: settings.dump(settings.parse(value)) for key, value in settings.read(path).items()}
        found = settings.differences(stored, record)
        settled = stored.keys() - set(may_change)
        contradictions = {key: pair for key, pair in found.items() if key.split(".")[0] in settled and key not in may_change}
        if contradictions:
            raise ValueError(f"{folder} holds another run: {settings.named(contradictions)}. {remedy}")
