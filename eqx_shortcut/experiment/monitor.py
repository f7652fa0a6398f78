"""Measurements and pictures of the averaged weights between the steps of a run."""

import contextlib
import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from .. import sharding, storage
from ..data import batches
from ..evaluate.by_time import squared_errors
from ..evaluate.denoising import denoised
from ..evaluate.validation import validation_loss
from ..objectives import Networks
from ..trained import Trained
from ..types import Batch
from .judging import Measures, distances, guides
from .pictures import GRID_STEPS, columns, draw_denoised, draw_errors, draw_samples, drawable, write_samples
from .run import Run

Found = tuple[dict[str, float], dict[str, storage.Path]]
"""Numbers and pictures by name."""


class Monitor:
    """Measures and draws, always on the same held-out images with the same draws, and with keys and a loader of its own.

    Every function is compiled once a run, when it is first asked for.
    """

    def __init__(self, run: Run, measures: Measures | None):
        self._run, self._config, self._data, self._measures = run, run.config, run.data, measures

    def samples(self, model: Trained) -> dict[str, storage.Path]:
        """Pictures of samples at every number of steps, and of guided ones if there are any; others as numbers."""
        config, data = self._config, self._data
        if (draw := getattr(data.source, "draw", None)) is not None:
            found = {"samples": self._path("samples", model.step)}
            draw(found["samples"], model)
            return found
        if not drawable(data):
            write_samples(self._path("samples", model.step).with_suffix(".npz"), self._run, model)
            return {}
        found = {"samples": self._path("samples", model.step)}
        draw_samples(found["samples"], self._run, model)
        if any(guides(config, model, n) for n in GRID_STEPS):
            found["samples_guided"] = self._path("samples", model.step, "_guided")
            draw_samples(found["samples_guided"], self._run, model, guidance=config.figures.guidance)
        return found

    def __call__(self, model: Trained, networks: Networks) -> Found:
        """Validation loss, squared errors and distances, and pictures of errors and of denoising."""
        values, pictures = {}, {}
        progress = jnp.float32(model.step / self._config.steps)
        if self._config.figures.batches:
            averaged = dataclasses.replace(networks, online=networks.ema)
            values |= self._validation(averaged, networks, progress)
            errors, pictures = self._errors(model, averaged, progress)
            values |= errors
        if self._config.figures.count and self._measures is not None:
            values |= distances(self._run, model, self._measures)
        return values, pictures

    def _validation(self, averaged, online, progress):
        if self._data.pairs is not None:  # none are held out
            return {}
        found = {}
        for name, networks in (("validation", averaged), ("validation_online", online)):
            parts = [
                _validation_loss(self._config.objective, networks, batch, _key(i), progress)
                for i, batch in enumerate(self._batches)
            ]
            found |= {f"{name}/{part}": float(np.mean([loss[part] for loss in parts])) for part in parts[0]}
        return found

    def _errors(self, model, networks, progress):
        objective, times = self._config.objective, self._config.figures.times
        asked = [
            _squared_errors(objective, networks, batch, _key(i), progress, times=times) for i, batch in enumerate(self._batches)
        ]
        if not asked[0]:
            return {}, {}
        pictures = {"errors": self._path("errors", model.step)}
        values = draw_errors(pictures["errors"], asked, f"step {model.step:,}, held-out {self._data.held_out.noun}")
        if drawable(self._data):
            few, pictures["denoising"] = self._few, self._path("denoising", model.step)
            found = _denoised(objective, networks, few, _key(0), progress)
            draw_denoised(pictures["denoising"], self._data, np.asarray(few.x), found)
        return values, pictures

    @functools.cached_property
    def _batches(self) -> list[Batch]:
        """Batches of held-out images; batches of the pairs themselves in a run on pairs."""
        config, data = self._config, self._data
        rows = data.held_out if data.pairs is None else data.pairs
        to_batch = eqx.filter_jit(self._run.preparing(rows))
        layout = sharding.batch_sharding(self._run.mesh)
        with contextlib.closing(batches(rows, config.batch, seed=0, sharding=layout, groups=self._run.groups)) as loader:
            return [to_batch(next(loader), _key(i)) for i in range(config.figures.batches)]

    @functools.cached_property
    def _few(self) -> Batch:
        """The held-out images of the denoising picture: half of its columns, the other half are predictions."""
        return jax.tree.map(lambda a: jnp.asarray(np.asarray(a)[: columns(self._data) // 2]), _whole(self._batches[0]))

    def _path(self, kind: str, step: int, note: str = "") -> storage.Path:
        folder = self._run.folder / kind
        folder.mkdir(exist_ok=True)
        return folder / f"step_{step:07d}{note}.png"


_validation_loss = eqx.filter_jit(validation_loss)


@eqx.filter_jit
def _squared_errors(*args: Any, times: int):
    return sharding.replicated(squared_errors(*args, times=times))


@eqx.filter_jit
def _denoised(*args: Any):
    return sharding.replicated(denoised(*args))


_whole = eqx.filter_jit(sharding.replicated)


def _key(number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(0), number)
