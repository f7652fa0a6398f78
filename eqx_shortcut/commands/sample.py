"""Draws samples of a trained run as one picture, as a folder of pictures, or as one array.

    eqx-shortcut sample runs/digits/shortcut --steps 1 4 128 --count 40 --out grid.png
    eqx-shortcut sample runs/digits/shortcut --class 3 8
    eqx-shortcut sample runs/imagenet/shortcut --steps 4 --count 50000 --out samples.npz

--out chooses which. NAME.png is a grid with a block of rows for each number of steps. NAME.npz holds arr_0, bytes
(count, height, width, channels) as evaluation suites read them, and their labels; samples that are no pictures are floats
there. Any other name is a folder of 000000.png and so on, in which the same command goes on where it stopped. Sample number i
depends on the seed and i alone.
"""

import dataclasses
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from ..cli import check_out
from ..ranges import Count, Natural
from ._opening import Drawing, Opened, chosen_labels, open_run

if TYPE_CHECKING:
    from ..trained import Trained

RECORD = "samples.json"


@dataclasses.dataclass(frozen=True)
class Config(Drawing):
    """Samples of a trained run."""

    steps: tuple[Count, ...] = (1, 4, 128)
    """Numbers of sampling steps, the same noise for all; one for a folder or an array (1 or more)."""
    count: Count = 20
    """Samples for each number of steps and each seed (1 or more)."""
    columns: Count = 20
    """Samples of a grid side by side (1 or more)."""
    seed: tuple[Natural, ...] = (0,)
    """Seeds of the noise; the samples of one follow those of the other (0 or more)."""
    batch: Count = 256
    """Samples computed at once (1 or more)."""
    conditions: pathlib.Path | None = None
    """Conditions other than labels, repeated as needed: a .npy file, or .npz with an array for each name."""
    out: pathlib.Path = pathlib.Path("samples.png")
    """Picture or array to write (.png, .npz), or folder."""


def main(config: Config) -> None:
    """Loads the run, samples, writes the files asked for and prints their paths."""
    from ..progress import bar

    check(config)
    arrays = config.out.suffix.lower() == ".npz"
    opened = open_run(config, drawn=not arrays)
    wanted, names = chosen(config, opened.model)
    write = {".png": write_grid, ".npz": write_array}.get(config.out.suffix.lower(), write_folder)
    # Shown only if it takes a while, so that what is refused at once is a sentence alone.
    with bar(total=len(config.steps) * len(config.seed) * config.count, unit="sample", delay=1) as shown:
        write(config, opened, wanted, names, shown)
    for steps in config.steps:
        each = f" of each of {len(config.seed)} seeds" if len(config.seed) > 1 else ""
        note = config.sampling(steps, config.guidance).note(opened.model.objective)
        print(f"{name(config, names, steps)}: {config.count} samples{each}, {note}")
    seeds = f"seed{'s'[: len(config.seed) > 1]} {', '.join(map(str, config.seed))}"
    print(f"{config.out}: weights {config.weights} of training step {opened.model.step}, {seeds}")


def check(config: Config) -> None:
    """Refuses what cannot be drawn or written before anything is loaded."""
    if not config.steps or not config.seed:
        raise ValueError("--steps or --seed without a number: name one or more of each")
    check_out(config.out, *((".png", ".npz") if config.out.suffix and not config.out.is_dir() else ()))
    if config.out.suffix.lower() != ".png" and len(config.steps) > 1:
        raise ValueError(
            f"--steps {' '.join(map(str, config.steps))}: a folder or an array holds samples of one number of steps, such as "
            "--steps 1"
        )


def chosen(config: Config, model: "Trained") -> tuple[dict[str, Any], list[str]]:
    """The labels or conditions that samples take in turn, as a keyword of `eqx_shortcut.sample`, and their names.

    Raises ValueError if the run was trained on the other kind.
    """
    import jax
    import numpy as np

    from ..types import shown

    if config.conditions is None or config.labels or config.classes:
        labels, names = chosen_labels(config, model)
        return {} if labels == [None] else {"labels": np.array(labels, np.int32)}, names
    if model.null is None or not model.conditional:
        raise ValueError(f"--conditions {config.conditions}: the run was trained on labels or none: use --labels")
    try:
        file = np.load(config.conditions)
        found = dict(file) if isinstance(file, np.lib.npyio.NpzFile) else file
        if not all(array.ndim and len(array) for array in (found.values() if isinstance(found, dict) else [found])):
            raise ValueError("one of them has no rows")
    except (OSError, ValueError) as error:
        raise ValueError(f"{config.conditions} holds no arrays ({error}): make it with numpy.save or savez") from error
    if jax.tree.map(lambda rows: rows.shape[1:], found) != jax.tree.map(np.shape, model.null):
        told = f"{config.conditions} holds {shown(found)}, where a row of the run is {shown(model.null)}"
        raise ValueError(f"{told}: give rows of that kind, under the same names and one axis deeper")
    return {"conditions": found}, [str(config.conditions)]


class Span(NamedTuple):
    """Samples `first` to `last - 1` of a seed; `place` is the number of the first among all that are written."""

    seed: int
    first: int
    last: int
    place: int


