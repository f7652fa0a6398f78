"""Measures a trained run at each number of steps: FID and the other metrics, stored with their protocol.

    eqx-shortcut evaluate runs/imagenet/shortcut --steps 1 4 128 --guidance 1.0 1.5 --stats imagenet256.npz
    eqx-shortcut evaluate runs/cifar10/shortcut --features efficientnet --count 10000
    eqx-shortcut evaluate runs/digits/shortcut --features pixels --count 1400 --labels data
    eqx-shortcut evaluate runs/imagenet/shortcut --weights 0.03 0.05 0.08 0.12 0.2 --stats imagenet256.npz

Samples are compared with the statistics of a file, as `eqx-shortcut stats` writes it, or with the training images of the run.
Writes evaluation.json and evaluation.md in the run folder, and sigma_rel.png of a run that was trained with
--averages.sigma-rel if several widths are measured. Sample number i depends on the seed and i alone, whatever the batch,
devices and processes. The same command again goes on where it stopped.
"""

import dataclasses
import itertools
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import jax
import numpy as np
import tyro

from .. import distributed, figures, rng, settings, sharding, storage
from ..cli import Place
from ..data import ImageRecords, Images
from ..evaluate import Features, Statistics, compare, read_statistics
from ..evaluate.parts import Batches, Measuring, collect_parts, notes_as_lines, real_batches, real_statistics
from ..evaluate.results import TIMES, caution, markdown, read_results
from ..ranges import Count, Finite, Natural, Several
from ._opening import SamplingOptions, Weights, finite

if TYPE_CHECKING:
    from ..evaluate.run import Cell
    from ..sampling import Sampling
    from ..trained import Trained


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(SamplingOptions, Measuring):
    """Measures the samples of a trained run."""

    run: Annotated[Place, tyro.conf.Positional]
    """Run folder."""
    steps: tuple[Count, ...] = (1, 4, 128)
    """Numbers of sampling steps (1 or more)."""
    guidance: tuple[Finite, ...] = (1.0,)
    """Guidance scales; 1 is none."""
    count: Several = 50_000
    """Samples for each (2 or more)."""
    labels: Literal["balanced", "random", "data"] = "balanced"
    """Labels of the samples: all in turn, drawn at random, or those of the training images in order."""
    stats: pathlib.Path | None = None
    """File of the statistics of real images; by default they are made of the training images of the run."""
    weights: tuple[Weights, ...] = ("ema",)
    """ema (the average of the weights), online (the last ones), or relative widths of averages (see --averages)."""
    step: Natural | None = None
    """Training step of the checkpoint; by default the newest (0 or more)."""
    seed: Natural = 0
    """Seed of noise and random labels (0 or more)."""
    vae: pathlib.Path | None = None
    """Folder or file of the autoencoder of a run on latents; by default where it was during training."""
    keep_features: bool = False
    """Keep the features of the samples."""
    parts: pathlib.Path | None = None
    """Folder of features and of the statistics of the run's images; by default RUN/evaluation."""

    def __post_init__(self):
        super().__post_init__()
        if not self.steps:
            raise ValueError("--steps without a number: name one or more")
        if not self.weights:
            raise ValueError("--weights without a name: name ema, online or a number")
        if not self.guidance:
            raise ValueError("--guidance without a number: name a scale, 1 for none")


class RunImages(NamedTuple):
    """The images that a run was trained on and those held out, and the settings of their source."""

    source: dict[str, Any]
    train: Images | ImageRecords
    held_out: Images | ImageRecords


def main(config: Config) -> None:
    """Measures what evaluation.json lacks of the cells asked for, and prints their table."""
    from ..decoding import decoder
    from ..evaluate.run import Cell, Evaluation
    from ..trained import load

    distributed.initialize()
    notes_as_lines()
    model = load(config.run, weights=config.weights[0], step=config.step)
    features, data = config.build(), run_images(config)
    real, labels = reference(config, data, features), chosen_labels(config, model, data)
    # Before hours of sampling: one sample says how many features there are.
    decode = decoder(config.run, config.vae) or np.asarray  # once: its weights are hashed
    (probe,) = sampler(config, decode, model, labels, config.sampling(config.steps[0], 1.0))(range(1))
    real.check(features.protocol, features(probe).vectors.shape[1], config.count)

    def measure(cell: Cell, record: dict[str, Any]) -> dict[str, float]:
        draw = sampler(config, decode, cell.model, labels, cell.sampling)
        return compared(config, title_of(record), record, config.count, draw, features, real)

    def floor() -> dict[str, float]:
        """The same measures of held-out images, at most as many as samples: what perfect samples would reach."""
        assert data is not None
        count, batches = real_batches(data.held_out, config.batch)
        record = {"images": data.source, "part": "held out"}
        return compared(config, "held-out images", record, min(count, config.count), batches, features, real)

    known = data is not None and config.stats is None
    protocol = protocol_of(config, model, features, real)
    evaluation = Evaluation(config.run, config.count, protocol, measure, floor if known else None)
    rows = evaluation(cells(config, model))
    if distributed.is_main_process():
        print(markdown({"results": rows, "floors": read_results(config.run)["floors"]}))  # evaluation.md has all
        drawn = draw_widths(config.run / "sigma_rel.png", rows)
        print(f"{config.run}: evaluation.json, evaluation.md{', sigma_rel.png' * drawn}")


def reference(config: Config, data: RunImages | None, features: Features) -> Statistics:
    """What samples are compared with: the statistics of the file, or those of the run's training images."""
    if config.stats is not None:
        return read_statistics(config.stats)
    assert data is not None
    record = {"images": data.source, "part": "train"}
    return real_statistics(config, parts_folder(config), record, data.train, features)


