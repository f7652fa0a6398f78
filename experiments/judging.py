"""How far samples are from the training images: at the end of a run in full, and on fewer samples during it."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from tqdm import tqdm

from config import Config, Judge
from eqx_shortcut import distributed
from eqx_shortcut.data import Images
from eqx_shortcut.data.pipeline import host_batches
from eqx_shortcut.evaluate import Moments, frechet_distance, moments, pixels
from eqx_shortcut.trained import Trained, sample
from examples import Data


@dataclasses.dataclass(frozen=True)
class Measures:
    """What is measured of images in [-1, 1] and their labels: the distance of their features to the training images', and more.

    The training images' features are computed once, when first needed.
    """

    train: Images
    judge: Judge | None = None
    features: Callable[[np.ndarray], np.ndarray] = pixels

    @functools.cached_property
    def reference(self) -> Moments:
        """Moments of the training images."""
        return self._moments(self.train.scaled())

    def frechet(self, images: np.ndarray) -> float:
        """The Frechet distance to the training images."""
        return frechet_distance(self._moments(images), self.reference)

    def __call__(self, images: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """All measures by name."""
        more = {} if self.judge is None else self.judge(self.train, images, labels)
        return {"frechet": self.frechet(images)} | more

    def _moments(self, images):
        return moments(map(self.features, host_batches(images, 4096)))


def draw_for(config: Config, model: Trained, labels: np.ndarray, *, steps: int, guidance: float) -> np.ndarray:
    """The samples that are judged: one for each label, always from the same noise."""
    import jax

    given = jax.numpy.asarray(labels) if model.labelled else None
    key, batch = jax.random.key(config.quality.seed), config.quality.batch
    return np.asarray(sample(model, key, len(labels), steps=steps, labels=given, guidance=guidance, batch=batch))


def distances(config: Config, model: Trained, measures: Measures) -> dict[str, float]:
    """Distances of a few samples at some numbers of steps, by name, and of guided ones at the largest; NaN for samples that are
    not finite."""
    settings = config.figures
    labels = np.resize(measures.train.labels, settings.count)
    wanted = [(n, 1.0) for n in settings.steps]
    if guides(config, model, max(settings.steps)):
        wanted.append((max(settings.steps), settings.guidance))
    found = {}
    for steps, guidance in tqdm(wanted, desc="distances", unit="sampler", leave=False, disable=not distributed.first()):
        samples = draw_for(config, model, labels, steps=steps, guidance=guidance)
        name = f"distance/{steps} step{'s'[: steps > 1]}{f', guidance {guidance:g}' * (guidance != 1)}"
        found[name] = measures.frechet(samples) if np.isfinite(samples).all() else float("nan")
    return found


def guides(config: Config, model: Trained, steps: int) -> bool:
    """Whether guided samples of so many steps are another picture than others."""
    return model.labelled and config.figures.guidance != 1 and model.objective.guides(steps)


def judge_samples(config: Config, model: Trained, data: Data, measures: Measures) -> dict[str, Any]:
    """Distances of samples to the training images at each number of steps, with the protocol that defines them."""
    settings, train, held_out = config.quality, measures.train, data.held_out
    assert isinstance(held_out, Images)
    labels, unseen = np.resize(train.labels, settings.count), held_out.scaled()
    results = []
    for steps in tqdm(settings.steps, desc="judging samples", unit="sampler", disable=not distributed.first()):
        samples = draw_for(config, model, labels, steps=steps, guidance=settings.guidance)
        results.append({"steps": steps, **measures(samples, labels)})
    return {
        "protocol": {
            "frechet": "Frechet distance of pixels in [-1, 1] to the training images",
            "samples": settings.count,
            "labels": "those of the training images in order" if model.labelled else "none",
            "training images": len(train.labels),
            "held-out images": len(unseen),
            "guidance": settings.guidance,
            "weights": "ema",
            "training step": model.step,
            "seed of noise": settings.seed,
        },
        "held_out": measures(unseen, held_out.labels),
        "results": results,
    }


def table(quality: dict[str, Any]) -> str:
    """The results as a text table under their protocol; the last row is the same measures of real, held-out images."""
    results = [*quality["results"], {"steps": "held-out", **quality["held_out"]}]
    lines = ["  ".join(f"{name:>10}" for name in results[0])]
    for row in results:
        lines.append("  ".join(f"{value:>10.4g}" if isinstance(value, float) else f"{value:>10}" for value in row.values()))
    protocol = [f"  {name}: {value}" for name, value in quality["protocol"].items()]
    return "\n".join([*protocol, "", *lines])
