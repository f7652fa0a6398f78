"""One table over several seeds: mean, smallest and largest of each measure, for runs named GROUP-SEED.

for seed in 0 1 2 3 4; do python experiments/digits.py --seed $seed --name shortcut-$seed; done
python experiments/summary.py runs/digits --out summary.json
"""

import dataclasses
import json
import pathlib
import statistics
import sys
from typing import Annotated

import tyro


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs to sum up."""

    runs: Annotated[pathlib.Path, tyro.conf.Positional]
    """Folder of the runs, such as runs/digits."""
    measure: str = "frechet"
    """The measure to print."""
    out: pathlib.Path | None = None
    """File for all measures of all runs, as JSON."""


def main(config: Config) -> None:
    """Prints the table in Markdown and writes the figures behind it."""
    groups = grouped(config.runs)
    if not groups:
        raise ValueError(f"no finished runs named GROUP-SEED in {config.runs.absolute()}: train some with --name GROUP-SEED")
    print(markdown(groups, config.measure))
    if config.out:
        config.out.write_text(json.dumps(groups, indent=1))


def grouped(runs: pathlib.Path) -> dict[str, dict[str, dict]]:
    """The quality.json of every run by group and seed."""
    groups: dict[str, dict[str, dict]] = {}
    for path in sorted(runs.glob("*-*/quality.json")):
        group, _, seed = path.parent.name.rpartition("-")
        groups.setdefault(group, {})[seed] = json.loads(path.read_text())
    return groups


def markdown(groups: dict[str, dict[str, dict]], measure: str) -> str:
    """One row a group and one column a number of steps: mean (smallest to largest) over the seeds."""
    first = next(iter(next(iter(groups.values())).values()))
    steps = [row["steps"] for row in first["results"]]
    lines = [
        f"| {measure} | " + " | ".join(f"{n} step{'s'[: n > 1]}" for n in steps) + " |",
        "|---" * (len(steps) + 1) + "|",
    ]
    for group, seeds in groups.items():
        cells = []
        for n in steps:
            values = [row[measure] for quality in seeds.values() for row in quality["results"] if row["steps"] == n]
            spread = f" ({min(values):.3g} to {max(values):.3g})" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.3g}{spread}")
        lines.append(f"| {group}, {len(seeds)} seed{'s'[: len(seeds) > 1]} | " + " | ".join(cells) + " |")
    lines.append(f"| held-out images | {first['held_out'][measure]:.3g}" + " |" * len(steps))
    return "\n".join(lines)


if __name__ == "__main__":
    try:
        main(tyro.cli(Config, description=__doc__))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
