"""Pictures of a run: samples at every number of steps, and one-step denoising of held-out images; or samples as numbers."""

import io
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float

from .. import distributed, figures, rng, storage
from ..evaluate.by_time import Asked, all_rows, curves, fraction
from ..evaluate.denoising import Denoised
from ..sampling import Sampling
from ..trained import Trained, sample
from .examples import Data
from .run import Run
from .saving import warn

GRID_STEPS = (1, 2, 4, 8, 16, 32, 128)
GRID_COLUMNS = 16


def drawable(data: Data) -> bool:
    """Whether samples are pictures: the source draws them, or they have the shape of images."""
    shape = data.train.shape
    return hasattr(data.source, "pictures") or (len(shape) == 3 and shape[-1] in (1, 3))


def columns(data: Data) -> int:
    """Images side by side: fewer where each has to be decoded."""
    return GRID_COLUMNS if data.autoencoder is None else GRID_COLUMNS // 2


def asked_for(run: Run, model: Trained, count: int) -> dict[str, Any]:
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
    told = asked_for(run, model, count)
    found = [sample(model, jax.random.key(0), count, Sampling(n, guidance), **told) for n in GRID_STEPS]
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
    lines = {name: [figures.Line(*curve) for curve in levels] for name, levels in panels.items()}
    if distributed.is_main_process():
        figures.error_by_time_plot(lines, path, title=title)
    return {
        f"error/{name}/d={curve.d.replace(' ', '')}": float(curve.error.mean())
        for name, levels in found.items()
        for curve in levels
    }
