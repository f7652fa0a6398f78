"""Push-T as a source of data: what its policies are trained on, and how they are judged."""

import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import ranges, storage
from ..data.errors import DataError
from ..data.memory import ArraySource
from ..ranges import Count, Proper
from .demonstrations import PUBLISHED, SEEN, WINDOW, Episodes, observed, on_board, read_episodes, windows

if TYPE_CHECKING:
    from ..experiment import Quality
    from ..trained import Trained


@dataclasses.dataclass(frozen=True)
class PushT(ranges.Checked):
    """Windows of 16 actions of people, each for two observations; policies are judged by what they do in the simulator."""

    path: pathlib.Path | None = None
    """The published folder pusht_cchi_v7_replay.zarr, or an .npz of action, state and episode_ends."""
    held_out: Proper = 0.05
    """Share of the episodes held out (more than 0, below 1)."""
    people: Count | None = None
    """Episodes trained on, the first of a fixed order; None: all (1 or more)."""

    def episodes(self) -> Episodes:
        """All episodes of the file."""
        if self.path is None:
            raise DataError(f"no demonstrations are named: fetch {PUBLISHED}, and name what is in it with --data.path")
        return read_episodes(self.path)

    def parts(self, episodes: Episodes) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Spans of the episodes to train on, and of those held out, drawn once for all."""
        spans = episodes.spans
        if len(spans) < 2:
            raise DataError(f"{self.path} has 1 episode, and one must be held out: give at least 2")
        order = np.random.default_rng(0).permutation(len(spans))
        cut = min(max(1, round(len(spans) * self.held_out)), len(spans) - 1)
        return [spans[i] for i in order[cut:][: self.people]], [spans[i] for i in order[:cut]]

    def build(self) -> tuple[ArraySource, ArraySource]:
        """Windows to train on, and those of the episodes held out."""
        found = self.episodes()

        def rows(spans):
            steps = np.concatenate([windows(*span) for span in spans])
            return ArraySource(on_board(found.action[steps]), observed(found.state[steps[:, :SEEN]]))

        train, held_out = self.parts(found)
        return rows(train), rows(held_out)

    def blank(self) -> ArraySource:
        """One window of zeros, for `--dry-run`."""
        return ArraySource(np.zeros((1, WINDOW, 2), np.float32), observed(np.zeros((1, SEEN, 5), np.float32)))

    def judge(self, model: "Trained", quality: "Quality", folder: storage.Path) -> dict[str, Any]:
        """Scores of `quality.count` episodes from fixed starts by number of steps, and those of people that were held out.

        An episode in the fewest and in the most steps, side by side, is drawn in episode.gif and episode.png.

        The episodes of each number of steps are kept in FOLDER/episodes, so that an evaluation that was stopped goes on.
        """
        from .judging import animate, judged, summary
        from .simulation import people

        protocol = {"score": "best coverage of the place over 0.95, clipped at 1", "samples": quality.count}
        results = [judged(model, steps, quality, folder / "episodes") for steps in quality.steps]
        episodes = self.episodes()
        held_out = summary(people(episodes, self.parts(episodes)[1]))
        animate([(model, steps) for steps in sorted({min(quality.steps), max(quality.steps)})], folder)
        return {
            "protocol": {**protocol, "floor": "people, replayed", "training step": model.step, "seed of noise": quality.seed},
            "held_out": held_out,
            "results": results,
        }
