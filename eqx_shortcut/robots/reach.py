"""Reaching around an obstacle in the plane: above or below, as good both, so that their mean runs into it; without files."""

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from .. import ranges, storage
from ..data.memory import ArraySource
from ..ranges import Natural, Several

if TYPE_CHECKING:
    from ..experiment import Quality
    from ..trained import Trained

RADIUS, POINTS = 0.2, 8
"""Radius of the obstacle, a disc around 0, and the number of points of a path."""

Paths = Float[np.ndarray, "paths points 2"]


class Ends(NamedTuple):
    """Where paths start, left of the obstacle, and where they go, right of it."""

    start: Float[np.ndarray, "paths 2"]
    goal: Float[np.ndarray, "paths 2"]


def drawn(count: int, seed: int) -> tuple[Paths, Ends]:
    """Paths of a teacher, an arc above or below with probability 1/2, and their ends."""
    rng = np.random.default_rng(seed)
    start, goal = (np.stack([np.full(count, x), rng.uniform(-0.2, 0.2, count)], axis=1) for x in (-1.0, 1.0))
    share = np.linspace(0, 1, POINTS)[:, None]
    height = rng.choice([-1.0, 1.0], (count, 1)) * rng.uniform(0.8, 1.0, (count, 1))
    paths = start[:, None] + share * (goal - start)[:, None]
    paths[..., 1] += height * np.sin(np.pi * share[:, 0])
    return paths.astype(np.float32), Ends(start.astype(np.float32), goal.astype(np.float32))


def clear(paths: Paths) -> Bool[np.ndarray, " paths"]:
    """Whether a path stays out of the obstacle, between its points, too."""
    begin, way = paths[:, :-1], np.diff(paths, axis=1)
    nearest = np.clip(-(begin * way).sum(-1) / np.maximum((way**2).sum(-1), 1e-12), 0, 1)
    return np.linalg.norm(begin + nearest[..., None] * way, axis=-1).min(axis=1) > RADIUS


def above(paths: Paths) -> Bool[np.ndarray, " paths"]:
    """Whether a path is on the upper side half way."""
    return paths[:, POINTS // 2 - 1 : POINTS // 2 + 1, 1].mean(axis=1) > 0


def measured(paths: Paths, ends: Ends) -> dict[str, float]:
    """Shares of paths that arrive, within 0.1 of start and goal, without collision, and of those that are above."""
    errors = [np.linalg.norm(paths[:, i] - end, axis=1) for i, end in ((0, ends.start), (-1, ends.goal))]
    good = clear(paths) & (np.max(errors, axis=0) < 0.1)
    return {"success": float(good.mean()), "above": float(above(paths[good]).mean()) if good.any() else float("nan")}


@dataclasses.dataclass(frozen=True)
class Reach(ranges.Checked):
    """Paths around an obstacle, each for its start and goal; half go above it, half below."""

    count: Several = 4096
    """Paths to learn from (2 or more)."""
    seed: Natural = 0
    """Seed of the paths (0 or more)."""

    def build(self) -> tuple[ArraySource, ArraySource]:
        """Paths to train on, and held-out paths."""
        paths, ends = drawn(self.count, self.seed)
        return ArraySource(paths, ends._asdict()).build()

    def judge(self, model: "Trained", quality: "Quality", folder: storage.Path) -> dict[str, Any]:
        """Success and side of a path for each of `quality.count` pairs of ends, by number of steps; draws paths.png."""
        import jax

        from ..trained import sample

        real, ends = drawn(quality.count, self.seed + 1)
        key, found = jax.random.key(quality.seed), {}
        for steps in quality.steps:
            found[steps] = np.asarray(sample(model, key, quality.count, steps=steps, conditions=ends._asdict()))
        draw(found, folder / "paths.png")
        return {
            "protocol": {
                "success": "arrives without collision",
                "samples": quality.count,
                "floor": "the teacher's paths",
                "training step": model.step,
                "seed of noise": quality.seed,
            },
            "held_out": measured(real, ends),
            "results": [{"steps": steps, **measured(paths, ends)} for steps, paths in found.items()],
        }


def draw(found: dict[int, Paths], path: storage.Path, shown: int = 60) -> None:
    """Writes a picture of some paths by number of steps; those that collide are red."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Circle

    from .. import figures

    figure = Figure(figsize=(3 * len(found), 3.2), layout="constrained", dpi=130)
    for axes, (steps, paths) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items(), strict=True):
        axes.add_patch(Circle((0, 0), RADIUS, color="0.75"))
        for way, free in zip(paths[:shown], clear(paths[:shown]), strict=True):
            axes.plot(*way.T, color="C0" if free else "C3", alpha=0.35, linewidth=1)
        axes.set_title(f"{steps} step{'s'[: steps > 1]}: {clear(paths).mean():.0%} without collision", fontsize=9)
        axes.set(xlim=(-1.2, 1.2), ylim=(-1.4, 1.4), xticks=[], yticks=[], aspect="equal")
    figures.write_figure(path, figure)
