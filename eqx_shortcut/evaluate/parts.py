"""Features of large sets of images, part by part: what `eqx-shortcut evaluate` and `eqx-shortcut stats` have in common."""

import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal

import numpy as np

from .. import distributed, ranges, settings, storage
from ..data import ImageRecords, Images
from ..ranges import Count, Natural
from .collected import Collected, collect, merged
from .features import Custom, Features, Pixels
from .statistics import Statistics, read_statistics, write_statistics

Batches = Callable[[range], Iterator[np.ndarray]]
"""Indices of a set to its images in [-1, 1], batch by batch."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measuring(ranges.Checked):
    """In what images are compared."""

    features: str = "inception"
    """inception (FID), efficientnet, pixels, FILE.safetensors of classifier.py, or MODULE:FUNCTION of images in [-1, 1]."""
    inception: pathlib.Path = pathlib.Path("pt_inception-2015-12-05-6726825d.pth")
    """File of Inception's weights, that of pytorch-fid and torch-fidelity, or the reference's pickle."""
    protocol: Literal["reference", "tf", "pytorch-fid"] = "tf"
    """How images reach Inception: as in the reference, as in TensorFlow (so ADM and torch-fidelity), as in pytorch-fid."""
    batch: Count = 128
    """Images computed at once (1 or more)."""
    part: Count = 5000
    """Images between saves: what is redone after an interruption, and what a process takes at a time (1 or more)."""
    neighbours: Natural = 10_000
    """Images of each side for precision, recall, density and coverage; 0 leaves these out (0 or more)."""

    def build(self) -> Features:
        """The features. Raises ValueError, with the remedy, if they or their weights are not there."""
        from .networks import classifier_features, efficientnet_features, inception_features
        from .preprocess import INCEPTION

        match self.features:
            case "inception":
                return inception_features(self.inception, preprocessing=INCEPTION[self.protocol], batch=self.batch)
            case "efficientnet":
                return efficientnet_features(batch=self.batch)
            case "pixels":
                return Pixels()
            case path if path.endswith(".safetensors"):
                return classifier_features(path, batch=self.batch)
        module, _, function = self.features.partition(":")
        try:
            return Custom(getattr(importlib.import_module(module), function), self.features)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"--features {self.features} cannot be had ({error}): use inception, efficientnet, pixels, FILE.safetensors or "
                "MODULE:FUNCTION"
            ) from error


def collect_parts(
    folder: storage.Path,
    record: dict[str, Any],
    count: int,
    batches: Batches,
    features: Features,
    *,
    part: int,
    keep: int,
    title: str,
) -> Collected | None:
    """The `Collected` of `count` images, computed in parts that the folder keeps, so that a repeated call continues.

    None in all processes but the main one. Every process takes its share of the parts; the main one adds them up. Raises
    ValueError if the folder holds parts of something else than `record` says.
    """
    import jax

    from ..progress import bar

    described = {**record, "count": count, "part": part, "keep": keep, "features": dict(features.protocol)}
    with distributed.barrier():
        if distributed.is_main_process():
            other, remedy = "features of other images", "Remove the folder, or repeat its settings"
            settings.match_or_write(folder / "settings.json", described, other, remedy)
    parts = [range(start, min(start + part, count)) for start in range(0, count, part)]
    mine = parts[jax.process_index() :: jax.process_count()]
    with distributed.barrier(), bar(total=sum(map(len, mine)), desc=title, unit="image") as shown:
        for indices in mine:
            if not part_path(folder, indices).exists():
                seen = counted(batches(indices), shown)
                collect(seen, features, keep=max(0, min(keep, indices.stop) - indices.start)).save(part_path(folder, indices))
            else:
                shown.update(len(indices))
    return merged([Collected.load(part_path(folder, indices)) for indices in parts]) if distributed.is_main_process() else None


def real_statistics(
    config: Measuring,
    folder: storage.Path,
    record: dict[str, Any],
    images: Images | ImageRecords,
    features: Features,
    *,
    count: int | None = None,
) -> Statistics:
    """The statistics of a data set, read from the folder if they were made before; every process has them."""
    said = json.dumps([record, dict(features.protocol), config.neighbours], sort_keys=True)
    path = folder / f"real-{hashlib.sha256(said.encode()).hexdigest()[:16]}.npz"
    if not path.exists():
        write_real(config, path, record, images, features, count=count)
    return read_statistics(path)


def write_real(
    config: Measuring,
    path: storage.Path,
    record: dict[str, Any],
    images: Images | ImageRecords,
    features: Features,
    *,
    count: int | None = None,
) -> None:
    """Makes the statistics of `count` images of a data set, or of all; what was done of it lies beside the file meanwhile."""
    folder, (whole, batches) = path.with_suffix(".parts"), real_batches(images, config.batch)
    count = whole if count is None else min(count, whole)
    keep = max(config.neighbours, 10_000)
    found = collect_parts(folder, record, count, batches, features, part=config.part, keep=keep, title="real images")
    with distributed.barrier():
        if found is not None:
            write_statistics(path, Statistics.of(found.moments, found.spatial, features.protocol, kept=found.kept))
            shutil.rmtree(folder)


def notes_as_lines() -> None:
    """Prints warnings to the user as one line each."""
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = lambda message, *_, **__: print(f"note: {message}")


def counted(batches: Iterator[np.ndarray], shown: Any) -> Iterator[np.ndarray]:
    """The batches, each counted on the bar when it was used."""
    for images in batches:
        yield images
        shown.update(len(images))


def part_path(folder: storage.Path, indices: range) -> storage.Path:
    """The file of the features of the images `indices`."""
    return folder / f"{indices.start:09d}.npz"


def real_batches(images: Images | ImageRecords, batch: int) -> tuple[int, Batches]:
    """Number of images of a data set, and the images in an order drawn once, so that the first ones stand for all."""
    order = np.random.default_rng(0).permutation(len(images.labels))

    def read(indices: np.ndarray) -> np.ndarray:
        return images.rows(order[indices])["pixels"].astype(np.float32) / (images.peak / 2) - 1

    def batches(indices: range) -> Iterator[np.ndarray]:
        import grain

        cuts = range(indices.start, indices.stop, batch)
        wanted = [np.arange(start, min(start + batch, indices.stop)) for start in cuts]
        ahead = grain.ReadOptions(num_threads=os.cpu_count() or 1, prefetch_buffer_size=4)
        return iter(grain.MapDataset.source(wanted).map(read).to_iter_dataset(ahead))

    return len(order), batches
