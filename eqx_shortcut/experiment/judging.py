"""How far samples are from the training images: at the end of a run in full, and on fewer samples during it."""

import dataclasses
import functools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from .. import distributed, rng, settings, storage
from ..data import ImageRecords, Images
from ..data.pipeline import host_batches
from ..evaluate import Features, Moments, Statistics, collect, compare, frechet_distance, moments, pixels
from ..evaluate.features import block, coarse
from ..evaluate.parts import Measuring, real_statistics
from ..progress import bar
from ..sampling import Sampling
from ..trained import Trained, sample
from .config import Config, Judge
from .run import Run


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured of images in [-1, 1] and their labels: the distance of their pixels to the training images', and more.

    What is needed of the training images is computed once, when first needed.
    """

    train: Images | ImageRecords
    judge: Judge | None = None
    others: "Others | None" = None

    @functools.cached_property
    def reference(self) -> Moments:
        """Moments of the training images."""
        places = np.arange(len(self.train.labels))
        return self._moments(scaled(self.train, part) for part in host_batches(places, 4096))

    def frechet(self, images: np.ndarray) -> float:
        """The Frechet distance to the training images."""
        return frechet_distance(self._moments(host_batches(images, 4096)), self.reference)

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """All measures by name."""
        more = {} if self.judge is None else self.judge(self.train, images, labels)
        deep = {} if self.others is None else self.others(images)
        return {"frechet": self.frechet(images)} | more | deep

    def _moments(self, parts: Iterable[np.ndarray]) -> Moments:
        return moments(pixels(coarse(part)) for part in parts)


def scaled(images: Images | ImageRecords, indices: np.ndarray) -> np.ndarray:
    """The images at `indices` as float32 in [-1, 1]; others of them are not read."""
    raw = images.rows(indices)
    found = images.note(raw) if isinstance(images, ImageRecords) else raw
    return found["pixels"].astype(np.float32) / (images.peak / 2) - 1


@dataclasses.dataclass(frozen=True)
class Others:
    """What is measured in features other than pixels; the training images' statistics are kept in a folder."""

    given: Measuring
    features: Features
    source: dict[str, Any]
    train: Images | ImageRecords
    folder: storage.Path

    @functools.cached_property
    def real(self) -> Statistics:
        """Statistics of the training images."""
        record = {"images": self.source, "part": "train", "count": len(self.train.labels)}
        return real_statistics(self.given, self.folder, record, self.train, self.features)

    @property
    def described(self) -> str:
        """The features in words."""
        return ", ".join(f"{name} {said}" for name, said in self.features.protocol.items())

    def __call__(self, images: np.ndarray) -> dict[str, float]:
        """All measures by name."""
        found = collect([images], self.features, keep=len(images))
        return compare(found, self.real, self.features, neighbours=self.given.neighbours)


def open_measures(run: Run, judge: Judge | None) -> Measures | None:
    """What samples that are images are judged by. Raises ValueError, before anything is trained, if it cannot be had."""
    config, train, folder = run.config, run.data.train, run.folder
    if not isinstance(train, Images | ImageRecords):
        return None
    if config.quality.features is None:
        return Measures(train, judge)
    if storage.is_remote(folder):
        raise ValueError(
            f"--quality.features {config.quality.features}: {folder} lies in an object store; judge it by eqx-shortcut evaluate"
        )
    # Equal numbers of samples and real images among which precision and recall look for neighbours.
    given = Measuring(features=config.quality.features, neighbours=config.quality.count)
    return Measures(train, judge, Others(given, given.build(), settings.dump(config.data), train, folder / "evaluation"))


def draw_for(config: Config, model: Trained, labels: np.ndarray, *, steps: int, guidance: float) -> np.ndarray:
    """The samples that are judged: one for each label, always from the same noise."""
    given = jax.numpy.asarray(labels) if model.labelled else None
    key, batch = rng.key(config.quality.seed), config.quality.batch
    return np.asarray(sample(model, key, len(labels), Sampling(steps, guidance), labels=given, batch=batch))


