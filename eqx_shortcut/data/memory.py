"""Rows in memory: arrays of any rank with conditions of any structure."""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Integer, PRNGKeyArray, Shaped

from ..types import Batch, Cond, shown
from .errors import DataError
from .images import check_labels


@dataclasses.dataclass(frozen=True, eq=False)
class ArraySource:
    """Rows `x` of any shape, each with its part of `condition`, a PyTree of arrays with the rows as first axis, or None.

    An array of one integer a row is a condition of labels. What hides other conditions in training is `null`, without that
    axis; zeros by default. Raises DataError if there is no row, rows differ in shape or number, or a number is not finite.
    """

    x: Any
    """Floats in training units, about 1 in size."""
    condition: Cond = None
    _: dataclasses.KW_ONLY
    null: Cond = None
    classes: int = 0
    """Number of classes; 0: the largest label + 1."""
    held_out: float = 0.02
    """Share of the rows that `build` holds out."""

    noun: ClassVar[str] = "rows"

    def __post_init__(self):
        x = _array("x", self.x)
        if not x.shape or not len(x):
            raise DataError(f"x has no rows (its shape is {x.shape}): give an array with at least one")
        if x.dtype.kind != "f":
            raise DataError(f"x is of {x.dtype}, and a network learns floats of about 1 in size: scale it, as x / 127.5 - 1")
        condition = jax.tree_util.tree_map_with_path(lambda path, leaf: _array(_name(path), leaf), self.condition)
        for path, leaf in jax.tree_util.tree_leaves_with_path(condition):
            if leaf.shape[:1] != x.shape[:1]:
                raise DataError(
                    f"{_name(path)} is of shape {leaf.shape} for {len(x)} rows of x: let its first axis be the rows"
                )
        classes, null = self.classes, self.null
        if null is None and isinstance(condition, np.ndarray) and condition.ndim == 1 and condition.dtype.kind == "i":
            classes = classes or int(condition.max()) + 1
            check_labels(condition, classes, "row {}".format)
        elif classes:
            raise DataError(f"classes={classes} for a condition that is not one integer a row: leave it out")
        else:
            null = _null(condition, null)
        for name, value in {"x": x, "condition": condition, "classes": classes, "null": null}.items():
            object.__setattr__(self, name, value)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.x.shape[1:]

    @property
    def labels(self) -> Integer[np.ndarray, " count"]:
        """The label of each row; all 0 if conditions are no labels."""
        return self.condition if self.classes else np.broadcast_to(np.int32(0), len(self.x))

    def rows(self, indices: Integer[np.ndarray, " rows"]) -> dict[str, Any]:
        """Rows and conditions at `indices`."""
        return {"x": self.x[indices], "condition": jax.tree.map(lambda leaf: leaf[indices], self.condition)}

    def take(self, indices: Integer[np.ndarray, " rows"]) -> "ArraySource":
        """The rows at `indices` alone."""
        return dataclasses.replace(self, **self.rows(indices))

    def first(self, count: int) -> "ArraySource":
        """The first `count` rows."""
        return self.take(np.arange(min(count, len(self.x))))

    @property
    def batch(self) -> Callable[..., Batch]:
        """From raw rows to a Batch; never mirrored."""
        return _batch

    def split(self, share: float) -> tuple["ArraySource", "ArraySource"]:
        """Rows to train on, and that share held out, at least one, drawn once for all."""
        count = len(self.x)
        if count < 2:
            raise DataError("x has 1 row, and one must be held out: give at least 2")
        if not 0 < share < 1:
            raise DataError(f"a share of {share} to hold out: use one above 0 and below 1")
        held_out = min(max(1, round(count * share)), count - 1)
        order = np.random.default_rng(0).permutation(count)
        return self.take(np.sort(order[held_out:])), self.take(np.sort(order[:held_out]))

    def build(self) -> tuple["ArraySource", "ArraySource"]:
        """The split into rows to train on and the share `held_out`, so that arrays are a source themselves."""
        return self.split(self.held_out)


def _batch(raw: dict[str, Any], key: PRNGKeyArray, *, mirror: bool) -> Batch:
    return Batch(jnp.asarray(raw["x"], jnp.float32), raw["condition"])


def _name(path: Any) -> str:
    return f"condition{jax.tree_util.keystr(path)}"


def _array(name: str, values: Any) -> Shaped[np.ndarray, "*shape"]:
    """Numbers of at most 32 bits. Raises DataError for what is none."""
    try:
        array = np.asarray(values)
    except ValueError as error:  # NumPy's word for rows of several shapes
        raise _ragged(name, values) from error
    if array.dtype == object and array.ndim:
        raise _ragged(name, values)
    array = array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
    if array.dtype.kind not in "biuf":
        raise DataError(f"{name} is of {array.dtype}, no numbers: give floats, integers or booleans")
    return _narrow(name, array)


def _ragged(name: str, values: Any) -> DataError:
    rows = [np.asarray(row, object if isinstance(row, list | tuple) else None) for row in values]
    odd = next((i for i, row in enumerate(rows) if row.shape != rows[0].shape), None)
    if odd is None:
        return DataError(
            f"{name} holds objects of {type(values[0]).__name__} that are no array: give numbers, rows of one shape"
        )
    return DataError(f"row {odd} of {name} is of shape {rows[odd].shape}, row 0 of {rows[0].shape}: give all rows one shape")


def _narrow(name: str, array: Shaped[np.ndarray, "*shape"]) -> Shaped[np.ndarray, "*shape"]:
    if array.dtype.kind == "f":
        with np.errstate(over="ignore"):
            array = array if array.dtype.itemsize <= 4 else array.astype(np.float32)
        finite = np.isfinite(array)
        if not finite.all():
            bad = np.flatnonzero(~finite.reshape(len(array), -1).all(axis=1)) if array.ndim else [0]
            raise DataError(f"row {bad[0]} of {name} holds a number that is not finite ({len(bad)} such rows): leave them out")
        return array
    if array.dtype.kind == "b" or (array.dtype.itemsize < 4 and array.ndim > 1):  # as bytes of pictures, which stay bytes
        return array
    if array.size and not (-(2**31) <= array.min() and array.max() < 2**31):
        raise DataError(f"{name} holds integers of more than 32 bits (up to {array.max()}): number them from 0")
    return array.astype(np.int32)


def _null(condition: Cond, null: Cond) -> Cond:
    """The condition that stands for none, in dtype and shape of a row of `condition`."""
    if null is None:
        return jax.tree.map(lambda leaf: np.zeros(leaf.shape[1:], leaf.dtype), condition)
    if jax.tree.structure(null) != jax.tree.structure(condition):
        raise DataError(f"null is {shown(null)}, a condition {shown(condition)}: give null its parts")

    def one(path, null, leaf):
        null = _array(f"null{jax.tree_util.keystr(path)}", null)
        if null.shape != leaf.shape[1:]:
            raise DataError(
                f"{_name(path)} has rows of shape {leaf.shape[1:]} and a null of {null.shape}: give one of that shape"
            )
        if leaf.dtype.kind != "f" and (null.astype(leaf.dtype) != null).any():
            raise DataError(f"{_name(path)} is of {leaf.dtype}, which cannot hold its null {null.tolist()}: give another one")
        return null.astype(leaf.dtype)

    return jax.tree_util.tree_map_with_path(one, null, condition)
