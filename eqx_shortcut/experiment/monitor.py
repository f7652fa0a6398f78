"""Measurements and pictures of the averaged weights between the steps of a run."""

import contextlib
import dataclasses
import functools
import io
from collections.abc import Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from .. import compilation, distributed, figures, rng, sharding, storage
from ..data import batches
from ..evaluate.held_out import Asked, Denoised, all_rows, curves, denoised, fraction, squared_errors, validation_loss
from ..objectives import Networks
from ..sampling import Sampling
from ..trained import Trained, sample
from ..types import Batch
from .judging import Measures, distances, guides
from .run import Data, Run
from .saving import warn

GRID_STEPS = (1, 2, 4, 8, 16, 32, 128)
GRID_COLUMNS = 16


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

    def __call__(self, model: Trained, networks: Networks) -> tuple[dict[str, float], dict[str, storage.Path]]:
        """Validation loss, squared errors and distances, and pictures of errors and of denoising, each by name."""
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


_validation_loss = compilation.jit(validation_loss)


@compilation.jit
def _squared_errors(*args: Any, times: int):
    return sharding.replicated(squared_errors(*args, times=times))


@compilation.jit
def _denoised(*args: Any):
    return sharding.replicated(denoised(*args))


_whole = eqx.filter_jit(sharding.replicated)


def _key(number: int) -> jax.Array:
    return jax.random.fold_in(jax.random.key(0), number)


def drawable(data: Data) -> bool:
    """Whether samples are pictures: the source draws them, or they have the shape of images."""
    shape = data.train.shape
    return hasattr(data.source, "pictures") or (len(shape) == 3 and shape[-1] in (1, 3))


def columns(data: Data) -> int:
    """Images side by side: fewer where each has to be decoded."""
    return GRID_COLUMNS if data.autoencoder is None else GRID_COLUMNS // 2


def conditions_of(run: Run, model: Trained, count: int) -> dict[str, Any]:
    """Labels in turn, or those of a run's few examples; where conditions are no labels, those of held-out rows."""
    if not model.labelled or model.nothing is None:
        return {}
    if model.null is None:
        return {} if run.config.overfit is None else {"labels": np.resize(run.data.train.labels, count)}
    rows = run.data.held_out
    raw = rows.rows(np.arange(count) % len(rows.labels))
    return {"conditions": run.preparing(rows)(raw, rng.key(0)).cond}


def drawn(run: Run, model: Trained, guidance: float = 1.0) -> list[Float[Array, "count *shape"]]:
    """Samples at each number of steps, from the same noise; says which are not finite."""
    count = columns(run.data)
    given = conditions_of(run, model, count)
    found = [sample(model, jax.random.key(0), count, Sampling(n, guidance), **given) for n in GRID_STEPS]
    bad = [str(n) for n, x in zip(GRID_STEPS, found, strict=True) if not np.isfinite(x).all()]
    if bad and distributed.is_main_process():
        warn(f"samples after step {model.step} are not finite in {', '.join(bad)} steps: a smaller learning rate may help")
    return found


def write_samples(path: storage.Path, run: Run, model: Trained) -> None:
    """Writes samples that are no images as an .npz of one array a number of steps, `steps_1` and on."""
    arrays = {f"steps_{n}": np.asarray(x) for n, x in zip(GRID_STEPS, drawn(run, model), strict=True)}
    if distributed.is_main_process():
        file = io.BytesIO()
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
        storage.write(path, file.getvalue())


def draw_samples(path: storage.Path, run: Run, model: Trained, *, guidance: float = 1.0) -> None:
    """Writes one row a number of sampling steps, the same noise and condition down each column.

    Rows that guidance does not apply to say so.
    """
    found = drawn(run, model, guidance)
    rows = [np.nan_to_num(run.data.pictures(samples), posinf=1, neginf=-1) for samples in found]  # NaN is grey
    refused = [guidance != 1 and not model.objective.guides(n) for n in GRID_STEPS]
    names = [
        f"{n} step{'s'[: n > 1]}{', not guided' * no}{f', guidance {guidance:g}' * (guidance != 1 and not no)}"
        f"{', NOT FINITE' * (not np.isfinite(x).all())}"
        for n, no, x in zip(GRID_STEPS, refused, found, strict=True)
    ]
    if distributed.is_main_process():
        figures.grid(np.stack(rows), path, labels=names)


def draw_denoised(path: storage.Path, data: Data, images: np.ndarray, terms: Sequence[tuple[str, Denoised]]) -> None:
    """Writes the images and, below, one row a time and step size: left the noised image, right the data predicted from it."""
    sheets, names = [np.repeat(images[:, None], 2, axis=1)], ["held-out images"]
    for term, found in terms:
        t, d, noised, predicted = (np.asarray(part) for part in found)
        for row in sorted(np.unique(np.stack([t, d]), axis=1, return_index=True)[1]):
            sheets.append(np.stack([noised[row], predicted[row]], axis=1))
            names.append(f"{term}, t = {fraction(float(t[row]))}, d = {fraction(float(d[row]))}")
    sheet = np.stack(sheets)
    pictures = data.pictures(jax.numpy.asarray(sheet.reshape(-1, *sheet.shape[3:])))
    if distributed.is_main_process():
        figures.grid(pictures.reshape(len(sheet), -1, *pictures.shape[1:]), path, labels=names)


def draw_errors(path: storage.Path, asked: Sequence[Sequence[tuple[str, Asked]]], title: str) -> dict[str, float]:
    """Writes the squared error by time, one line a step size, for each term and for all rows; returns each line's mean."""
    found = curves(asked)
    panels = dict(found)
    if len(found) > 1:
        panels["all rows"] = all_rows(found, {name: term.share for name, term in asked[0]})
    if distributed.is_main_process():
        figures.error_by_time_plot(panels, path, title=title)
    return {
        f"error/{name}/d={curve.d.replace(' ', '')}": float(curve.error.mean())
        for name, levels in found.items()
        for curve in levels
    }
