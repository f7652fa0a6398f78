"""Time and memory of a training step of each method over flow matching's, in one process, by turns.

    python benchmarks/cost.py digits --out costs.json     # all methods, as `python experiments/compare.py digits` trains them
    python benchmarks/cost.py digits --batch 160 --methods mean-flow drifting frechet reward    # all on as many rows
    python benchmarks/cost.py digits --size S/2 --side 32 --bootstrap-every 8 4 --rounds 4 # shortcut on a published size

Optimizer and average are included, guidance is not; distillation has a teacher. Prints a table and writes what it is made of.
"""

import argparse
import dataclasses
import importlib
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from eqx_shortcut.experiment.config import Config
from eqx_shortcut.models.dit import preset
from eqx_shortcut.objectives import FlowMatching, Shortcut
from eqx_shortcut.train import TrainState, init_state
from eqx_shortcut.types import Batch
from turns import Turn, alternate, compiled, our_update

sys.path.append(str(pathlib.Path(__file__).parents[1] / "experiments"))
methods = importlib.import_module("methods")

SHAPES = {"digits": (8, 8, 1), "fashion-mnist": (28, 28, 1), "cifar10": (32, 32, 3)}
CLASSES = 10
AFTER = {
    "frechet": methods.Method("objective:frechet --quality.steps 1"),
    "reward": methods.Method(f"objective:reward --objective.score cost:brightness {methods.steady('reward')}"),
}
"""Methods that only go on from another, and so are in no table of compare.py."""


def brightness(samples: Any, cond: Any) -> Any:
    """A reward that costs nothing."""
    return jnp.mean(samples, axis=(1, 2, 3))


def cases(given: argparse.Namespace) -> dict[str, Config]:
    """Settings of each step to time, flow matching first: all methods of the data, or shortcut models of a published size."""
    setting = methods.SETTINGS[given.data]
    first = methods.parsed(setting, setting.methods[methods.TEACHER])
    if given.size is None:
        known = setting.methods | AFTER
        chosen = dict.fromkeys((methods.TEACHER, *(given.methods or setting.methods)))
        every = {name: methods.parsed(setting, known[name]) for name in chosen if not known[name].pairs}
        return {name: dataclasses.replace(config, batch=given.batch or config.batch) for name, config in every.items()}
    first = dataclasses.replace(first, network=preset(given.size), objective=FlowMatching())
    every = {f"shortcut, every {n}": Shortcut(bootstrap_every=n) for n in given.bootstrap_every}
    return {methods.TEACHER: first} | {
        name: dataclasses.replace(first, objective=objective) for name, objective in every.items()
    }


def begun(config: Config, shape: tuple[int, int, int]) -> TrainState:
    """The state before the first step."""
    return init_state(
        lambda key: config.network.build(shape, CLASSES, key=key),
        config.optimizer.build(config.steps),
        jax.random.key(0),
        null=CLASSES,
        teacher=config.objective.stages > 0,
        extra=config.objective.extra,
        memory=config.objective.memory(shape),
    )


def measured(cases: dict[str, Config], shape: tuple[int, int, int], rounds: int) -> dict[str, dict[str, Any]]:
    """By name: seconds a step and their ratio to the first one's of the same round, temporaries, compilation."""
    turns, found = [], {}
    for name, config in tqdm(cases.items(), desc="compiling", unit="method", leave=False):
        batch = Batch(
            jax.random.normal(jax.random.key(1), (config.batch, *shape)), jnp.arange(config.batch) * CLASSES // config.batch
        )
        tx = config.optimizer.build(config.steps)
        step, arrays = our_update(config.objective, tx, begun(config, shape), config.ema_decay)
        program, found[name] = compiled(lambda step=step, arrays=arrays, batch=batch: step.lower(arrays, batch))
        turns.append(Turn(lambda state, program=program, batch=batch: program(state, batch), arrays))
    times = alternate(rounds, *turns, first=1)
    for i, row in enumerate(found.values()):
        row["step_s"] = float(np.median(times[:, i]))
        row["ratio_quartiles"] = np.percentile(times[:, i] / times[:, 0], [25, 50, 75]).tolist()
    return found


def table(found: dict[str, dict[str, Any]]) -> str:
    """Markdown, a row a method."""
    memory = found[methods.TEACHER]["temporaries_mib"]
    lines = ["| method | step over flow matching's: quartiles | temporaries over flow matching's | compiling, s of CPU |"]
    lines.append("|---|---|---|---|")
    for name, row in found.items():
        ratios = ", ".join(f"{ratio:.2f}" for ratio in row["ratio_quartiles"])
        lines.append(f"| {name} | {ratios} | {row['temporaries_mib'] / memory:.2f} | {row['compile_cpu_s']:.1f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=SHAPES)
    parser.add_argument("--methods", nargs="+", help="by default all")
    parser.add_argument("--size", help="a published size in place of the network of the data set: shortcut models alone")
    parser.add_argument("--bootstrap-every", nargs="+", type=int, default=[8], help="with --size")
    parser.add_argument("--side", type=int, help="other images than those of the data set: at 32 with four channels")
    parser.add_argument("--batch", type=int, help="rows of all methods; by default each has its own")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=pathlib.Path)
    given = parser.parse_args()
    shape = SHAPES[given.data] if given.side is None else (given.side, given.side, 4 if given.side == 32 else 1)
    costs = measured(cases(given), shape, given.rounds)
    print(table(costs))
    if given.out:
        command = " ".join(["python", "benchmarks/cost.py", *sys.argv[1:]])
        record = {
            "chip": jax.devices()[0].device_kind,
            "jax": jax.__version__,
            "data": given.data,
            "command": command,
            "results": costs,
        }
        given.out.parent.mkdir(parents=True, exist_ok=True)
        given.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
