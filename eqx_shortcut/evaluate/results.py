"""Results of finished runs, their evaluation.json: read, written, and put side by side by number of sampling steps."""

import json
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from .features import Features

TITLES = {
    "frechet": "pixel Frechet distance",
    "accuracy": "share that a classifier gives its label",
    "nearest": "median distance to the nearest training image",
}
"""Titles of measures in figures and tables, where they differ from their names."""


TIMES = "times of guidance"
"""The name in a protocol of the interval in which samples were guided."""


TRAINED = "training images"
"""The name in a protocol of the statistics that a run compares its own samples with."""


def caution(judges: Iterable[Features], trained_in: Sequence[str]) -> dict[str, str]:
    """What a protocol says where features that judge trained the model (see Objective.trained_in); empty where none did."""

    def trained(protocol: Mapping[str, str]) -> bool:
        return ("pixels" if protocol["network"].startswith("none, pixels") else protocol.get("weights")) in trained_in

    own = " and ".join(judge.name for judge in judges if trained(judge.protocol))
    return (
        {"caution": f"the samples were trained in the features of {own}, which therefore says nothing of them"} if own else {}
    )


class Row(NamedTuple):
    """Measures of a run at a number of sampling steps, their protocol, and the measures of held-out images (`floor`)."""

    steps: int
    measures: dict[str, float]
    protocol: dict[str, Any]
    floor: dict[str, float]


class Comparison(NamedTuple):
    """One measure of several runs: values by curve and number of steps, one a seed, and of real images, with their names."""

    measure: str
    curves: dict[str, dict[int, list[float]]]
    floors: dict[float, str]
    notes: list[str]


def compare(runs: Sequence[pathlib.Path], measure: str | None = None, names: Sequence[str] = ()) -> Comparison:
    """The runs as curves (see `compared`). Raises ValueError if one lacks the measure, or nothing was measured of it."""
    return compared({run: rows(run, read(run)) for run in runs}, measure, names)


def compared(found: Mapping[pathlib.Path, Sequence[Row]], measure: str | None = None, names: Sequence[str] = ()) -> Comparison:
    """A measure of several runs against sampling steps; runs of one name form one curve, by default those named NAME-SEED.

    Rows of a run that were measured differently (a guidance scale, say) are curves of their own; `notes` say what differs
    between runs. `measure` is by default the first that all have. Raises ValueError if one lacks it.
    """
    measure = measure or common(found)[0]
    curves: dict[str, dict[int, list[float]]] = {}
    kept: dict[pathlib.Path, list[Row]] = {}
    for i, (run, all_rows) in enumerate(found.items()):
        kept[run] = [row for row in all_rows if measure in row.measures]
        if not kept[run]:
            raise ValueError(f"{run} has no measure {measure}: it has {', '.join(_measures(all_rows))}")
        own = _differing(row.protocol for row in kept[run])
        for row in kept[run]:
            name = ", ".join([names[i] if names else stem(run), *(f"{key} {row.protocol.get(key)}" for key in own)])
            curves.setdefault(name, {}).setdefault(row.steps, []).append(row.measures[measure])
    first = {run: rows[0].protocol for run, rows in kept.items()}
    notes = [_note(key, first) for key in _differing(first.values())]
    judged = [row for rows in kept.values() for row in rows if measure in row.floor]
    floors = {float(f"{row.floor[measure]:.3g}"): _real(row.protocol) for row in judged}
    return Comparison(measure, curves, dict(sorted(floors.items())), notes)


def common(found: Mapping[pathlib.Path, Sequence[Row]]) -> list[str]:
    """The measures that all runs have, in order. Raises ValueError if there is none."""
    shared = [name for name in _measures(next(iter(found.values()))) if all(name in _measures(rows) for rows in found.values())]
    if not shared:
        listed = "; ".join(f"{run} has {', '.join(_measures(rows))}" for run, rows in found.items())
        raise ValueError(f"the runs have no measure in common: {listed}")
    return shared


def read(run: pathlib.Path) -> dict[str, Any]:
    """The contents of evaluation.json. Raises ValueError, with the command that helps, if there are no results."""
    if (found := read_results(run))["results"]:
        return found
    if (run / "quality.json").exists():
        raise ValueError(f"{run} holds quality.json of an earlier version: eqx-shortcut convert {run} reads it")
    raise ValueError(f"{run} holds no results, no evaluation.json: train or evaluate it first")


def rows(run: pathlib.Path, found: Mapping[str, Any]) -> list[Row]:
    """The rows of an evaluation.json, those of the command `evaluate` first. Raises ValueError if they cannot be read."""
    rows = []
    try:
        for result in sorted(found["results"], key=lambda result: result["protocol"].get("statistics") == TRAINED):
            chosen = {key: value for key, value in result.items() if key not in ("steps", "measures", "protocol")}
            # The scale of the guidance before the word on whether it was applied.
            protocol = {**result["protocol"], **chosen}
            floor = found["floors"].get(floor_key(protocol.get("statistics"), result["count"]), {})
            rows.append(Row(result["steps"], result["measures"], protocol, floor))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the results of {run} cannot be read ({error!r}): judge the run again") from error
    return rows


def converted(quality: Mapping[str, Any]) -> dict[str, Any]:
    """The contents of a quality.json, as earlier versions wrote it, in the form of an evaluation.json."""
    said = dict(quality["protocol"])
    scale, _, left_out = str(said.pop("guidance", 1.0)).partition(", not applied in ")
    refused, count = left_out.removesuffix(" steps").split(", "), said.pop("samples")
    common = {"guidance": float(scale), "weights": said.pop("weights", "ema"), "training step": said.pop("training step", None)}
    found = []
    for result in quality["results"]:
        measures = {name: value for name, value in result.items() if name != "steps"}
        applied = "not applied" if str(result["steps"]) in refused else "applied"
        protocol = {**said, "statistics": TRAINED, "guidance": applied}
        found.append({"steps": result["steps"], **common, "count": count, "protocol": protocol, "measures": measures})
    return {"results": found, "floors": {floor_key(TRAINED, count): quality["held_out"]}}


