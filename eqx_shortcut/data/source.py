"""Data sets as the trainer sees them: a source that builds rows with random access.

A source of one's own is a frozen dataclass with `build`, most easily of rows in memory (see ArraySource).
"""

from collections.abc import Callable
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Integer

from ..types import Batch, Cond


@runtime_checkable
class Rows(Protocol):
    """A data set with random access, and the conversion of its rows to a batch on the device.

    Conditions that are no labels need a `null`, one of them without its batch axis that stands for none (see `null_of`).
    """

    noun: ClassVar[str]
    """The name of rows in messages, in the plural: "images"."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of what a network sees."""
        ...

    @property
    def labels(self) -> Integer[np.ndarray, " count"]:
        """The label of each row; all 0 if conditions are no labels."""
        ...

    @property
    def classes(self) -> int:
        """Number of classes: labels are below it. 0 if conditions are no labels."""
        ...

    def rows(self, indices: Integer[np.ndarray, " rows"]) -> dict[str, Any]:
        """The rows at `indices`, conditions among them: PyTrees of arrays by name."""
        ...

    def first(self, count: int) -> "Rows":
        """The first `count` rows."""
        ...

    @property
    def batch(self) -> Callable[..., Batch]:
        """The function `(raw rows, key, *, mirror) -> Batch` on the device: scaled, mirrored at random if `mirror`."""
        ...


@runtime_checkable
class Source(Protocol):
    """A frozen dataclass that says where data are and reads them.

    It may have more: `mirror`, whether a mirrored row is as likely as the row; `names`, those of the classes in order of their
    labels; `blank()` and `pictures(samples)`, for the functions below; `draw(path, model)`, which writes a picture of a trained
    model in place of samples that are no images; and `judge(model, quality, folder)`, which says how good a trained model is
    where samples are no images (`results`, a row a number of steps, `held_out` and `protocol`, with the number of `samples`),
    as a robot's task does.
    """

    def build(self) -> tuple[Rows, Rows]:
        """Rows to train on, and others held out. Raises DataError if data are missing, damaged, or contradict themselves."""
        ...


def blank(source: Source) -> Rows:
    """One row of the kind that a source builds: its `blank()`, which needs no data, or else the first that it reads."""
    without = getattr(source, "blank", None)
    return source.build()[0].first(1) if without is None else without()


def pictures(
    source: Source | None, samples: Float[Array | np.ndarray, "count *shape"]
) -> Float[np.ndarray, "count h w c"] | None:
    """Samples as images in [-1, 1]: the source's `pictures(samples)`, or samples that have the shape of images; else None."""
    draw = getattr(source, "pictures", None)
    if draw is not None:
        return np.asarray(draw(samples))
    return np.asarray(samples) if samples.ndim == 4 and samples.shape[-1] in (1, 3) else None


def null_of(rows: Rows) -> Cond:
    """The condition without its batch axis that stands for none: the rows' `null`, or the label `classes`; None if neither."""
    null = getattr(rows, "null", None)
    return (rows.classes or None) if null is None else null
