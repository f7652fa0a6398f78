"""One step of a run computed again from the checkpoint before it, layer by layer."""

import contextlib
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from .. import compilation, storage
from ..checkpoint import Checkpoints
from ..data import prepare
from ..train import TrainState
from . import health, log
from .checks import check, check_data, check_record, described
from .config import Config, named
from .devices import chosen_mesh
from .examples import Data, open_data
from .records import layers_of
from .run import first_state, open_loader, training_step

PARTS = ("weights", "gradient", "update")
"""What a row of the table says of a layer."""


def replay(experiment: str, config: Config, number: int) -> None:
    """Prints loss, norm of the gradient and layers of step `number` of a run, computed with its batches and keys.

    Nothing is written. On the devices of the run every number is the run's to the bit, which is said where it is on record.
    """
    compilation.use_compilation_cache()
    mesh = chosen_mesh(config)
    with jax.set_mesh(mesh):
        check(config, mesh)
        folder = config.runs / experiment / (config.name or named(config.objective))
        if not storage.exists(folder / "config.json"):
            raise ValueError(f"{folder} holds no run to replay: name the run with --runs and --name, as it was trained")
        data = open_data(config, mesh)
        check_data(config, data)
        check_record(folder, described(experiment, config, data))
        replay_on(mesh, folder, config, data, number)


def replay_on(mesh: jax.sharding.Mesh, folder: storage.Path, config: Config, data: Data, number: int) -> None:
    """The step replayed on these devices."""
    with contextlib.closing(open_loader(config, data, mesh)) as loader:
        state = state_before(folder, config, data, mesh, loader, number)
        start, step = int(state.step), training_step(config, data, mesh)
        print(f"{folder}: replaying step {number} from step {start}")
        before = range(start + 1, number)
        for _ in tqdm(before, desc="steps before it", unit="step", dynamic_ncols=True, disable=not before):
            state, _ = step(state, next(loader))
        raw = next(loader)
        found = layers_of(config, data, mesh)(state, raw) | {name: health.layers(tree) for name, tree in others(state).items()}
        asked = activations(config, data, state, raw)
        _, metrics = step(state, raw)
    print(in_record(folder, number, {name: float(value) for name, value in metrics.items()}))
    print(table(found, asked))
    print(verdict(found, asked))


def state_before(
    folder: storage.Path, config: Config, data: Data, mesh: jax.sharding.Mesh, loader: Any, number: int
) -> TrainState:
    """The state of the newest whole checkpoint before a step, or of the start, with the loader at its place."""
    path = folder / "checkpoints"
    like = first_state(config, data.train, mesh, fresh=False)
    restored = Checkpoints(path).restore(like, before=number) if Checkpoints.any(path) else None
    if restored is None:
        return first_state(config, data.train, mesh, fresh=True)
    state, position, notes = restored
    if position:
        loader.set_state(position)
    for note in notes:
        print(f"{note}: replaying from the one before")
    return state


def others(state: TrainState) -> dict[str, Any]:
    """The networks of the state besides the one that is trained."""
    found = {"average": state.networks.ema}
    return found if state.networks.teacher is None else found | {"teacher": state.networks.teacher}


def activations(config: Config, data: Data, state: TrainState, raw: Any) -> dict[str, health.Layers]:
    """What each network that the loss asks answers, layer by layer."""
    to_batch = prepare(data.rows, mirror=data.mirror, labelled=not config.unconditional)
    return health.make_activations(config.objective, prepare=to_batch, steps=config.steps)(state, raw)


def in_record(folder: storage.Path, number: int, metrics: dict[str, float]) -> str:
    """The metrics of the step, and whether the run recorded the same."""
    said = ", ".join(f"{name} {value:.9g}" for name, value in ({"loss": metrics["loss"]} | metrics).items())
    line = next((line for line in log.read_lines(folder / "metrics.jsonl") if line["step"] == number), None)
    if line is None:
        return f"step {number}: {said}; the run has no record of this step"
    different = [name for name, value in metrics.items() if not np.array_equal(line.get(name, ()), value, equal_nan=True)]
    if not different:
        return f"step {number}: {said}; equal to the run's record to the bit"
    recorded = ", ".join(f"{name} {line.get(name)}" for name in different)
    return f"step {number}: {said}; the run recorded {recorded} instead"


def table(found: dict[str, health.Layers], asked: dict[str, health.Layers]) -> str:
    """Norm and largest magnitude of weights, gradient and update by layer; then of batch and activations."""
    parts = {part: health.rows(found[part]) for part in PARTS}
    lines = ["", f"{'layer':<24}" + "".join(f"{part + ' norm':>15}{'largest':>11}" for part in PARTS) + "   not finite"]
    for layer in parts["weights"]:
        cells = {part: rows[layer] for part, rows in parts.items()}
        numbers = "".join(f"{float(cell.norm):>15.4g}{float(cell.largest):>11.4g}" for cell in cells.values())
        lines.append(f"{layer:<24}{numbers}   " + ", ".join(f"{part} {int(c.bad):,}" for part, c in cells.items() if c.bad))
    lines += ["", f"{'batch and activations':<24}{'norm':>15}{'largest':>11}   not finite"]
    for name, layers in {"batch": found["batch"], **asked}.items():
        for layer, cell in health.rows(layers).items():
            bad = f"{int(cell.bad):,}" if cell.bad else ""
            lines.append(f"{name + ' ' + layer:<24}{float(cell.norm):>15.4g}{float(cell.largest):>11.4g}   {bad}")
    return "\n".join([*(line.rstrip() for line in lines), ""])


def verdict(found: dict[str, health.Layers], asked: dict[str, health.Layers]) -> str:
    """Where the first number that is not finite is, in the order of computation."""
    forward = {name: found[name] for name in ("batch", "weights", "average", "teacher") if name in found}
    forward |= {f"activations of {name}": layers for name, layers in asked.items()}
    for part, layers in forward.items():
        if layer := health.first_bad(layers):
            return f"first not finite: {part}, {layer}"
    for part in ("gradient", "update"):
        if layer := health.first_bad(found[part], backward=True):
            return f"first not finite: {part}, {layer} (computed from the last layer to the first)"
    return "every number is finite"
