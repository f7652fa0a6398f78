"""The evaluation of a trained model: cells of steps, guidance and weights, each measured once and kept in evaluation.json."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from .. import distributed, storage
from ..sampling import Sampling
from ..trained import Trained
from .results import floor_key, is_of, merged, read_results, write_results


class Cell(NamedTuple):
    """A set of weights of a run and how samples are drawn from it."""

    model: Trained
    weights: str | float
    sampling: Sampling


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Measures of `count` samples of each cell, and of held-out images by `floor`, which is what perfect samples would reach.

    `protocol` says how they are measured. A cell of the same protocol in the file is not measured again.
    """

    run: storage.Path
    count: int
    protocol: Mapping[str, Any]
    measure: Callable[[Cell, dict[str, Any]], dict[str, float]]
    """The function from a cell and the record of its row to measures by name."""
    floor: Callable[[], dict[str, float]] | None = None

    def __call__(self, cells: Iterable[Cell]) -> list[dict[str, Any]]:
        """The rows of these cells, each written as soon as it is measured; every process takes part."""
        with distributed.barrier():  # all read the same, before the first one writes
            found = read_results(self.run)
        key = floor_key(self.protocol["statistics"], self.count)
        if self.floor is not None and key not in found["floors"]:
            found["floors"][key] = self.floor()
        rows = []
        for cell in cells:
            record = self.record(cell)
            row = next((row for row in found["results"] if is_of(row, record)), None)
            if row is None:
                row = {**record, "measures": self.measure(cell, record)}
                found["results"].append(row)
                with distributed.barrier():  # another command may have written others meanwhile
                    found = merged(read_results(self.run), found)
                write_results(self.run, found)
            rows.append(row)
        return rows

    def record(self, cell: Cell) -> dict[str, Any]:
        """The settings and protocol of a cell's row, without its measures: rows that agree in them are the same cell."""
        how, objective = cell.sampling, cell.model.objective
        applied = how.guidance == 1 or how.guides(objective)
        said = "applied" if applied else "not applied: not what the network was trained for at this step size"
        return {
            "steps": how.steps,
            "guidance": how.guidance,
            "weights": cell.weights,
            "training step": cell.model.step,
            "count": self.count,
            "protocol": {**self.protocol, "guidance": said, **how.record},
        }
