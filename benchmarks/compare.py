"""Our training step beside that of kvfrans/shortcut-models: time, compilation and memory, in one process.

    python benchmarks/compare.py CHECKOUT                        # 30 rounds at each size, then B/2 compiled and not run
    python benchmarks/compare.py CHECKOUT --sizes tiny-16 --rounds 100 --remat none --unroll 4

Beside this project it needs what the other's step imports: `pip install flax ml_collections einops`. Both train the shortcut
objective, in float32, from the same weights, on the same batch, with AdamW and an average of the weights. First both networks
answer the same inputs, and their answers must agree. Then the two steps take turns, and each round gives one ratio of times.
"""

import argparse
import contextlib
import dataclasses
import functools
import importlib
import importlib.util
import io
import json
import pathlib
import sys
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import equinox as eqx
import jax
import jax.experimental.multihost_utils
import jax.numpy as jnp
import numpy as np

from eqx_shortcut import reference
from eqx_shortcut.models import NetworkField
from eqx_shortcut.models.dit import DiT, DiTConfig, preset
from eqx_shortcut.objectives import Networks, Shortcut
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import TrainState
from eqx_shortcut.types import Batch
from turns import Turn, alternate, compiled, our_update

CLASSES, SHAPE, EVERY, DECAY = 1000, (32, 32, 4), 8, 0.999
OPTIMIZER = AdamW(lr=1e-4, weight_decay=0.1)
SIZES = {"tiny-16": ("tiny", 16), "tiny-64": ("tiny", 64), "S/2-8": ("S/2", 8), "B/2-64": ("B/2", 64)}
COMPILED_ONLY = ("B/2-64",)
UNUSED = "tensorflow tensorflow_datasets wandb diffusers typeguard requests".split()


class Original(NamedTuple):
    """The other's step `update(state, None, images, labels)`, its first state, and its network `forward(params, ...)`."""

    update: Any
    state: Any
    forward: Any


@functools.cache
def imported(checkout: pathlib.Path) -> tuple[Any, Any]:
    """Its modules `train` and `model`; what they import, is absent and not needed here is there for the import alone."""
    sys.path.insert(0, str(checkout))
    # Names of JAX that its code uses and JAX no longer has.
    jax.tree_map = jax.tree.map  # pyright: ignore[reportAttributeAccessIssue]
    vars(importlib.import_module("jax._src.core")).update(as_named_shape=lambda shape: shape)
    absent = [name for name in UNUSED if importlib.util.find_spec(name) is None]
    sys.modules.update(dict.fromkeys(absent, MagicMock()))
    modules = importlib.import_module("train"), importlib.import_module("model")
    for name in absent:
        del sys.modules[name]
    return modules