def spans(config: Config) -> Iterator[Span]:
    """All samples, in parts that are computed at once."""
    for block, seed in enumerate(config.seed):
        for first in range(0, config.count, config.batch):
            yield Span(seed, first, min(first + config.batch, config.count), block * config.count + first)


def draw(config: Config, opened: Opened, wanted: dict[str, Any], steps: int, span: Span) -> tuple[Any, dict[str, Any]]:
    """Pictures of the samples of a span, in [-1, 1], and the labels or conditions that they are of."""
    import jax
    import numpy as np

    from .. import rng
    from ..trained import sample

    # The last span is filled up, and so needs no program of its own.
    indices = span.first + np.arange(min(config.batch, config.count))
    given = jax.tree.map(lambda leaf: leaf[indices % len(leaf)], wanted)
    how, count = config.sampling(steps, config.guidance), span.last - span.first
    x = sample(opened.model, rng.key(span.seed), len(indices), how, first=span.first, **given, batch=len(indices))
    return opened.pictures(x[:count]), jax.tree.map(lambda leaf: leaf[:count], given)


def write_grid(config: Config, opened: Opened, wanted: dict[str, Any], names: list[str], bar: Any) -> None:
    """Writes one picture: a block of rows for each number of steps and each seed."""
    import numpy as np

    from .. import figures

    blocks, beside = [], []
    for steps in config.steps:
        found = {seed: [] for seed in config.seed}
        for span in spans(config):
            found[span.seed].append(draw(config, opened, wanted, steps, span)[0])
            bar.update(span.last - span.first)
        for seed, parts in found.items():
            rows = folded(np.concatenate(parts), min(config.columns, config.count))
            blocks.append(rows)
            title = name(config, names, steps) + (f", seed {seed}" if len(found) > 1 else "")
            beside += [title, *[""] * (len(rows) - 1)]
    figures.grid(np.concatenate(blocks), config.out, labels=beside)


def write_folder(config: Config, opened: Opened, wanted: dict[str, Any], names: list[str], bar: Any) -> None:
    """Writes each missing sample as NUMBER.png, and the settings of all as samples.json."""
    from concurrent.futures import ThreadPoolExecutor

    from .. import figures, settings

    several = {"seeds": config.seed, "count": config.count} if len(config.seed) > 1 else {"seeds": config.seed}
    changed = {"guidance_interval": None, "sampler": "own", "time_shift": 1}
    more = {key: getattr(config, key) for key, usual in changed.items() if getattr(config, key) != usual}
    named = ("weights", "steps", "guidance", "guide_always")
    record = {
        "run": str(config.run),
        "training step": opened.model.step,
        "labels": wanted["labels"].tolist() if "labels" in wanted else [],
        **({} if config.conditions is None else {"conditions": str(config.conditions)}),
        **{key: getattr(config, key) for key in named},
        **several,
        **more,
    }
    settings.match_or_write(
        config.out / RECORD, settings.dump(record), "other samples", "Repeat their settings, or name another --out"
    )
    with ThreadPoolExecutor() as pool:
        for span in spans(config):
            paths = [config.out / f"{span.place + i:06d}.png" for i in range(span.last - span.first)]
            if not all(path.exists() for path in paths):
                images, _ = draw(config, opened, wanted, config.steps[0], span)
                missing = [(image, path) for image, path in zip(images, paths, strict=True) if not path.exists()]
                list(pool.map(lambda pair: figures.picture(*pair), missing))
            bar.update(len(paths))


def write_array(config: Config, opened: Opened, wanted: dict[str, Any], names: list[str], bar: Any) -> None:
    """Writes all samples as bytes into one file of NumPy's, span by span, so that a span is all that is held in memory."""
    import zipfile

    import numpy as np

    from .. import storage
    from ..figures import to_bytes

    # Pictures as evaluation suites read them; anything else as it is.
    kind, stored = ("|u1", to_bytes) if opened.drawable else ("<f4", np.ascontiguousarray)
    used = []
    with storage.draft_of(config.out) as draft, zipfile.ZipFile(draft, "w") as file:
        with file.open("arr_0.npy", "w", force_zip64=True) as member:
            for span in spans(config):
                images, given = draw(config, opened, wanted, config.steps[0], span)
                if not used:
                    shape = (config.count * len(config.seed), *images.shape[1:])
                    described = {"descr": kind, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(member, described)
                member.write(stored(images).tobytes())
                used.append(given)
                bar.update(len(images))
        if "labels" in wanted:
            with file.open("labels.npy", "w") as member:
                np.lib.format.write_array(member, np.concatenate([given["labels"] for given in used]))


def name(config: Config, names: list[str], steps: int) -> str:
    """The title of a block of samples: the number of steps, and the class if one alone was named."""
    return f"{steps} step{'s'[: steps > 1]}" + (f", {names[0]}" if config.classes and len(names) == 1 else "")


def folded(images, columns: int):
    """Images in rows of `columns`, the last row padded with blank images."""
    import numpy as np

    blank = np.ones((-len(images) % columns, *images.shape[1:]), images.dtype)
    return np.concatenate([images, blank]).reshape(-1, columns, *images.shape[1:])
