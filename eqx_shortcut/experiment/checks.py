"""Checks before a run begins: contradicting settings, examples that do not fit the network, the folder of another run."""

import dataclasses
import re
from collections.abc import Collection
from typing import Any

import equinox as eqx
import jax
import numpy as np

from .. import rng, settings, storage
from ..cli import renamed
from ..data import DataError, example
from ..data.identity import changed
from ..data.pipeline import Groups
from ..models.network import check_network
from ..objectives import named
from ..sampling import check_guidance
from ..types import shown
from .config import UNRECORDED, Config
from .initial import check_start
from .run import Run

# `checkpoint_every` and `keep` are what earlier versions called two of `checkpoint`.
MAY_CHANGE = (
    "version steps log_every sample_every checkpoint checkpoint_every keep health figures quality mesh accumulate tensorboard "
    "wandb workers data.vae data.cache data.encode_batch data.classes averages.every"
).split()

KEPT = "blocks/out/kept/kernel"
"""The path of a layer that corrections of low rank keep."""

PLACES = ("data.path", "data.index", "data.images.path", "data.images.index")
"""Where images lie may change where it is known what they are (see data.identity)."""


def check(config: Config) -> None:
    """Refuses, before anything is read or written, settings that contradict each other or name no data."""
    if config.data is None:
        raise DataError("no data are named: name them with data:KIND (--help lists the kinds) and --data.path")
    flags = {field.name: f"--objective.{field.name.replace('_', '-')}" for field in dataclasses.fields(config.objective)}
    told = {f"{name}=": f"{flag} " for name, flag in flags.items()}
    with renamed(told | {name: flag for name, flag in flags.items() if "_" in name}):  # other names may be words
        config.objective.check(config.batch)
    check_start(config)
    for field in dataclasses.fields(config):
        if field.name not in UNRECORDED:
            settings.check_importable(getattr(config, field.name), field.name)
    if config.pairs is not None and getattr(config.objective, "posterior_every", None) is not None:
        raise ValueError(
            f"--pairs {config.pairs} hold noise that depends on the data, and {named(type(config.objective))} takes means over "
            "all lines as if it did not: train on the images"
        )
    if (check_own := getattr(config.network, "check", None)) is not None:
        check_own(config.objective)
    frozen = config.optimizer.frozen
    if getattr(config.network, "low_rank", 0) and (frozen is None or not re.search(frozen, KEPT)):
        raise ValueError(
            "--network.low-rank trains corrections of layers that are kept, and weight decay would change those: keep them by "
            "--optimizer.frozen /kept/"
        )
    for guidance in (config.quality.guidance, config.figures.guidance):
        check_guidance(config.objective, guidance)


def check_data(run: Run) -> None:
    """Refuses, before the run folder is written, examples that the network does not fit or that cannot be compared."""
    config, train, held_out = run.config, run.data.train, run.data.held_out
    try:
        str(storage.absolute(run.folder)).encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{run.folder} is no name in UTF-8, as the files of a checkpoint must have: choose another --runs or --name"
        ) from error
    if train.shape != held_out.shape:
        raise ValueError(
            f"training images are of size {train.shape}, held-out images of {held_out.shape}: resize one of the two"
        )
    seen = example(train, labelled=not config.unconditional)
    there = example(held_out, labelled=not config.unconditional)
    if shown(seen) != shown(there):
        raise ValueError(f"a training row is {shown(seen)}, a held-out one {shown(there)}: give both parts the same")
    if config.objective.sets is not None and seen.cond is not None and not train.classes and not config.unconditional:
        raise ValueError(
            f"{named(type(config.objective))} compares sets of rows of one label, and conditions are {shown(seen.cond)}: train "
            "with --unconditional"
        )
    if run.groups is not None and config.figures.batches:
        try:
            Groups(np.asarray(held_out.labels), config.batch, run.groups, f"held-out {held_out.noun}")
        except ValueError as error:
            raise ValueError(f"{error}, or compute no validation loss, by --figures.batches 0") from error
    check_network(config.network, config.objective, seen, train.classes)
    raw = jax.tree.map(lambda a: _zeros((config.batch, *a.shape[1:]), a.dtype), train.rows(np.zeros(1, np.int64)))
    eqx.filter_eval_shape(run.preparing(train, mirror=run.data.mirror), raw, rng.key(0))  # a whole batch, as in training


def _zeros(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """Zeros that take no memory, in place of a `jax.ShapeDtypeStruct`, which warns of a dtype of 64 bits."""
    return np.broadcast_to(np.zeros((), dtype), shape)


def check_record(
    path: storage.Path,
    record: dict[str, Any],
    *,
    may_change: Collection[str] = MAY_CHANGE,
    remedy: str = "Repeat its settings to continue it, or start a new one with --name",
) -> None:
    """Raises ValueError, naming what differs, if there is a config.json and it is of another run."""
    if storage.exists(path):
        # Parsed and dumped again, so that fields added since are there with their defaults. What the record leaves out
        # altogether (an imported run does not know its data) is settled by the command that continues it.
        written = settings.read(path)
        images, now = written.get("identity"), record.get("identity")
        may_change = {*may_change, "identity", *(PLACES if images is not None and now is not None else ())}
        stored = {key: settings.dump(settings.parse(value)) for key, value in written.items()}
        found = settings.differences(stored, record)
        settled = stored.keys() - may_change
        contradictions = {key: pair for key, pair in found.items() if key.split(".")[0] in settled and key not in may_change}
        if contradictions:
            raise ValueError(f"{path.parent} holds another run: {settings.named(contradictions)}. {remedy}")
        if images is not None and now is not None and (what := changed(images, now)) is not None:
            raise ValueError(f"{path.parent} holds a run on other images: {what}. {remedy}")
