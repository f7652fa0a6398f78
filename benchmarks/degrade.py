"""A distance of images that are known to be worse: held-out images with ever more noise, or ever more blur.

    python benchmarks/degrade.py --features efficientnet data:cifar10 --data.path cifar10 --out degraded.json

A distance to be trusted rises with each. Writes a table with its protocol. The same command again goes on where it
stopped.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

from eqx_shortcut.cli import command
from eqx_shortcut.commands.stats import AnyImages
from eqx_shortcut.evaluate.parts import Batches, Measuring, collect_parts, notes_as_lines, real_batches, real_statistics

if TYPE_CHECKING:
    import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(Measuring):
    """Distances of degraded images."""

    data: AnyImages
    """Where the images are."""
    count: int = 10_000
    """Images of either side, in an order drawn once."""
    noise: tuple[float, ...] = (4.0, 8.0, 16.0, 32.0)
    """Standard deviations of normal noise, in units of 1/255."""
    blur: tuple[float, ...] = (0.5, 1.0, 2.0)
    """Standard deviations of a normal blur, in pixels."""
    out: pathlib.Path = pathlib.Path("degraded.json")
    """File to write."""


def main(config: Config) -> None:
    """Measures each degradation and prints the table."""
    from eqx_shortcut import settings
    from eqx_shortcut.evaluate import compare

    notes_as_lines()
    features, (train, held_out) = config.build(), config.data.build()
    folder, source = config.out.with_suffix(""), settings.dump(config.data)
    folder.mkdir(parents=True, exist_ok=True)
    real = real_statistics(config, folder, {"images": source, "count": config.count}, train, features, count=config.count)
    count, images = real_batches(held_out, config.batch)
    count, rows = min(count, config.count), {}
    for kind, amount in (("none", 0.0), *(("noise", a) for a in config.noise), *(("blur", a) for a in config.blur)):
        name = f"{kind} {amount:g}" if amount else "held-out images"
        parts = collect_parts(
            folder / name.replace(" ", "-"),
            {"images": source, "degradation": name},
            count,
            degraded(images, kind, amount),
            features,
            part=config.part,
            keep=count,
            title=name,
        )
        if parts is not None:
            rows[name] = compare(parts, real, features, neighbours=config.neighbours)
            protocol = {"features": features.name, **features.protocol, "real": real.count, "degraded": count}
            config.out.write_text(json.dumps({"protocol": protocol, "rows": rows}, indent=1))
            print(f"{name}: {', '.join(f'{measure} {value:.4g}' for measure, value in rows[name].items())}")


def degraded(images: Batches, kind: str, amount: float) -> Batches:
    """The images with noise or blur, as bytes would hold them; the noise of an image depends on its place alone."""
    import numpy as np
    from scipy.ndimage import gaussian_filter1d

    def worse(image: "np.ndarray", place: int) -> "np.ndarray":
        if kind == "noise":
            image = image + np.random.default_rng(place).normal(0, amount / 127.5, image.shape)
        if kind == "blur":
            image = gaussian_filter1d(gaussian_filter1d(image, amount, axis=0, mode="nearest"), amount, axis=1, mode="nearest")
        return (np.clip(np.round((image + 1) * 127.5), 0, 255) / 127.5 - 1).astype(np.float32)

    def batches(places: range) -> "Iterator[np.ndarray]":
        start = places.start
        for batch in images(places):
            yield np.stack([worse(image, start + i) for i, image in enumerate(batch)])
            start += len(batch)

    return batches


if __name__ == "__main__":
    command(main, Config, __doc__)
