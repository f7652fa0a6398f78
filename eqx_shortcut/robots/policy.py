"""A trained run as a policy: what a robot sees in, the actions to do next out."""

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..paths import variance_preserving
from ..trained import Trained, noise, sample_from
from ..types import Cond

Actions = Float[np.ndarray, "robots actions *shape"]


class Policy:
    """Plans a window of actions from an observation, and answers those numbered `first` to `first + execute - 1`: a receding
    horizon, compiled at its first call.

    `steps` evaluations of the network are a decision. With `warm` above 0 a later plan starts from the last one, moved on by
    what was done and noised to time `warm / steps`, and the first `warm` steps are left out; `reset` forgets it.
    """

    def __init__(self, model: Trained, *, steps: int = 1, first: int = 1, execute: int = 8, warm: int = 0, seed: int = 0):
        if not 0 <= first < first + execute <= model.shape[0]:
            raise ValueError(f"actions {first} to {first + execute - 1} of windows of {model.shape[0]}: choose some within")
        if not 0 <= warm < steps:
            raise ValueError(f"warm={warm} of steps={steps}: leave out fewer than there are")
        self._model, self._steps, self._warm, self._done = model, steps, warm, slice(first, first + execute)
        self._seed, self._plan, self._calls = seed, None, 0
        self._planned = self._compiled()

    def act(self, observation: Cond) -> Actions:
        """The actions to do next of each robot, for observations with the robots as first axis, in the units of training.

        Raises ValueError if a plan to start from is of another number of robots.
        """
        last, robots = self._plan if self._warm else None, len(jax.tree.leaves(observation)[0])
        if last is not None and len(last) != robots:
            raise ValueError(f"{robots} robots after a plan of {len(last)}: reset the policy, or make one for each number")
        self._plan = self._planned(self._calls, last, observation)
        self._calls += 1
        return np.asarray(self._plan[:, self._done])

    def reset(self) -> None:
        """Forgets the last plan, for the start of an episode."""
        self._plan, self._calls = None, 0

    def _compiled(self) -> Callable[..., Float[Array, "robots window *shape"]]:
        arrays, static = eqx.partition(self._model, eqx.is_array)
        steps, warm, moved = self._steps, self._warm, self._done.stop - self._done.start

        @jax.jit
        def plan(arrays, call, last, seen):
            model, count = eqx.combine(arrays, static), jax.tree.leaves(seen)[0].shape[0]
            key = jax.random.fold_in(jax.random.key(self._seed), call)
            x = noise(model, key, jnp.arange(count))
            if last is None:
                return sample_from(model, key, x, steps=steps, conditions=seen)
            t = jnp.float32(warm / steps)
            ahead = jnp.concatenate([last[:, moved:], jnp.repeat(last[:, -1:], moved, axis=1)], axis=1)
            share, left = variance_preserving(t) if model.objective.predicts_noise else (t, 1 - t)
            return sample_from(model, key, share * ahead + left * x, steps=steps, conditions=seen, done=warm)

        return lambda call, last, seen: plan(arrays, call, last, seen)
