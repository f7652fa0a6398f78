"""Ranges of numbers in dataclasses of settings: said in the annotation of a field, checked when one is made."""

import dataclasses
import functools
import math
import numbers
import typing
from typing import Annotated, Any


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, above `above` and below `below`; infinities and NaN never."""

    low: float = -math.inf
    high: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: Any) -> bool:
        number: Any = value if isinstance(value, numbers.Real) else math.nan
        return self.low <= number <= self.high and self.above < number < self.below

    def __str__(self) -> str:
        above, below = self.above > -math.inf, self.below < math.inf
        lowest = f"more than {self.above:g}" if above else f"{self.low:g}"
        highest = f"below {self.below:g}" if below else f"at most {self.high:g}" if above else f"{self.high:g}"
        if min(self.high, self.below) < math.inf:
            return f"{lowest}, {highest}" if above else f"{lowest} to {highest}"
        return lowest if above else f"{lowest} or more" if self.low > -math.inf else "a finite number"


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Several = Annotated[int, Range(2)]
Share = Annotated[float, Range(0, 1)]
PositiveShare = Annotated[float, Range(above=0, high=1)]
Proper = Annotated[float, Range(above=0, below=1)]
BelowOne = Annotated[float, Range(0, below=1)]
OneOrMore = Annotated[float, Range(1)]
MoreThanOne = Annotated[float, Range(above=1)]
Positive = Annotated[float, Range(above=0)]
NotNegative = Annotated[float, Range(0)]
Finite = Annotated[float, Range()]


def check(settings: Any) -> None:
    """Raises ValueError unless each field annotated with a Range holds a number in it, a tuple of such, or None if it may.

    For `__post_init__`. The sentence is `label_dropout=1.5: use 0 to 1`.
    """
    for name, allowed, optional in ranges(type(settings)):
        value = getattr(settings, name)
        given = value if isinstance(value, tuple) else (value,)
        if not all(number in allowed or (optional and number is None) for number in given):
            raise ValueError(f"{name}={value}: use {allowed}{', or None' if optional else ''}")


class Checked:
    """A base of dataclasses of settings: the ranges of their fields are checked when one is made."""

    def __post_init__(self) -> None:
        check(self)


@functools.cache
def ranges(kind: type) -> tuple[tuple[str, Range, bool], ...]:
    """Each field of a class that has a Range: its name, the Range, and whether it may be None."""
    hints = typing.get_type_hints(kind, include_extras=True)
    annotated = {name: (hint, allowed) for name, hint in hints.items() if (allowed := _range(hint))}
    return tuple((name, allowed, type(None) in typing.get_args(hint)) for name, (hint, allowed) in annotated.items())


def _range(hint: Any) -> Range | None:
    # Arguments of an `Annotated` are what it annotates and its metadata; that of a field may be a part of a union or tuple.
    return hint if isinstance(hint, Range) else next((r for part in typing.get_args(hint) if (r := _range(part))), None)
