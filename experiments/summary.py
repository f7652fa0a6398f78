"""One table over several seeds: mean, smallest and largest of a measure, for runs named NAME-SEED.

for seed in 0 1 2 3 4; do python experiments/digits.py --seed $seed --name shortcut-$seed; done
python experiments/summary.py runs/digits --out summary.json

`plot_quality.py` prints the same table for runs of any names, and draws it.
"""

import dataclasses
import json
import pathlib
from typing import Annotated

import tyro

from opening import command
from places import Place
from results import compare, stem, table


@dataclasses.dataclass(frozen=True)
class Config:
    """Runs to sum up."""

    runs: Annotated[Place, tyro.conf.Positional]
    """Folder of the runs, such as runs/digits."""
    measure: str | None = None
    """The measure to print; by default the first that all runs have."""
    out: pathlib.Path | None = None
    """File for all that the runs measured (quality.json), as JSON by name and seed."""


def main(config: Config) -> None:
    """Prints the table in Markdown and writes the figures behind it."""
    runs = [path.parent for path in sorted(config.runs.glob("*-*/quality.json")) if stem(path.parent) != path.parent.name]
    if not runs:
        raise ValueError(f"no finished runs named NAME-SEED in {config.runs.absolute()}: train some with --name NAME-SEED")
    found = compare(runs, config.measure)
    print(table(found))
    for note in found.notes:
        print(f"measured differently, {note}")
    if config.out:
        groups: dict[str, dict[str, dict]] = {}
        for run in runs:
            seed = run.name.removeprefix(f"{stem(run)}-")
            groups.setdefault(stem(run), {})[seed] = json.loads((run / "quality.json").read_text())
        config.out.write_text(json.dumps(groups, indent=1))


if __name__ == "__main__":
    command(main, Config, __doc__)
