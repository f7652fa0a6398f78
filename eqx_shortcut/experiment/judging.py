"""How far samples are from the training images: at the end of a run in full, and on fewer samples during it."""

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Shaped

from .. import distributed, rng, settings, storage
from ..data import ImageRecords, Images, LatentImages, Rows
from ..data.pipeline import host_batches
from ..evaluate import Features, Moments, Statistics, compare, frechet_distance
from ..evaluate.collected import Gathering, collect
from ..evaluate.features import CoarsePixels, block
from ..evaluate.parts import Measuring, real_statistics
from ..evaluate.results import TRAINED, caution, converted, merged, read_results, write_results
from ..evaluate.run import Cell, Evaluation
from ..progress import bar
from ..sampling import Sampling
from ..trained import Trained, sample
from .config import Config, Judge
from .run import Run

Real = Images | ImageRecords
Labels = Shaped[np.ndarray, " count"]


@dataclasses.dataclass(frozen=True)
class Measures:
    """Measures of samples in [-1, 1]: the distance of their pixels to the training images', other features, a `judge`'s own.

    Statistics of the training images are computed once, when first needed. Rows that are no images have the judge alone.
    """

    train: Rows
    judge: Judge | None = None
    held_out: Rows | None = None
    """Rows to measure beside the samples."""
    others: Measuring | None = None
    """Features other than pixels."""
    source: dict[str, Any] | None = None
    """The settings of the training images' source, and the folder that keeps their statistics in the other features."""
    folder: storage.Path | None = None

    @functools.cached_property
    def reference(self) -> Moments:
        """Moments of the pixels of the training images."""
        assert isinstance(self.train, Real)
        return collect(scaled(self.train, np.arange(len(self.train.labels))), CoarsePixels(), keep=0).moments

    @functools.cached_property
    def features(self) -> Features | None:
        """The other features. Raises ValueError if they or their weights are not there."""
        return None if self.others is None else self.others.build()

    @functools.cached_property
    def real(self) -> Statistics:
        """Statistics of the training images in the other features."""
        assert self.others is not None and self.features is not None and self.folder is not None
        assert isinstance(self.train, Real)
        record = {"images": self.source, "part": "train", "count": len(self.train.labels)}
        return real_statistics(self.others, self.folder, record, self.train, self.features)

    def __call__(self, samples: Iterable[np.ndarray], labels: Labels, *, first: bool = False) -> dict[str, float] | None:
        """All measures by name, or the first alone, of samples that come in parts; None if one is not finite."""
        near = Gathering(CoarsePixels(), keep=0) if isinstance(self.train, Real) else None
        features = None if first else self.features
        judge = None if first and near is not None else self.judge
        deep = None if features is None else Gathering(features, keep=len(labels))
        whole = []
        for part in samples:
            if not np.isfinite(part).all():
                return None
            for gathering in filter(None, (near, deep)):
                gathering.add(part)
            whole += [part] * (judge is not None)
        found = {} if near is None else {"frechet": frechet_distance(near.collected.moments, self.reference)}
        found |= {} if judge is None else judge(self.train, np.concatenate(whole), labels)
        if deep is None or features is None or self.others is None:
            return found
        return found | compare(deep.collected, self.real, features, neighbours=self.others.neighbours)


