"""Pictures: grids of images, and plots of quality and of the loss."""

import io
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped, UInt8

from . import storage

Points = Float[np.ndarray, " points"]

GAP = 4
"""Pixels between the images of a grid."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Colours that the colour-blind tell apart (Okabe and Ito 2008), and markers that a copy in grey shows too."""


def to_bytes(images: Shaped[np.ndarray, "*batch height width channels"]) -> UInt8[np.ndarray, "*batch height width channels"]:
    """Images in [-1, 1] as bytes, clipped and rounded."""
    return np.clip(np.round((np.asarray(images, np.float32) + 1) * 127.5), 0, 255).astype(np.uint8)


def grid(
    images: Shaped[np.ndarray, "rows columns height width channels"],
    path: storage.Path,
    *,
    labels: Sequence[str] = (),
    side: int = 64,
) -> None:
    """Writes a PNG of images in [-1, 1] in rows and columns, enlarged by a whole factor to about `side` pixels each.

    `labels` name the rows at the left edge.
    """
    import PIL.Image
    import PIL.ImageDraw

    picture = _sheet(images, side).convert("RGB")
    pitch = picture.height // len(images)
    margin = 8 + max((7 * len(label) for label in labels), default=-8)
    page = PIL.Image.new("RGB", (picture.width + margin, picture.height), "white")
    page.paste(picture, (margin, 0))
    draw = PIL.ImageDraw.Draw(page)
    for row, label in enumerate(labels):
        draw.text((4, row * pitch + (pitch - GAP) // 2 - 5), label, fill="black")
    _write(path, page.save)


def picture(image: Shaped[np.ndarray, "height width channels"], path: storage.Path) -> None:
    """Writes a PNG of one image in [-1, 1], pixel for pixel."""
    _write(path, _image(to_bytes(image)).save)


def animation(
    images: Shaped[np.ndarray, "frames rows columns height width channels"],
    path: storage.Path,
    *,
    side: int = 64,
    milliseconds: int = 80,
) -> None:
    """Writes a GIF that repeats for ever, each of its frames a grid of images in [-1, 1] shown for `milliseconds`."""
    frames = [_sheet(frame, side) for frame in images]
    options = {"save_all": True, "append_images": frames[1:], "duration": milliseconds, "loop": 0}
    _write(path, lambda draft, format: frames[0].save(draft, format=format, **options))


def _sheet(images: Shaped[np.ndarray, "rows columns height width channels"], side: int) -> Any:
    rows, columns, height, width, channels = images.shape
    zoom = max(1, side // height)
    pixels = np.repeat(np.repeat(to_bytes(images), zoom, axis=2), zoom, axis=3)
    pixels = np.pad(pixels, ((0, 0), (0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    return _image(
        pixels.transpose(0, 2, 1, 3, 4).reshape(rows * (height * zoom + GAP), columns * (width * zoom + GAP), channels)
    )


def _image(pixels: UInt8[np.ndarray, "height width channels"]) -> Any:
    import PIL.Image

    return PIL.Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)


def quality_plot(
    curves: Mapping[str, Mapping[Any, float | Sequence[float]]],
    path: storage.Path,
    *,
    measure: str,
    against: str = "sampling steps",
    floor: float | Sequence[float] | None = None,
) -> None:
    """Writes a plot of a distance against the number of steps or another one, one line a name, and the real-against-real floor.

    Several values at a number of steps, of several seeds, are drawn as their mean with a band from the smallest to the largest.
    The suffix of `path` says what is written: png, svg or pdf.
    """
    figure, axes = _figure()
    for (name, curve), color, marker in zip(curves.items(), itertools.cycle(COLOURS), itertools.cycle(MARKERS)):
        steps, values = sorted(curve), [np.atleast_1d(curve[n]) for n in sorted(curve)]
        axes.plot(steps, [v.mean() for v in values], color=color, marker=marker, markersize=5, label=name)
        if any(len(v) > 1 for v in values):
            low, high = [v.min() for v in values], [v.max() for v in values]
            axes.fill_between(steps, low, high, color=color, alpha=0.25, linewidth=0)
    _floors(axes.axhline, [] if floor is None else np.atleast_1d(floor))
    steps = sorted({n for curve in curves.values() for n in curve})
    axes.set(xscale="log", xticks=steps, xticklabels=[str(n) for n in steps], xlabel=against, ylabel=measure)
    low, high = axes.dataLim.intervaly
    if low > 0 and high > 2 * low:
        axes.set_yscale("log")
        _ticks(axes.yaxis)
    _frame(axes)
    if len(curves) > 4:
        figure.set_figwidth(8)
        figure.legend(loc="outside right upper", frameon=False)
    else:
        axes.legend(frameon=False)
    write_figure(path, figure)


def dot_plot(
    curves: Mapping[str, Mapping[int, Sequence[float]]],
    path: storage.Path,
    *,
    measure: str,
    steps: Sequence[int] = (1, 4, 128),
    floor: Sequence[float] = (),
) -> None:
    """Writes a plot of a distance with a line a name: the mean at each of these numbers of steps, from smallest to largest.

    It shows many names where the curves of `quality_plot` would cover each other.
    """
    figure, axes = _figure()
    figure.set_size_inches(7, 1.2 + 0.28 * len(curves))
    for n, color, marker in zip(steps, COLOURS, MARKERS, strict=False):
        drawn = [(row, np.asarray(curve[n])) for row, curve in enumerate(curves.values()) if curve.get(n)]
        if not drawn:
            continue
        for row, values in drawn:
            axes.plot([values.min(), values.max()], [row, row], color=color, linewidth=3, alpha=0.4, solid_capstyle="butt")
        means, places = [values.mean() for _, values in drawn], [row for row, _ in drawn]
        axes.plot(means, places, marker, color=color, markersize=6, label=f"{n} step{'s'[: n > 1]}")
    _floors(axes.axvline, floor)
    axes.set(xscale="log", xlabel=measure, yticks=range(len(curves)), yticklabels=list(curves))
    _ticks(axes.xaxis)
    _frame(axes)
    axes.invert_yaxis()
    figure.legend(loc="outside upper right", frameon=False, ncols=len(steps) + 1)
    write_figure(path, figure)


def _floors(line: Any, levels: Iterable[float]) -> None:
    for i, level in enumerate(levels):
        line(level, color="gray", linestyle="--", linewidth=1, zorder=1, label="" if i else "held-out data")


def _ticks(axis: Any) -> None:
    # A distance spans a fraction of a decade or several: the finest of these with few enough marks.
    low, high = axis.get_view_interval()
    for digits in ((1, 1.5, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5), (1, 2, 5), (1, 3), (1,)):
        decades = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [float(f"{digit}e{decade}") for decade in decades for digit in digits]
        if len(ticks := [tick for tick in ticks if low <= tick <= high]) <= 10:
            break
    axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])


def _frame(axes: Any) -> None:
    axes.minorticks_off()
    axes.grid(color="0.9", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def loss_plot(records: Sequence[Mapping[str, Any]], path: storage.Path) -> None:
    """Writes a plot of every loss in the records of a run, smoothed, over the raw values."""
    figure, axes = _figure()
    names = sorted({name for record in records for name in record if name.startswith("loss")})
    for name in names:
        points = np.array([(record["step"], record[name]) for record in records if name in record], np.float64)
        (line,) = axes.plot(points[:, 0], smoothed(points[:, 1]), label=name)
        axes.plot(points[:, 0], points[:, 1], color=line.get_color(), alpha=0.2, linewidth=0.5)
    for name in ("validation/loss", "validation_online/loss"):
        points = [(record["step"], record[name]) for record in records if name in record]
        if points:
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=0.8, label=name)
            names.append(name)
    axes.set(xlabel="training step", ylabel="loss", yscale="log")
    if names:
        axes.legend()
    _write(path, figure.savefig)


def metric_plot(records: Sequence[Mapping[str, Any]], prefix: str, path: storage.Path, *, measure: str) -> None:
    """Writes a plot of every metric PREFIX/NAME in the records of a run, one line a NAME in the order they first come."""
    figure, axes = _figure()
    names = list(dict.fromkeys(name for record in records for name in record if name.startswith(f"{prefix}/")))
    for name in names:
        points = np.array([(record["step"], record[name]) for record in records if name in record], np.float64)
        axes.plot(points[:, 0], _positive(points[:, 1]), marker="o", markersize=4, label=name.removeprefix(f"{prefix}/"))
    axes.set(xlabel="training step", ylabel=measure, yscale="log")
    if names:
        axes.legend()
    _write(path, figure.savefig)


def norms_plot(records: Sequence[Mapping[str, Any]], path: storage.Path) -> None:
    """Writes plots of the norms of weights, gradient and update by kind of layer against training steps, beside each other.

    Records hold `PART/LAYER`, a number or, of the blocks, a list: their geometric mean is a line, from the smallest to the
    largest a band.
    """
    from matplotlib.figure import Figure

    parts = list(dict.fromkeys(name.split("/")[0] for record in records for name in record if "/" in name))
    figure = Figure(figsize=(2 + 4 * len(parts), 4.5), layout="constrained", dpi=120)
    steps = [record["step"] for record in records]
    for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts, strict=True):
        names = [name for name in records[-1] if name.startswith(f"{part}/")]
        for number, name in enumerate(names):
            color, style = COLOURS[number % len(COLOURS)], ("-", "--", ":")[number // len(COLOURS) % 3]
            values = np.stack([np.atleast_1d(record.get(name, np.nan)) for record in records]).astype(np.float64)
            values = np.stack([_positive(column) for column in values.T])
            label = name.removeprefix(f"{part}/")
            axes.plot(steps, np.exp(np.log(values).mean(axis=0)), color=color, linestyle=style, linewidth=1.2, label=label)
            axes.fill_between(steps, values.min(axis=0), values.max(axis=0), color=color, alpha=0.15, linewidth=0)
        axes.set(xlabel="training step", yscale="log", title=f"norm of {part}")
        axes.grid(alpha=0.25)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    _write(path, figure.savefig)


def error_by_time_plot(
    panels: Mapping[str, Sequence[tuple[str, Points, Points]]], path: storage.Path, *, title: str = ""
) -> None:
    """Writes plots of squared error against time `t` beside each other, one scale for all; lines of a name have one colour.

    A line is its name, times and errors. Colours run from dark to light in the order in which names first come.
    """
    import matplotlib
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for lines in panels.values() for name, _, _ in lines))
    colours = matplotlib.colormaps["viridis"](np.linspace(0, 0.92, len(names)))
    figure = Figure(figsize=(1.2 + 4 * len(panels), 4), layout="constrained", dpi=120)
    columns = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (panel, lines) in zip(columns, panels.items(), strict=True):
        for name, x, y in lines:
            axes.plot(x, _positive(y), marker="o", markersize=3, linewidth=1.2, color=colours[names.index(name)], label=name)
        axes.set(xlabel="t", yscale="log", title=panel, xlim=(-0.03, 1))
        axes.grid(alpha=0.25)
    columns[0].set_ylabel("mean squared error")
    handles = {label: handle for axes in columns for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend([handles[name] for name in names], names, loc="outside right center", title="step size d")
    figure.suptitle(title)
    _write(path, figure.savefig)


def _positive(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    # What a logarithmic axis cannot show is left out.
    return np.where(np.asarray(values) > 0, values, np.nan)


def smoothed(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """Mean of the finite values within a twentieth of the record around each; NaN where there are none."""
    from scipy.ndimage import convolve1d

    window, finite = np.ones(2 * max(1, len(values) // 40) + 1), np.isfinite(values)
    total, count = (convolve1d(part, window, mode="constant") for part in (np.where(finite, values, 0), finite.astype(float)))
    return np.where(count > 0.5, total / np.maximum(count, 1), np.nan)


def _figure() -> Any:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained", dpi=120)
    return figure, figure.add_subplot()


def write_figure(path: storage.Path, figure: Any) -> None:
    """Writes a figure of matplotlib as its suffix says: png, svg or pdf."""
    import matplotlib

    # Text of a PDF as letters that can be searched; the same figure is the same file.
    with matplotlib.rc_context({"pdf.fonttype": 42, "svg.hashsalt": "eqx_shortcut"}):
        dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
        metadata = dated.get(path.suffix[1:].lower(), {})
        _write(path, lambda draft, format: figure.savefig(draft, format=format, metadata=metadata))


def _write(path: storage.Path, save: Any) -> None:
    picture = io.BytesIO()
    save(picture, format=path.suffix[1:].lower() or "png")
    storage.write(path, picture.getvalue())