def original(checkout: pathlib.Path, config: DiTConfig, batch: int, steps: int, dtype: Any = jnp.float32) -> Original:
    """The variables of `main` in its train.py at its first step, stopped there by data that end: the step is one of them."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.chdir(checkout):
        train, model = imported(checkout)
        data = np.zeros((batch, *SHAPE), np.float32), np.zeros(batch, np.int32)
        train.get_dataset, train.setup_wandb = (lambda *_: iter([data])), (lambda *_, **__: None)
        # Its step computes in bfloat16 unless its network is told otherwise.
        train.DiT = functools.partial(model.DiT, dtype=dtype)
        sizes = {"hidden_size": config.hidden, "depth": config.depth, "num_heads": config.heads, "patch_size": config.patch}
        sizes |= {"mlp_ratio": int(config.mlp_ratio), "num_classes": CLASSES, "denoise_timesteps": steps}
        sizes |= {"bootstrap_every": EVERY, "use_stable_vae": 0, "cfg_scale": 1.0, "target_update_rate": DECAY}
        sizes |= {"lr": OPTIMIZER.lr, "weight_decay": OPTIMIZER.weight_decay}
        train.FLAGS(["train"])
        train.FLAGS.batch_size = batch
        train.FLAGS.model.update(sizes)
        try:
            train.main(None)
        except StopIteration as end:
            assert end.__traceback__ is not None and end.__traceback__.tb_next is not None
            local_variables = end.__traceback__.tb_next.tb_frame.f_locals
    return Original(local_variables["update"], local_variables["train_state"], local_variables["train_state"].apply_fn)


def our_state(network: DiT) -> TrainState:
    """The state before the first step, with this network and its average."""
    zero, tx = jnp.zeros((), jnp.int32), OPTIMIZER.build(1000)
    opt_state = tx.init(eqx.filter(network, eqx.is_inexact_array))
    state = TrainState(zero, jax.random.key(0), Networks(network, network, null=network.classes), opt_state, zero, zero)
    # Copied, since what is donated must be there once.
    return jax.tree.map(lambda leaf: jnp.copy(leaf) if eqx.is_array(leaf) else leaf, state)


def compare(checkout: pathlib.Path, name: str, rounds: int, options: dict[str, Any]) -> dict[str, Any]:
    """Both programs' costs and, but for the sizes that are too large to run, the ratios of their times."""
    size, batch = SIZES[name]
    config = dataclasses.replace(preset(size), precision="float32", **options)
    # The finest number of steps of which each step size has a bootstrap row: both cost the same at any.
    steps = 2 ** min(7, batch // EVERY)
    other = original(checkout, config, batch, steps)
    key = jax.random.key(0)
    x, labels = jax.random.normal(key, (batch, *SHAPE)), jnp.arange(batch) % CLASSES
    flat = flattened(other.state.params)
    network = reference.from_parameters(flat, config, SHAPE, CLASSES)
    objective = Shortcut(steps=steps, bootstrap_every=EVERY)
    step, arrays = our_update(objective, OPTIMIZER.build(1000), our_state(network), DECAY)
    ours, our_costs = compiled(lambda: step.lower(arrays, Batch(x, labels)))
    theirs, their_costs = compiled(lambda: other.update.lower(other.state, None, x, labels))
    row = {"size": name, "ours": our_costs, "theirs": their_costs}
    row |= {f"{cost}_ratio": our_costs[cost] / their_costs[cost] for cost in our_costs}
    if name in COMPILED_ONLY:
        return row
    row["forward_difference"] = difference(other, network, x, labels)
    times = alternate(
        rounds,
        Turn(lambda state: ours(state, Batch(x, labels)), arrays),
        Turn(lambda state: theirs(state, None, x, labels), other.state),
    )
    ratios = times[:, 0] / times[:, 1]
    row |= {"ours_s": np.median(times[:, 0]), "theirs_s": np.median(times[:, 1])}
    return row | {"step_ratio_quartiles": np.percentile(ratios, [25, 50, 75]).tolist(), "rounds": rounds}


def flattened(params: Any) -> dict[str, Any]:
    """Names with `/` from its nested dictionaries."""
    paths, _ = jax.tree_util.tree_flatten_with_path(params)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def difference(other: Original, network: DiT, x: Any, labels: Any) -> float:
    """The largest difference of both networks' answers, with weights that are all other than zero."""
    key = jax.random.key(1)
    flat = {
        name: leaf + 0.05 * jax.random.normal(jax.random.fold_in(key, i), leaf.shape)
        for i, (name, leaf) in enumerate(sorted(flattened(other.state.params).items()))
    }
    network = reference.from_parameters(flat, network.config, network.shape, network.classes)
    t, d = jnp.full(len(x), 0.25), jnp.full(len(x), 0.125)
    with contextlib.redirect_stdout(io.StringIO()):
        answer = other.forward({"params": reference.nested(flat)}, x, t, -jnp.log2(d), labels)
    return float(jnp.max(jnp.abs(NetworkField(network)(x, t, d, labels) - answer)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=lambda path: pathlib.Path(path).resolve(), help="folder of kvfrans/shortcut-models")
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--remat", help="instead of the default of DiTConfig")
    parser.add_argument("--unroll", type=int, help="instead of the default of DiTConfig")
    arguments = parser.parse_args()
    options = {name: value for name in ("remat", "unroll") if (value := getattr(arguments, name)) is not None}
    for name in arguments.sizes:
        print(json.dumps(compare(arguments.checkout, name, arguments.rounds, options), indent=1), flush=True)


if __name__ == "__main__":
    main()