def at_once(shape: tuple[int, ...], *, least: int = 1) -> int:
    """Images of a shape that are held in memory together: 64 MiB of them, at most 4096."""
    return max(least, min(4096, 2**24 // int(np.prod(shape))))


def scaled(images: Real, indices: np.ndarray) -> Iterator[Float[np.ndarray, "part height width channels"]]:
    """The images at `indices` in [-1, 1], part by part; no others are read."""
    for part in host_batches(indices, at_once(images.shape)):
        raw = images.rows(part)
        found = images.note(raw) if isinstance(images, ImageRecords) else raw
        yield found["pixels"].astype(np.float32) / (images.peak / 2) - 1


def real_rows(run: Run) -> tuple[Rows, Rows]:
    """The rows that samples are judged beside: those of the run, or the images of its latents.

    Raises ValueError if only latents are there.
    """
    data, config = run.data, run.config
    if not isinstance(data.source, LatentImages):
        return data.train, data.held_out
    if data.source.images is None:
        raise ValueError(
            f"the latents of {data.source.cache} come without images to judge samples beside: name them with "
            "data:image-folder --data.path FOLDER, or leave --quality.steps and --figures.count 0 empty"
        )
    train, held_out = data.source.images.build()
    return train if config.overfit is None else train.first(config.overfit), held_out


def open_measures(run: Run, judge: Judge | None) -> Measures | None:
    """The measures that the settings ask for; None if none. Raises ValueError, before anything is trained, if they fail."""
    config, folder = run.config, run.folder
    if not (config.quality.steps or config.figures.count):
        return None
    train, held_out = real_rows(run)
    if not isinstance(train, Real):
        if config.quality.features is not None:
            raise ValueError(
                f"--quality.features {config.quality.features} are of images, and {train.noun} are none: leave it out"
            )
        if config.figures.count and judge is None:
            raise ValueError(f"--figures.count {config.figures.count}: {train.noun} have no distance to others: leave it at 0")
        return None if judge is None else Measures(train, judge, held_out)
    if config.quality.steps and len(held_out.labels) < 2:
        raise ValueError(
            "1 held-out image, and samples are judged beside 2 or more: use a larger --data.held-out, or --quality.steps alone "
            "to judge nothing"
        )
    if config.quality.features is None:
        return Measures(train, judge, held_out)
    if storage.is_remote(folder):
        raise ValueError(
            f"--quality.features {config.quality.features}: {folder} lies in an object store; judge it by eqx-shortcut evaluate"
        )
    if (fewest := min(len(held_out.labels), config.quality.count)) < 6:
        raise ValueError(
            f"--quality.features {config.quality.features}: {fewest} samples or held-out images do not all have 5 neighbours: "
            "use 6 or more of each"
        )
    # Equal numbers of samples and real images among which precision and recall look for neighbours.
    others = Measuring(features=config.quality.features, neighbours=config.quality.count)
    measures = Measures(train, judge, held_out, others, settings.dump(config.data), folder / "evaluation")
    _ = measures.features  # raises
    return measures


def drawn(
    run: Run, model: Trained, shape: tuple[int, ...], labels: Labels, sampling: Sampling
) -> Iterator[Float[np.ndarray, "part *shape"]]:
    """The samples that are judged, of this shape, latents decoded: one for each label, always from the same noise, in parts."""
    config = run.config.quality
    key, size = rng.key(config.seed), at_once(shape, least=config.batch)
    for first in range(0, len(labels), size):
        given = jax.numpy.asarray(labels[first : first + size]) if model.labelled and model.classes else None
        count = min(size, len(labels) - first)
        x = sample(model, key, count, sampling, first=first, labels=given, batch=config.batch)
        yield np.asarray(x) if run.data.autoencoder is None else run.data.pictures(x)


def distances(run: Run, model: Trained, measures: Measures) -> dict[str, float]:
    """Pixel distances of a few samples at some numbers of steps, by name, and of guided ones at the largest; NaN for samples
    that are not finite."""
    config, figures = run.config, run.config.figures
    labels = np.resize(run.data.train.labels, figures.count)
    wanted = [Sampling(n) for n in figures.steps]
    if guides(config, model, max(figures.steps)):
        wanted.append(Sampling(max(figures.steps), figures.guidance))
    found = {}
    for how in bar(wanted, desc="distances", unit="sampler", leave=False, quiet=not distributed.is_main_process()):
        values = measures(drawn(run, model, measures.train.shape, labels, how), labels, first=True)
        guided = f", guidance {how.guidance:g}" * (how.guidance != 1)
        name = f"distance/{how.steps} step{'s'[: how.steps > 1]}{guided}"
        found[name] = float("nan") if values is None else next(iter(values.values()))
    return found


def guides(config: Config, model: Trained, steps: int) -> bool:
    """Whether guidance changes samples of `steps` steps, so that a second picture is worth drawing."""
    conditional = model.labelled and model.nothing is not None
    return conditional and Sampling(steps, config.figures.guidance).guides(model.objective)


def judged(run: Run, model: Trained, measures: Measures | None) -> list[dict[str, Any]]:
    """The rows of evaluation.json for the run's numbers of steps: by the data's own `judge`, or by samples; or none.

    The first process alone has those of the data's own.
    """
    own = getattr(run.config.data, "judge", None)
    if own is None:
        return [] if measures is None else judge_samples(run, model, measures)
    if not distributed.is_main_process():
        return []
    found = converted(own(model, run.config.quality, run.folder))
    write_results(run.folder, merged(found, read_results(run.folder)))
    return found["results"]


def judge_samples(run: Run, model: Trained, measures: Measures) -> list[dict[str, Any]]:
    """The rows of evaluation.json for the run's numbers of steps, each measured if it is not there."""
    wanted, held_out = run.config.quality, measures.held_out
    assert held_out is not None
    labels = np.resize(run.data.train.labels, wanted.count)
    # At most as many as samples, which would lie nearer than fewer real ones; drawn once, in case they are sorted.
    some = np.random.default_rng(0).permutation(len(held_out.labels))[: wanted.count]

    @functools.cache
    def floor() -> dict[str, float]:
        rows = scaled(held_out, some) if isinstance(held_out, Real) else [held_out.rows(some)["x"]]
        found = measures(rows, held_out.labels[some])
        assert found is not None
        return found

    def measure(cell: Cell, record: dict[str, Any]) -> dict[str, float]:
        found = measures(drawn(run, cell.model, measures.train.shape, labels, cell.sampling), labels)
        return dict.fromkeys(floor(), float("nan")) if found is None else found

    evaluation = Evaluation(run.folder, wanted.count, protocol(run, measures, model, len(some)), measure, floor)
    cells = [Cell(model, "ema", Sampling(steps, wanted.guidance)) for steps in wanted.steps]
    return evaluation(bar(cells, desc="judging samples", unit="sampler", quiet=not distributed.is_main_process()))


def protocol(run: Run, measures: Measures, model: Trained, held_out: int) -> dict[str, Any]:
    """How the samples of a run are measured at its end."""
    train, features = measures.train, measures.features
    judges = [CoarsePixels()] * isinstance(train, Real) + ([] if features is None else [features])
    averaged = f" averaged over {side} x {side}" if (side := block(train.shape)) > 1 else ""
    pixels = f"Frechet distance of pixels{averaged}, not clipped to [-1, 1], to the training images"
    in_words = {} if features is None else {"features": ", ".join(f"{name} {said}" for name, said in features.protocol.items())}
    return {
        **({"frechet": pixels} if isinstance(train, Real) else {}),
        "labels": "those of the training images in order" if model.labelled and model.classes else "none",
        "training images": len(train.labels),
        "held-out images": held_out,
        "seed of noise": run.config.quality.seed,
        "statistics": TRAINED,
        **in_words,
        **caution(judges, model.trained_in),
    }