def distances(run: Run, model: Trained, measures: Measures) -> dict[str, float]:
    """Distances of a few samples at some numbers of steps, by name, and of guided ones at the largest; NaN for samples that are
    not finite."""
    config, figures = run.config, run.config.figures
    labels = np.resize(measures.train.labels, figures.count)
    wanted = [(n, 1.0) for n in figures.steps]
    if guides(config, model, max(figures.steps)):
        wanted.append((max(figures.steps), figures.guidance))
    found = {}
    for steps, guidance in bar(wanted, desc="distances", unit="sampler", leave=False, quiet=not distributed.is_main_process()):
        samples = draw_for(config, model, labels, steps=steps, guidance=guidance)
        name = f"distance/{steps} step{'s'[: steps > 1]}{f', guidance {guidance:g}' * (guidance != 1)}"
        found[name] = measures.frechet(samples) if np.isfinite(samples).all() else float("nan")
    return found


def guides(config: Config, model: Trained, steps: int) -> bool:
    """Whether guided samples of so many steps are another picture than others."""
    conditional = model.labelled and model.nothing is not None
    return conditional and config.figures.guidance != 1 and model.objective.guides(steps)


def judged(run: Run, model: Trained, measures: Measures | None) -> dict[str, Any] | None:
    """What quality.json holds: by the data's own `judge`, or of samples that are images; None of other samples."""
    own = getattr(run.config.data, "judge", None)
    if own is not None:
        return own(model, run.config.quality, run.folder) if distributed.is_main_process() else None
    return None if measures is None else judge_samples(run, model, measures)


def judge_samples(run: Run, model: Trained, measures: Measures) -> dict[str, Any]:
    """Distances of samples to the training images at each number of steps, with the protocol that defines them."""
    config, wanted, train, held_out = run.config, run.config.quality, measures.train, run.data.held_out
    assert isinstance(held_out, Images | ImageRecords)
    # At most as many as samples, which would lie nearer than fewer real ones; drawn once, in case they are sorted.
    some = np.random.default_rng(0).permutation(len(held_out.labels))[: wanted.count]
    labels, unseen = np.resize(train.labels, wanted.count), scaled(held_out, some)
    real, results = measures(unseen, held_out.labels[some]), []
    for steps in bar(wanted.steps, desc="judging samples", unit="sampler", quiet=not distributed.is_main_process()):
        samples = draw_for(config, model, labels, steps=steps, guidance=wanted.guidance)
        # Of samples that are not finite nothing can be said, which is a result, too.
        found = measures(samples, labels) if np.isfinite(samples).all() else dict.fromkeys(real, float("nan"))
        results.append({"steps": steps, **found})
    return {
        "protocol": {
            "frechet": f"Frechet distance of {averaged(train.shape)}, not clipped to [-1, 1], to the training images",
            "samples": wanted.count,
            "labels": "those of the training images in order" if model.labelled else "none",
            "training images": len(train.labels),
            "held-out images": len(unseen),
            "guidance": _applied(config, model),
            "weights": "ema",
            "training step": model.step,
            "seed of noise": wanted.seed,
            **({} if measures.others is None else {"features": measures.others.described}),
        },
        "held_out": real,
        "results": results,
    }


def averaged(shape: tuple[int, ...]) -> str:
    """The pixels that are compared, in words."""
    side = block(shape)
    return "pixels" if side == 1 else f"pixels averaged over {side} x {side}"


def _applied(config: Config, model: Trained) -> float | str:
    scale = config.quality.guidance
    left_out = [str(n) for n in config.quality.steps if scale != 1 and not model.objective.guides(n)]
    return f"{scale}, not applied in {', '.join(left_out)} steps" if left_out else scale


def table(quality: dict[str, Any]) -> str:
    """The results as a text table under their protocol; the last row is the same measures of real, held-out images."""
    results = [*quality["results"], {"steps": "held-out", **quality["held_out"]}]
    wide = {name: max(10, len(name)) for name in results[0]}
    lines = ["  ".join(f"{name:>{width}}" for name, width in wide.items())]
    for row in results:
        values = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in row.items()}
        lines.append("  ".join(f"{values.get(name, ''):>{width}}" for name, width in wide.items()))
    protocol = [f"  {name}: {value}" for name, value in quality["protocol"].items()]
    return "\n".join([*protocol, "", *lines])
