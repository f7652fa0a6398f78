"""Human demonstrations of Push-T: a T is pushed by a point onto its place (Chi et al. 2023, Diffusion Policy; MIT licence)."""

import pathlib
import zipfile
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from ..data.errors import DataError

WINDOW, SEEN, EXECUTED = 16, 2, 8
"""Actions of a window; states seen, the last of them at its second action; actions done, from the second on, before it is
planned anew."""
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
    if ends.ndim != 1 or ends.dtype.kind not in "iu":
        raise DataError(f"episode_ends of {path} are {ends.dtype} of shape {ends.shape}: give whole numbers, one an episode")
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
    """A policy's observation of states: positions in [-1, 1], and the angle by cosine and sine."""
    angle = states[..., 4:]
    block = np.concatenate([on_board(states[..., 2:4]), np.cos(angle), np.sin(angle)], axis=-1)
    return {"agent": on_board(states[..., :2]).astype(np.float32), "block": block.astype(np.float32)}


def on_board(pixels: Float[np.ndarray, "*rows 2"]) -> Float[np.ndarray, "*rows 2"]:
    """Positions in pixels, scaled to [-1, 1]."""
    return pixels / (BOARD / 2) - 1


def in_pixels(actions: Float[np.ndarray, "*rows 2"]) -> Float[np.ndarray, "*rows 2"]:
    """The inverse of `on_board`, kept on the board."""
    return np.clip((actions + 1) * (BOARD / 2), 0, BOARD)


def windows(first: int, end: int) -> Int[np.ndarray, "windows steps"]:
    """Steps of all windows of an episode, padded by its first step once and by its last up to 7 times, as by its authors."""
    starts = np.arange(first - SEEN + 1, max(first - SEEN + 2, end - WINDOW + EXECUTED))
    return np.clip(starts[:, None] + np.arange(WINDOW), first, end - 1)