def merged(found: dict[str, Any], others: dict[str, Any]) -> dict[str, Any]:
    """`found` with the results that only `others` has: of a cell in both the row of `found` stays."""

    def cell(row: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in row.items() if key != "measures"}

    missing = [row for row in others["results"] if not any(is_of(there, cell(row)) for there in found["results"])]
    return {"results": [*found["results"], *missing], "floors": others["floors"] | found["floors"]}


def floor_key(statistics: str | None, count: int) -> str:
    """The key of a floor in evaluation.json: the statistics that held-out images were compared with, and how many at most."""
    return f"{statistics}, {count}"


def is_of(row: dict[str, Any], cell: dict[str, Any]) -> bool:
    """Whether a stored row is what a cell describes."""
    return all(row.get(key) == value for key, value in cell.items())


def read_results(run: pathlib.Path) -> dict[str, Any]:
    """The contents of evaluation.json; without results if the file does not exist."""
    from .. import settings, storage

    path = run / "evaluation.json"
    return {"results": [], "floors": {}} | (settings.read(path) if storage.exists(path) else {})


def write_results(run: pathlib.Path, found: dict[str, Any]) -> None:
    """Writes evaluation.json and evaluation.md, in the first process."""
    from .. import distributed, storage

    if distributed.is_main_process():
        storage.write(run / "evaluation.json", json.dumps(found, indent=1))
        storage.write(run / "evaluation.md", markdown(found))


def markdown(found: dict[str, Any]) -> str:
    """A table for each protocol, the real images held out in its last row."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in found["results"]:
        common = {name: said for name, said in row["protocol"].items() if name != "guidance"}
        chosen = {name: row[name] for name in ("weights", "training step", "count")}
        if isinstance(row["weights"], float):
            chosen["weights"] = "averages by their relative width"
        title = "; ".join(f"{name}: {said}" for name, said in {**chosen, **common}.items())
        groups.setdefault(title, []).append(row)
    return "\n\n".join(f"{title}\n\n{rows_as_table(rows, found['floors'])}" for title, rows in groups.items()) + "\n"


def rows_as_table(rows: list[dict[str, Any]], floors: dict[str, dict[str, float]]) -> str:
    """Markdown: a row a number of steps, guidance scale and width if the weights have one, a column a measure."""
    names, wide = list(rows[0]["measures"]), isinstance(rows[0]["weights"], float)
    columns = ["steps", "guidance", *["sigma_rel"] * wide]
    lines = [[*columns, *names], ["---"] * (len(columns) + len(names))]
    for row in sorted(rows, key=lambda row: (row["guidance"], row["steps"], row["weights"])):
        note = "" if row["protocol"]["guidance"] == "applied" else " (not applied)"
        chosen = [str(row["steps"]), f"{row['guidance']:g}{note}", *[str(row["weights"])] * wide]
        lines.append([*chosen, *(f"{row['measures'][name]:.4g}" for name in names)])
    floor = floors.get(floor_key(rows[0]["protocol"].get("statistics"), rows[0]["count"]))
    if floor is not None and not floor.keys().isdisjoint(names):
        known = (f"{floor[name]:.4g}" if name in floor else "" for name in names)
        lines.append([rows[0]["protocol"].get("floor", "held-out images"), *[""] * (len(columns) - 1), *known])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def stem(run: pathlib.Path) -> str:
    """The name of a run without its seed: NAME of a folder NAME-SEED."""
    name = run.absolute().name
    return re.sub(r"-\d+$", "", name)


def table(comparison: Comparison) -> str:
    """Markdown: one row a curve and one column a number of steps, mean (smallest to largest) over the seeds."""
    steps = sorted({n for curve in comparison.curves.values() for n in curve})
    title = TITLES.get(comparison.measure, comparison.measure)
    lines = [
        f"| {title} | " + " | ".join(f"{n} step{'s'[: n > 1]}" for n in steps) + " |",
        "|---" * (len(steps) + 1) + "|",
    ]
    for name, curve in comparison.curves.items():
        seeds = max(map(len, curve.values()))
        cells = [_cell(curve.get(n, [])) for n in steps]
        lines.append(f"| {name}, {seeds} seed{'s'[: seeds > 1]} | " + " | ".join(cells) + " |")
    lines += [f"| {real} | {floor:.3g}" + " |" * len(steps) for floor, real in comparison.floors.items()]
    return "\n".join(lines)


def _note(key: str, protocols: Mapping[pathlib.Path, Mapping[str, Any]]) -> str:
    """A sentence that says which runs have which value of a setting."""
    values: dict[str, list[str]] = {}
    for run, protocol in protocols.items():
        values.setdefault(f"{protocol.get(key)}", []).append(run.name)
    return f"{key}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())


def _real(protocol: dict[str, Any]) -> str:
    count = protocol.get("held-out images")
    return (
        protocol.get("floor", "held-out images")
        if count is None
        else f"{count:,} held-out images, of {protocol['count']:,} samples"
    )


def _cell(values: list[float]) -> str:
    spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3g}{spread}" if values else ""


def _measures(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.measures))


def _differing(protocols: Iterable[dict[str, Any]]) -> list[str]:
    protocols = list(protocols)
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    return [key for key in keys if any(protocol.get(key) != protocols[0].get(key) for protocol in protocols)]