def cells(config: Config, model: "Trained") -> Iterator["Cell"]:
    """One cell for each set of weights, number of steps and guidance scale; `model` has the first set of weights."""
    from ..evaluate.run import Cell
    from ..trained import load

    for weights in config.weights:
        model = model if weights == config.weights[0] else load(config.run, weights=weights, step=config.step)
        for steps, guidance in itertools.product(config.steps, config.guidance):
            yield Cell(model, weights, config.sampling(steps, guidance))


def draw_widths(path: pathlib.Path, found: list[dict[str, Any]]) -> bool:
    """Draws the first measure of these rows against the width of the average; returns whether there are several widths."""
    rows = [row for row in found if isinstance(row["weights"], float)]
    if len({row["weights"] for row in rows}) < 2:
        return False
    measure, curves = next(iter(rows[0]["measures"])), {}
    for row in rows:
        guidance = f", guidance {row['guidance']:g}" if len({row["guidance"] for row in rows}) > 1 else ""
        name = f"{row['steps']} step{'s'[: row['steps'] > 1]}{guidance}"
        curves.setdefault(name, {})[row["weights"]] = row["measures"][measure]
    figures.quality_plot(curves, path, measure=measure, against="relative width of the average")
    return True


def run_images(config: Config) -> RunImages | None:
    """The images that the run was trained on; None where a file of statistics stands for them."""
    if config.stats is not None and config.labels != "data":
        return None
    source = settings.read(config.run / "config.json").get("data")
    if source and "vae" in source:  # of latents
        source = source["images"]
    if not source:
        raise ValueError(
            f"{config.run} does not say what images it was trained on: name their statistics with --stats, and labels "
            "other than those of the data"
        )
    try:
        train, held_out = settings.parse(source).build()
    except ValueError as error:  # its remedy names options of training
        fault = str(error).rpartition(": ")[0] or str(error)
        raise ValueError(
            f"the images that {config.run} was trained on cannot be read ({fault}): put them back, or name their statistics "
            "with --stats"
        ) from error
    if not isinstance(train, Images | ImageRecords):
        raise ValueError(
            f"{config.run} was trained on {train.noun}, which are no stored images: name statistics of images with --stats, "
            "and labels other than those of the data"
        )
    return RunImages(source, train, held_out)


def compared(
    config: Config, title: str, record: dict[str, Any], count: int, batches: Batches, features: Features, real: Statistics
) -> dict[str, float]:
    """The measures of a set of images, in the first process; their features are kept part by part until it has them."""
    folder = parts_folder(config) / title.replace(" ", "-")
    found = collect_parts(folder, record, count, batches, features, part=config.part, keep=count, title=title)
    with distributed.barrier():
        if found is None:
            return {}
        measures = compare(found, real, features, neighbours=config.neighbours)
        if not config.keep_features:
            shutil.rmtree(folder)
        return measures


def parts_folder(config: Config) -> pathlib.Path:
    """Where parts and statistics are kept, on a disk that all processes share."""
    if config.parts is None and storage.is_remote(config.run):
        raise ValueError(f"{config.run} lies in an object store: name a folder on a disk for the features with --parts")
    return config.run / "evaluation" if config.parts is None else config.parts


def chosen_labels(config: Config, model: "Trained", data: RunImages | None) -> np.ndarray:
    """The label of each sample."""
    if not model.labelled:
        return np.full(config.count, model.classes)
    if config.labels == "data":
        assert data is not None
        return np.resize(data.train.labels, config.count)
    if config.labels == "random":
        # The first numbers are the same however many are drawn.
        return np.random.default_rng(config.seed).integers(model.classes, size=config.count)
    return np.arange(config.count) % model.classes


def protocol_of(config: Config, model: "Trained", features: Features, real: Statistics) -> dict[str, str]:
    """How the samples are measured."""
    return {
        "features": features.name,
        **features.protocol,
        "labels": config.labels if model.labelled else "none",
        "seed": str(config.seed),
        "real images": str(real.count or "number not recorded"),
        "statistics": real.hash[:16],
        "protocol of the statistics": "as of the samples" if real.protocol else "not recorded",
        "neighbours among": str(config.neighbours),
        **caution([features], model.trained_in),
    }


def title_of(cell: dict[str, Any]) -> str:
    """The name of a row, and of the folder of its features."""
    more = "".join(f" {name} {cell['protocol'][name]}" for name in (TIMES, "sampler") if name in cell["protocol"])
    return f"{cell['weights']} {cell['training step']} steps {cell['steps']} guidance {cell['guidance']:g}{more}"


def sampler(config: Config, decode: Callable[[Any], Any], model: "Trained", labels: np.ndarray, how: "Sampling") -> Batches:
    """From indices to the decoded pictures there: a sample depends on the seed, its index and its label alone."""
    from ..trained import noise, sample_from

    key, devices = rng.key(config.seed), jax.local_devices()
    mesh = sharding.make_mesh(devices=devices if config.batch % len(devices) == 0 else devices[:1])
    everywhere = sharding.replicate(model, mesh)

    def draw(indices: range) -> Iterator[np.ndarray]:
        for start in range(indices.start, indices.stop, config.batch):
            # Always a whole batch, so that one program serves all.
            wanted = np.arange(start, start + config.batch)
            given = labels[np.minimum(wanted, len(labels) - 1)]
            at, chosen = jax.device_put((wanted, given), sharding.batch_sharding(mesh))
            images = sample_from(everywhere, key, noise(everywhere, key, at), how, indices=at, labels=chosen)
            yield np.asarray(decode(finite(images, config.run)))[: indices.stop - start]

    return draw
