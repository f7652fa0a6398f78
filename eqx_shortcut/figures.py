"""Pictures: grids of images, and plots of quality and of the loss."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8


def to_bytes(images: Shaped[np.ndarray, "*batch height width channels"]) -> UInt8[np.ndarray, "*batch height width channels"]:
    """Images in [-1, 1] as bytes, clipped and rounded."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def grid(
    images: Shaped[np.ndarray, "rows columns height width channels"],
    path: pathlib.Path,
    *,
    labels: Sequence[str] = (),
    side: int = 64,
) -> None:
    """Writes a PNG of images in [-1, 1] in rows and columns, enlarged by a whole factor to about `side` pixels each.

    `labels` name the rows at the left edge.
    """
    import PIL.Image
    import PIL.ImageDraw

    rows, columns, height, width, channels = images.shape
    zoom, gap = max(1, side // height), 4
    pixels = np.repeat(np.repeat(to_bytes(images), zoom, axis=2), zoom, axis=3)
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, gap), (0, gap), (0, 0)), constant_values=255)
    sheet = pixels.transpose(0, 2, 1, 3, 4).reshape(rows * (height * zoom + gap), columns * (width * zoom + gap), channels)
    picture = PIL.Image.fromarray(sheet[..., 0] if channels == 1 else sheet).convert("RGB")
    margin = 8 + max((7 * len(label) for label in labels), default=-8)
    page = PIL.Image.new("RGB", (picture.width + margin, picture.height), "white")
    page.paste(picture, (margin, 0))
    draw = PIL.ImageDraw.Draw(page)
    for row, label in enumerate(labels):
        draw.text((4, row * (height * zoom + gap) + height * zoom // 2 - 5), label, fill="black")
    _write(path, page.save)


def quality_plot(
    curves: Mapping[str, Mapping[int, float]], path: pathlib.Path, *, measure: str, floor: float | None = None
) -> None:
    """Writes a plot of a distance against the number of steps, one line a name, and the real-against-real floor."""
    from matplotlib.ticker import LogLocator

    figure, axes = _figure()
    for name, curve in curves.items():
        axes.plot(list(curve), list(curve.values()), marker="o", label=name)
    steps = sorted({n for curve in curves.values() for n in curve})
    axes.set(xscale="log", yscale="log", xticks=steps, xticklabels=[str(n) for n in steps])
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    if floor is not None:
        axes.axhline(floor, color="gray", linestyle="--", label="real against real")
    axes.set(xlabel="sampling steps", ylabel=measure)
    axes.legend()
    _write(path, figure.savefig)


def loss_plot(records: Sequence[Mapping[str, Any]], path: pathlib.Path) -> None:
    """Writes a plot of every loss in the records of a run, smoothed, over the raw values."""
    figure, axes = _figure()
    names = sorted({name for record in records for name in record if name.startswith("loss")})
    for name in names:
        points = np.array([(record["step"], record[name]) for record in records if name in record], np.float64)
        (line,) = axes.plot(points[:, 0], smoothed(points[:, 1]), label=name)
        axes.plot(points[:, 0], points[:, 1], color=line.get_color(), alpha=0.2, linewidth=0.5)
    axes.set(xlabel="training step", ylabel="loss", yscale="log")
    if names:
        axes.legend()
    _write(path, figure.savefig)


def smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mean of the finite values within a twentieth of the record around each; NaN where there are none."""
    reach, finite = max(1, len(values) // 40), np.isfinite(values)
    total = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0))])
    count = np.concatenate([[0], np.cumsum(finite)])
    low = np.maximum(np.arange(len(values)) - reach, 0)
    high = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    counted = count[high] - count[low]
    return np.where(counted, (total[high] - total[low]) / np.maximum(counted, 1), np.nan)


def _figure() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained", dpi=120)
    return figure, figure.add_subplot()


def _write(path: pathlib.Path, save: Any) -> None:
    # Renamed into place, so that a run stopped meanwhile leaves no half picture.
    draft = path.with_name(f".{path.name}")
    save(draft, format="png")
    draft.rename(path)
