"""The reference's pickled checkpoints: arrays, and the namedtuples of its optimizer's state."""

import dataclasses
import io
from typing import Any

from ..pretrained import unpickle
from ..pretrained.unpickle import NUMPY, Global, Rules, new_nothing

NAMEDTUPLES = ("EmptyState", "ScaleByAdamState", "ScaleByScheduleState")
OPTAX = frozenset(
    {"optax._src.base.EmptyState", "optax._src.transform.ScaleByAdamState", "optax._src.transform.ScaleByScheduleState"}
)


@dataclasses.dataclass(frozen=True)
class Node:
    """One of the reference's namedtuples by its class's name, with its fields in order."""

    kind: str
    fields: tuple[Any, ...]


def load(file: io.BufferedIOBase) -> Any:
    """The one value that a pickled checkpoint holds; arrays are `unpickle.Leaf`, namedtuples `Node`. Raises UnpickleError."""
    return unpickle.load(file, Rules(NUMPY | OPTAX, new=_namedtuple))


def _namedtuple(kind: Any, fields: Any) -> Node:
    match kind, fields:
        case Global(last=last), tuple() if last in NAMEDTUPLES:
            return Node(last, fields)
    return new_nothing(kind, fields)
