"""Pictures of a model of points in the plane: its map of one step, its way in many, its samples."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matplotlib.figure import Figure

from . import figures, storage
from .trained import Trained, noise, sample_from, trajectory

STEPS = (1, 2, 4, 128)
SHOWN, PATHS, REACH = 3000, 150, 2.6
"""Points and ways drawn, and half the side of each picture."""
RINGS = np.sqrt(-2 * np.log(1 - np.array([0.05, 0.2, 0.4, 0.6, 0.8, 0.95])))
"""Radii within which those shares of the noise lie."""
RAYS = 2 * np.pi * np.arange(24) / 24


def draw(path: storage.Path, model: Trained, points: Float[np.ndarray, "n 2"]) -> None:
    """Writes the picture: above the noise, the map of one step, the way of the finest sampler and the data; below samples."""
    steps, key, net = max(STEPS), jax.random.key(0), lines()
    start = np.asarray(noise(model, key, jnp.arange(SHOWN)))
    mapped = np.asarray(sample_from(model, key, jnp.asarray(net.reshape(-1, 2)))).reshape(net.shape)
    moments = sorted({round(i * steps / 32) for i in range(33)})
    way = np.asarray(trajectory(model, key, jnp.asarray(start[:PATHS]), steps, points=moments).x)
    figure = Figure(figsize=(12, 6.6), layout="constrained", dpi=130)
    figure.suptitle(f"{type(model.objective).__name__} after {model.step:,} training steps")
    (start_axes, one, paths, data), below = figure.subplots(2, 4)
    curves(start_axes, net, net)
    curves(one, mapped, net)
    curves(paths, way.swapaxes(0, 1), np.broadcast_to(way[:1], way.shape).swapaxes(0, 1), alpha=0.6)
    paths.scatter(*way[-1].T, s=7, c=colours(way[0]), linewidths=0, zorder=3)
    data.scatter(*points[:SHOWN].T, s=3, c="0.35", linewidths=0, rasterized=True)
    titles = ["noise, 5 to 95 %", "its map in one step", f"the way in {steps} steps", "data"]
    for axes, n in zip(below, STEPS, strict=True):
        samples = np.asarray(sample_from(model, key, jnp.asarray(start), n))
        axes.scatter(*samples.T, s=3, c=colours(start), linewidths=0, rasterized=True)
        titles.append(f"{n} step{'s'[: n > 1]}")
    for axes, text in zip(figure.axes, titles, strict=True):
        axes.set_title(text, fontsize=11)
        axes.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), xticks=[], yticks=[], aspect="equal")
        axes.spines[:].set_color("0.85")
    figures.write_figure(path, figure)


def lines() -> Float[np.ndarray, "lines points 2"]:
    """Circles and rays in the plane of the noise."""
    turn, outward = np.linspace(0, 2 * np.pi, 121), np.linspace(RINGS[0], RINGS[-1], 121)
    rings = [radius * np.stack([np.cos(turn), np.sin(turn)], axis=1) for radius in RINGS]
    rays = [outward[:, None] * np.array([[np.cos(angle), np.sin(angle)]]) for angle in RAYS]
    return np.stack([*rings, *rays]).astype(np.float32)


def curves(
    axes: Any, at: Float[np.ndarray, "lines points 2"], noise: Float[np.ndarray, "lines points 2"], **options: Any
) -> None:
    """Lines through the points `at`, each piece in the colour of the noise at its beginning."""
    from matplotlib.collections import LineCollection

    pieces = np.stack([at[:, :-1], at[:, 1:]], axis=2).reshape(-1, 2, 2)
    axes.add_collection(LineCollection(list(pieces), colors=colours(noise[:, :-1].reshape(-1, 2)), linewidths=0.8, **options))


def colours(noise: Float[np.ndarray, "n 2"]) -> Float[np.ndarray, "n 3"]:
    """A hue for each direction from the middle."""
    angle = np.arctan2(noise[:, 1], noise[:, 0])
    return 0.5 + 0.38 * np.cos(angle[:, None] - 2 * np.pi * np.arange(3) / 3)
