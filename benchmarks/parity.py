"""Losses and gradients of a small transformer, the same on every chip: each objective beside values recorded on a CPU.

    python benchmarks/parity.py benchmarks/parity.json reward    # records this one anew, on this machine; without a name all

Weights, images and labels are NumPy's draws and times JAX's, which are the same on every chip. Of the gradient the norm and the
product with a random direction are kept, by leaf.
"""

import functools
import json
import pathlib
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import PyTree
from tqdm import tqdm

from eqx_shortcut.models.dit import DiTConfig
from eqx_shortcut.objectives import OBJECTIVES, Objective, Reward
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import TrainState, init_state, loss_of_step, make_step
from eqx_shortcut.types import Batch

FILE = pathlib.Path(__file__).with_name("parity.json")
CONFIG = DiTConfig(hidden=16, depth=2, heads=2, patch=4, step="linear", precision="float32")
SHAPE, CLASSES, BATCH, STEPS = (8, 8, 1), 4, 64, 200


def brightness(x: jax.Array, cond: Any) -> jax.Array:
    """A reward."""
    return jnp.mean(x, axis=(1, 2, 3))


def objective(name: str) -> Objective:
    """The one of that name, with its own defaults."""
    return Reward(score="parity:brightness") if name == "reward" else OBJECTIVES[name]()


def begun(objective: Objective, config: DiTConfig, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step, each network and the average with weights of their own, of a trained one's size."""

    def made(key):
        build = functools.partial(_build, config)
        return init_state(build, tx, key, teacher=objective.stages > 0, extra=objective.extra, null=CLASSES)

    # From shapes alone: the initialisation would take as long to compile as the step.
    shapes, rest = eqx.partition(eqx.filter_eval_shape(made, jax.random.key(0)), lambda x: isinstance(x, jax.ShapeDtypeStruct))
    shapes = eqx.tree_at(lambda s: s.key, shapes, None)
    state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    state = eqx.tree_at(lambda s: s.networks, state, _drawn(shapes.networks))
    state = eqx.tree_at(lambda s: s.key, state, jax.random.key(0), is_leaf=lambda leaf: leaf is None)
    state = eqx.combine(state, rest)
    memory = objective.memory(SHAPE)
    return eqx.tree_at(lambda s: s.networks.memory, state, memory, is_leaf=lambda leaf: leaf is None)


def _build(config, key):
    return config.build(SHAPE, CLASSES, key=key)


def _drawn(shapes: PyTree) -> PyTree:
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.standard_normal(leaf.shape), leaf.dtype), shapes)


def examples() -> Batch:
    """Images and labels."""
    rng = np.random.default_rng(3)
    return Batch(jnp.asarray(rng.standard_normal((BATCH, *SHAPE)), jnp.float32), jnp.arange(BATCH) % CLASSES)


def values(objective: Objective) -> dict[str, Any]:
    """Loss, and norm and product with a random direction of each leaf of its gradient, in float32 throughout."""
    state, batch = begun(objective, CONFIG, AdamW().build(STEPS)), examples()

    @eqx.filter_jit
    def compute(state, batch):
        _, loss_fn = loss_of_step(objective, (batch, lambda raw, _: raw), state, STEPS)
        (loss, _), gradient = eqx.filter_value_and_grad(loss_fn, has_aux=True)(state.networks.trained)
        return loss, gradient

    with jax.default_matmul_precision("highest"):
        loss, gradient = compute(state, batch)
    rng = np.random.default_rng(4)
    leaves = [np.asarray(leaf, np.float64).ravel() for leaf in jax.tree.leaves(gradient)]
    along = [float(leaf @ rng.choice([-1.0, 1.0], leaf.size)) for leaf in leaves]
    return {"loss": float(loss), "norms": [float(np.linalg.norm(leaf)) for leaf in leaves], "along": along}


def differences(found: dict[str, Any], kept: dict[str, Any]) -> dict[str, float]:
    """Of the loss over the loss, and of the gradient over its norm: the largest of all leaves' norms and products."""
    norm = float(np.linalg.norm(kept["norms"]))
    apart = [np.abs(np.subtract(found[name], kept[name])).max() for name in ("norms", "along")]
    return {
        "loss, relative difference": abs(found["loss"] - kept["loss"]) / abs(kept["loss"]),
        "gradient, relative difference": float(max(apart)) / norm,
    }


def trained(objective: Objective, config: DiTConfig, steps: int) -> dict[str, Any]:
    """First and last loss of a run of two steps or more, and the steps that were skipped since something was not finite."""
    tx, batch = AdamW(lr=1e-3, clip=1.0).build(steps), examples()
    state = begun(objective, config, tx)
    step = make_step(objective, tx, prepare=lambda raw, _: raw, ema_decay=0.9, steps=steps)
    state, first = step(state, batch)
    for _ in range(steps - 1):
        state, last = step(state, batch)
    return {"first loss": float(first["loss"]), "last loss": float(last["loss"]), "skipped": int(state.skipped)}


def main() -> None:
    """Records the objectives that are named, or all."""
    path, names = pathlib.Path(sys.argv[1]), sys.argv[2:] or list(OBJECTIVES)
    kept = json.loads(path.read_text()) if path.exists() else {}
    for name in tqdm(names, unit="objective"):
        kept[name] = {quantity: _rounded(value) for quantity, value in values(objective(name)).items()}
        path.write_text(json.dumps(kept) + "\n")


def _rounded(value: Any) -> Any:
    return [_rounded(item) for item in value] if isinstance(value, list) else float(f"{value:.7g}")


if __name__ == "__main__":
    main()
