"""Push-T in its simulator, `gym-pusht`: replays of people, and policies on many boards at once."""

import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from .demonstrations import EXECUTED, SEEN, Episodes, in_pixels, observed

LIMIT = 300
"""Steps after which an episode ends."""
STARTS = 100_000
"""Seed of the first start of an evaluation, as its authors have it."""

Act = Callable[[Any], Float[np.ndarray, "boards actions 2"]]


class Episode(NamedTuple):
    """Coverage of the target over 0.95, clipped at 1, after each step; states; and pictures if they were asked for."""

    coverage: Float[np.ndarray, " steps"]
    states: Float[np.ndarray, "steps 5"]
    pictures: list[np.ndarray]

    @property
    def score(self) -> float:
        """The best coverage."""
        return float(self.coverage.max(initial=0))


def board() -> Any:
    """A board whose reset gives the state that was asked for; raises ValueError if the simulator is not installed."""
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        from gym_pusht.envs.pusht import PushTEnv  # pyright: ignore[reportMissingImports]  # an extra
    except ImportError as error:
        raise ValueError(f"the simulator of Push-T is not installed ({error}): pip install 'eqx_shortcut[robots]'") from error

    class Board(PushTEnv):
        def _set_state(self, state: Any) -> None:
            # Setting the angle turns the block about its centre of mass, which moves it: first the angle.
            self.agent.position = [float(value) for value in state[:2]]
            self.block.angle = float(state[4])
            self.block.position = [float(value) for value in state[2:4]]
            self.space.step(self.dt)

    return Board(visualization_width=192, visualization_height=192)


def replay(action: Float[np.ndarray, "steps 2"], start: Float[np.ndarray, " 5"]) -> Episode:
    """Simulates recorded actions from a recorded state."""
    env = board()
    env.reset(options={"reset_to_state": start})
    coverage, states = [], []
    for target in action.astype(np.float64):
        state, reward, _, _, _ = env.step(target)
        coverage.append(reward)
        states.append(state)
    return Episode(np.array(coverage), np.array(states), [])


def people(episodes: Episodes, spans: Sequence[tuple[int, int]]) -> list[float]:
    """Scores of recorded episodes, replayed."""
    return [replay(episodes.action[a:b], episodes.state[a]).score for a, b in spans]


def roll_out(
    act: Act,
    seeds: Sequence[int],
    *,
    limit: int = LIMIT,
    pictures: bool = False,
    note: Callable[[int], Any] = lambda steps: None,
) -> list[Episode]:
    """Episodes of a policy from the starts of these seeds, all boards in one call of `act`; ends with success or `limit` steps.

    `act` takes `observed` states of all boards, of the last two steps each, and gives actions in [-1, 1].
    """
    boards = [board() for _ in seeds]
    states = [[env.reset(seed=seed)[0]] * SEEN for env, seed in zip(boards, seeds, strict=True)]
    coverage: list[list[float]] = [[] for _ in boards]
    shown: list[list[np.ndarray]] = [[env.render()] if pictures else [] for env in boards]
    going = set(range(len(boards)))
    for step in range(0, limit, EXECUTED):
        actions = in_pixels(act(observed(np.array([seen[-SEEN:] for seen in states]))).astype(np.float64))
        for i in sorted(going):
            for target in actions[i, : limit - step]:
                state, reward, done, _, _ = boards[i].step(target)
                states[i].append(state)
                coverage[i].append(reward)
                shown[i] += [boards[i].render()] if pictures else []
                if done:
                    going.remove(i)
                    break
        note(min(limit, step + EXECUTED))
        if not going:
            break
    return [Episode(np.array(c), np.array(s[SEEN:]), p) for c, s, p in zip(coverage, states, shown, strict=True)]


def milliseconds(act: Act, *, times: int = 20) -> float:
    """Median time of a decision for one board, after the first."""
    seen, taken = observed(np.full((1, SEEN, 5), 256.0)), []
    for _ in range(times + 1):
        begin = time.perf_counter()
        act(seen)
        taken.append(1000 * (time.perf_counter() - begin))
    return float(np.median(taken[1:]))
