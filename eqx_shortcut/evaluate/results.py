"""Results of finished runs, their quality.json and evaluation.json, put side by side by number of sampling steps."""

import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

TITLES = {
    "frechet": "pixel Frechet distance",
    "accuracy": "share that a classifier gives its label",
    "nearest": "median distance to the nearest training image",
}
"""Names of measures that are not their own."""


TIMES = "times of guidance"
"""The name in a protocol of the interval in which samples were guided."""


class Row(NamedTuple):
    """What was measured of a run at a number of sampling steps, and how."""

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
    """What was measured of runs as curves: those of one name are one curve, by default those named NAME-SEED.

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
    """What files of a run say was measured of it, `quality` at its end and `evaluation` later; only those that there are."""
    from .. import settings

    files = {name: run / f"{name}.json" for name in ("evaluation", "quality")}
    return {name: settings.read(path) for name, path in files.items() if path.exists()}


def rows(run: pathlib.Path, files: Mapping[str, Any]) -> list[Row]:
    """All that those files say was measured of a run. Raises ValueError if it is nothing."""
    rows = []
    try:
        if found := files.get("evaluation"):
            for result in found["results"]:
                chosen = {key: value for key, value in result.items() if key not in ("steps", "measures", "protocol")}
                # The scale of the guidance before the word on whether it was applied.
                protocol = {**result["protocol"], **chosen}
                floor = found["floors"].get(floor_key(protocol.get("statistics"), result["count"]), {})
                rows.append(Row(result["steps"], result["measures"], protocol, floor))
        if found := files.get("quality"):
            for result in found["results"]:
                measures = {key: value for key, value in result.items() if key != "steps"}
                rows.append(Row(result["steps"], measures, found["protocol"], found["held_out"]))
    except (KeyError, TypeError) as error:
        raise ValueError(f"the results of {run} cannot be read ({error!r}): judge the run again") from error
    if not rows:
        raise ValueError(f"{run} holds no results, quality.json or evaluation.json: train or evaluate it first")
    return rows


def floor_key(statistics: str | None, count: int) -> str:
    """What tells the measures of held-out images from others: the statistics they were compared with, and at most how many."""
    return f"{statistics}, {count}"


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
    """Which runs have which value of a setting."""
    values: dict[str, list[str]] = {}
    for run, protocol in protocols.items():
        values.setdefault(f"{protocol.get(key)}", []).append(run.name)
    return f"{key}: " + "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())


def _real(protocol: dict[str, Any]) -> str:
    count = protocol.get("held-out images")
    return "held-out images" if count is None else f"{count:,} held-out images, of {protocol['samples']:,} samples"


def _cell(values: list[float]) -> str:
    spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
    return f"{sum(values) / len(values):.3g}{spread}" if values else ""


def _measures(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.measures))


def _differing(protocols: Iterable[dict[str, Any]]) -> list[str]:
    protocols = list(protocols)
    keys = dict.fromkeys(key for protocol in protocols for key in protocol)
    return [key for key in keys if any(protocol.get(key) != protocols[0].get(key) for protocol in protocols)]
