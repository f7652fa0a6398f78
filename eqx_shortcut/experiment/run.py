"""One run of an experiment: its settings, data and devices, and everything that follows from them."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jaxtyping import Array, Float

from .. import __version__, settings, sharding, storage
from ..checkpoint import Checkpoints
from ..data import Encoded, LatentImages, Pairs, Rows, Source, batches, encode, pictures, prepare, read_pairs
from ..data.identity import Identified, identity
from ..data.pipeline import Batches, Prepare
from ..data.records import ImageRecords
from ..pretrained.autoencoder import Autoencoder
from ..train import Step, TrainState, make_step, make_update
from ..trained import Trained
from ..types import Metrics
from . import initial
from .config import UNRECORDED, Config


@dataclasses.dataclass(frozen=True)
class Data:
    """Examples to train on and others held out."""

    train: Rows
    held_out: Rows
    mirror: bool
    source: Source | None = None
    """The source that built them."""
    pairs: Pairs | None = None

    @property
    def rows(self) -> Rows:
        """The rows to train on: the pairs if there are any, else the examples."""
        return self.train if self.pairs is None else self.pairs

    @property
    def autoencoder(self) -> Autoencoder | None:
        """The autoencoder whose latents the examples are; None if they are no latents."""
        return getattr(self.source, "autoencoder", None)

    @property
    def replaced(self) -> dict[int, str]:
        """Bad images met so far, replaced by the next good ones: their index, with file and reason."""
        images = self.train.images if isinstance(self.train, Encoded) else self.train
        return images.bad if isinstance(images, ImageRecords) else {}

    def pictures(self, samples: Float[Array | np.ndarray, "count *shape"]) -> Float[np.ndarray, "count height width channels"]:
        """Samples as images in [-1, 1]. Raises ValueError if they are none and the source draws none."""
        found = pictures(self.source, samples)
        if found is None:
            raise ValueError(f"samples of shape {samples.shape[1:]} are no images: give the source a method pictures(samples)")
        return found


def open_data(config: Config, mesh: jax.sharding.Mesh) -> Data:
    """The data that the settings name. Raises DataError or ValueError, with the remedy, if they or weights are missing."""
    source = config.data
    with jax.set_mesh(mesh):
        if isinstance(source, LatentImages):
            source.fill(print)
        train, held_out = source.build()
    train = train if config.overfit is None else train.first(config.overfit)
    data = Data(train, held_out, getattr(source, "mirror", False), source)
    if config.pairs is None:
        return data
    pairs = read_pairs(config.pairs, data.train.shape)
    return dataclasses.replace(data, pairs=pairs if config.overfit is None else pairs.first(config.overfit))


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """The settings of a run with its data and devices; everything else follows from these four."""

    experiment: str
    config: Config
    data: Data
    mesh: jax.sharding.Mesh

    @property
    def folder(self) -> storage.Path:
        """The folder of the run."""
        return self.config.folder(self.experiment)

    @functools.cached_property
    def record(self) -> dict[str, Any]:
        """The contents of config.json, which define the run."""
        data, source, train, held_out = self.data, self.data.source, self.data.train, self.data.held_out
        found = {"experiment": self.experiment, "version": __version__, "shape": list(train.shape), "classes": train.classes}
        found |= {key: value for key, value in settings.dump(self.config).items() if key not in UNRECORDED}
        if self._null is not None:
            found["null"] = settings.dump_arrays(self._null)
        if isinstance(train, Identified) and isinstance(held_out, Identified):
            found["identity"] = identity(train, held_out)  # the hashes that identify the images wherever they lie
        elif (images := getattr(source, "identity", None)) is not None:
            found["identity"] = images
        if data.autoencoder is not None:
            found["autoencoder"] = encode.autoencoder_record(data.autoencoder)
        if (cache := getattr(source, "digest", None)) is not None:
            found["latents"] = cache
        if seen := self.config.objective.trained_in():
            found["trained_in"] = list(seen)  # of files, which may be gone or others later
        return found

    @functools.cached_property
    def tx(self) -> optax.GradientTransformation:
        """The optimizer."""
        return self.config.optimizer.build(self.config.steps)

    @functools.cached_property
    def prepare(self) -> Prepare:
        """From raw rows of the training data to a Batch, in the compiled step."""
        return self.preparing(self.data.rows, mirror=self.data.mirror)

    def preparing(self, rows: Rows, *, mirror: bool = False) -> Prepare:
        """The function `prepare` for other rows."""
        config = self.config
        return prepare(rows, mirror=mirror, labelled=not config.unconditional, noise_scale=config.noise_scale)

    def init(self) -> TrainState:
        """The state of a network that has learnt nothing, laid out on the devices."""
        return initial.fresh(self.config, self.data.train, self._laid_out)

    def first(self) -> TrainState:
        """The state before the first step, with the weights that it takes from other runs."""
        return initial.state(self.config, self.init())

    def step(self) -> Step:
        """One training step, compiled once."""
        return make_step(self.config.objective, self.tx, prepare=self.prepare, **self._of_step)

    def update(self) -> Callable[[tuple[Any, Prepare], TrainState], tuple[TrainState, Metrics]]:
        """The function that `step` compiles (see train.make_update)."""
        return make_update(self.config.objective, self.tx, **self._of_step)

    def loader(self) -> Batches:
        """The batches of the run, from the first one."""
        layout = sharding.batch_sharding(self.mesh)
        options = {"seed": self.config.seed, "sharding": layout, "workers": self.config.workers, "groups": self.groups}
        return batches(self.data.rows, self.config.batch, **options)

    @property
    def groups(self) -> int | None:
        """Sets of one class each that a batch is made of; None: rows at random, as they are without labels."""
        return None if self.config.unconditional else self.config.objective.sets

    def average(self, state: TrainState) -> Trained:
        """The average of the weights, as `eqx_shortcut.load` would return it."""
        train, config = self.data.train, self.config
        return Trained(
            state.networks.ema,
            config.objective,
            train.shape,
            train.classes,
            int(state.step),
            labelled=not config.unconditional,
            null=self._null,
            noise_scale=config.noise_scale,
            trained_in=tuple(self.record.get("trained_in", ())),
        )

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to go on from."""
        return Checkpoints.any(self.folder / "checkpoints")

    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run; makes their folder."""
        kept = self.config.checkpoint
        return Checkpoints(self.folder / "checkpoints", keep=kept.keep, milestones=kept.milestones, config=self.record)

    def restore(self, checkpoints: Checkpoints, loader: Batches, *, before: int | None = None) -> TrainState | None:
        """The newest whole checkpoint, of a step below `before`, with the loader at its place; None if there is none."""
        found = checkpoints.restore(self.init(), before=before)
        if found is None:
            return None
        state, position, notes = found
        if position:
            loader.set_state(position)
        for note in notes:
            print(f"{note}: continuing from the one before")
        return state

    @property
    def _null(self) -> Any:
        return getattr(self.data.train, "null", None)

    @property
    def _of_step(self) -> dict[str, Any]:
        config = self.config
        options = {"ema_decay": config.ema_decay, "steps": config.steps, "accumulate": config.accumulate}
        return {**options, "shardings": self._laid_out}

    def _laid_out(self, state: TrainState) -> TrainState:
        return sharding.lay_out(state, self.mesh)
