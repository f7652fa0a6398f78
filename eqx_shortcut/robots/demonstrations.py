"""Human demonstrations of Push-T: a T is pushed by a point onto its place (Chi et al. 2023, Diffusion Policy; MIT licence)."""

import dataclasses
import pathlib
import zipfile
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from .. import storage
from ..data.errors import DataError

if TYPE_CHECKING:
    from ..experiment import Quality
    from ..trained import Trained

WINDOW, SEEN, EXECUTED = 16, 2, 8
"""Actions of a window, observations before and at its second one, and actions done, from the second on, before the next."""
BOARD = 512.0
"""Side of the board, pixels."""
OBSERVED = SEEN * 6
"""Numbers in an observation."""
PUBLISHED = "https://diffusion-policy.cs.columbia.edu/data/training/pusht.zip"


class Episodes(NamedTuple):
    """Steps of several episodes one after another; the state is agent x y, block x y and the block's angle in rad."""

    action: Float[np.ndarray, "steps 2"]
    state: Float[np.ndarray, "steps 5"]
    ends: Int[np.ndarray, " episodes"]

    @property
    def spans(self) -> list[tuple[int, int]]:
        """First step and end of each episode."""
        return list(zip([0, *self.ends[:-1].tolist()], self.ends.tolist(), strict=True))


def read_episodes(path: pathlib.Path) -> Episodes:
    """Episodes of an .npz with `action`, `state` and `episode_ends`, or of the published zarr folder.

    Raises DataError, in a sentence, where they are missing, damaged, or contradict themselves.
    """
    if not path.exists():
        raise DataError(f"no file {path}: fetch {PUBLISHED}, unpack it, and name pusht_cchi_v7_replay.zarr in it")
    try:
        action, state, ends = _zarr(path) if path.is_dir() else _npz(path)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is damaged, or no file of demonstrations ({error}): fetch it again") from error
    for name, values, size in (("action", action, 2), ("state", state, 5)):
        if values.ndim != 2 or values.shape[1] != size:
            raise DataError(f"{name} of {path} is of shape {values.shape}: Push-T has {size} numbers a step")
        if not (finite := np.isfinite(values).all(axis=1)).all():
            raise DataError(f"{name} of {path} is not finite at step {np.argmin(finite)}: leave that episode out")
    if not len(ends) or (np.diff(ends, prepend=0) < 1).any():
        raise DataError(
            f"episode_ends of {path} do not rise, so that episodes overlap or are empty: number their ends in order"
        )
    if not len(action) == len(state) == ends[-1]:
        counts = f"{len(action)} actions and {len(state)} states for episodes that end at {ends[-1]}"
        raise DataError(f"{path} has {counts}: give one of each a step")
    return Episodes(action.astype(np.float32), state.astype(np.float32), ends)


def _npz(path: pathlib.Path) -> Any:
    with path.open("rb") as stored, np.load(stored) as file:  # which would leave a damaged file open
        return file["action"], file["state"], file["episode_ends"]


def _zarr(path: pathlib.Path) -> Any:
    try:
        import zarr  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise DataError(f"{path} is a zarr folder: pip install 'eqx_shortcut[robots]'") from error
    root: Any = zarr.open_group(str(path), mode="r")
    return root["data/action"][:], root["data/state"][:], root["meta/episode_ends"][:]


def observed(states: Float[np.ndarray, "*rows seen 5"]) -> dict[str, Float[np.ndarray, "*rows seen numbers"]]:
    """What a policy is shown of states: positions in [-1, 1], and the angle by cosine and sine."""
    angle = states[..., 4:]
    block = np.concatenate([on_board(states[..., 2:4]), np.cos(angle), np.sin(angle)], axis=-1)
    return {"agent": on_board(states[..., :2]).astype(np.float32), "block": block.astype(np.float32)}


def on_board(pixels: Float[np.ndarray, "*rows 2"]) -> Float[np.ndarray, "*rows 2"]:
    """Pixels as [-1, 1]."""
    return pixels / (BOARD / 2) - 1


def in_pixels(actions: Float[np.ndarray, "*rows 2"]) -> Float[np.ndarray, "*rows 2"]:
    """The inverse of `on_board`, kept on the board."""
    return np.clip((actions + 1) * (BOARD / 2), 0, BOARD)


def windows(first: int, end: int) -> Int[np.ndarray, "windows steps"]:
    """Steps of all windows of an episode, padded by its first step once and by its last up to 7 times, as by its authors."""
    starts = np.arange(first - SEEN + 1, max(first - SEEN + 2, end - WINDOW + EXECUTED))
    return np.clip(starts[:, None] + np.arange(WINDOW), first, end - 1)


@dataclasses.dataclass(frozen=True)
class PushT:
    """Windows of 16 actions of people, each for two observations; policies are judged by what they do in the simulator."""

    path: pathlib.Path | None = None
    """The published folder pusht_cchi_v7_replay.zarr, or an .npz of action, state and episode_ends."""
    held_out: float = 0.05
    """Share of the episodes held out (above 0, below 1)."""
    people: int | None = None
    """Episodes trained on, the first of a fixed order; None: all."""

    def __post_init__(self):
        if not 0 < self.held_out < 1:
            raise ValueError(f"--data.held-out {self.held_out}: use a share above 0 and below 1")
        if self.people is not None and self.people < 1:
            raise ValueError(f"--data.people {self.people}: use 1 or more")

    def episodes(self) -> Episodes:
        """All of them."""
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

    def build(self) -> Any:
        """Windows to train on, and those of the episodes held out."""
        from ..data.memory import ArraySource

        found = self.episodes()

        def rows(spans):
            steps = np.concatenate([windows(*span) for span in spans])
            return ArraySource(on_board(found.action[steps]), observed(found.state[steps[:, :SEEN]]))

        train, held_out = self.parts(found)
        return rows(train), rows(held_out)

    def blank(self) -> Any:
        """One window of nothing, for `--dry-run`."""
        from ..data.memory import ArraySource

        return ArraySource(np.zeros((1, WINDOW, 2), np.float32), observed(np.zeros((1, SEEN, 5), np.float32)))

    def judge(self, model: "Trained", quality: "Quality", folder: storage.Path) -> dict[str, Any]:
        """Scores of `quality.count` episodes from fixed starts by number of steps, and those of people that were held out.

        An episode in the fewest and in the most steps, side by side, is drawn in episode.gif and episode.png.

        The episodes of each number of steps are kept in FOLDER/episodes, so that an evaluation that was stopped goes on.
        """
        from .judging import animate, judged, people_scored

        protocol = {"score": "best coverage of the place over 0.95, clipped at 1", "episodes": quality.count}
        results = [judged(model, steps, quality, folder / "episodes") for steps in quality.steps]
        people = people_scored(self.episodes(), self)
        animate([(model, steps) for steps in sorted({min(quality.steps), max(quality.steps)})], folder)
        return {
            "protocol": {**protocol, "floor": "people, replayed", "training step": model.step, "seed of noise": quality.seed},
            "held_out": people,
            "results": results,
        }
