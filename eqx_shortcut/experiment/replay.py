"""One step of a run computed again from the checkpoint before it, layer by layer."""

import contextlib

import numpy as np

from .. import storage
from ..progress import bar
from . import health, log
from .checks import check_data, check_record
from .records import layers_of
from .run import Run

PARTS = ("weights", "gradient", "update")
"""Columns of the table of layers."""


def replay(run: Run, number: int) -> None:
    """Prints loss, norm of the gradient and layers of step `number` of a run, computed with its batches and keys.

    Nothing is written. On the devices of the run every number is the run's to the bit, which is said where it is on record.
    Raises ValueError for a step that the run does not have.
    """
    if number > run.config.steps:
        raise ValueError(f"--replay {number}: the run has {run.config.steps} steps, name one of them")
    check_data(run)
    check_record(run.folder / "config.json", run.record)
    with contextlib.closing(run.loader()) as loader:
        state = run.restore(run.checkpoints(), loader, before=number) if run.begun else None
        state = run.first() if state is None else state
        start, step = int(state.step), run.step()
        print(f"{run.folder}: replaying step {number} from step {start}")
        before = range(start + 1, number)
        for _ in bar(before, desc="steps before it", unit="step", quiet=not before):
            state, _ = step(state, next(loader))
        raw = next(loader)
        others = {"average": state.networks.ema, "teacher": state.networks.teacher, "weak": state.networks.weak}
        found = {name: health.layers(network) for name, network in others.items() if network is not None}
        found |= layers_of(run)(state, raw)
        asked = health.make_activations(run.config.objective, prepare=run.prepare, steps=run.config.steps)(state, raw)
        _, metrics = step(state, raw)
    print(in_record(run.folder, number, {name: float(value) for name, value in metrics.items()}))
    print(table(found, asked))
    print(verdict(found, asked))


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
    forward = {name: found[name] for name in ("batch", "weights", "average", "teacher", "weak") if name in found}
    forward |= {f"activations of {name}": layers for name, layers in asked.items()}
    for part, layers in forward.items():
        if layer := health.first_bad(layers):
            return f"first not finite: {part}, {layer}"
    for part in ("gradient", "update"):
        if layer := health.first_bad(found[part], backward=True):
            return f"first not finite: {part}, {layer} (computed from the last layer to the first)"
    return "every number is finite"
