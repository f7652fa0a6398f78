"""Finds the column, array or feature that holds the labels of images, and the meaning of its values."""

import re
from collections.abc import Collection, Iterable

import numpy as np
from jaxtyping import Shaped

from ..errors import DataError

NAMES = (
    "label labels target targets y class cls category fine_label coarse_label fine_labels coarse_labels class_id class_label "
    "label_id category_id"
).split()
"""Usual names of labels, in any case and with any punctuation."""


def choose_labels(found: Iterable[str], wanted: str | None, where: str, *, marked: Collection[str] = ()) -> str | None:
    """The one of the names `found` that holds labels: the one `wanted`, or else the only usual or `marked` one; None if
    there is none.

    Raises DataError, listing them, if the one wanted is not there or several could be meant.
    """
    found = list(found)
    if wanted is not None and wanted not in found:
        raise DataError(f"{where} has no {wanted!r}, found {found}: rename one, or name it with --data.label")
    usual = {_plain(name) for name in NAMES}
    meant = [wanted] if wanted else [name for name in found if name in marked or _plain(name) in usual]
    if len(meant) > 1:
        raise DataError(f"{where} has labels in {' and in '.join(map(repr, meant))}: name those to train on with --data.label")
    return meant[0] if meant else None


def not_taken(others: Collection[str]) -> tuple[str, ...]:
    """A remark on the columns of a set that was taken to have no labels."""
    return (f"not taken for labels: {', '.join(sorted(others)[:8])}; name one with --data.label",) if others else ()


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def plain_labels(values: Shaped[np.ndarray, "..."], count: int, where: str) -> Shaped[np.ndarray, " count"]:
    """One label an image, of numbers up to 64 bits or of text, -1 or "" where there is none.

    Whole numbers stored as floats and numbers in a column of their own are taken for what they are. Raises DataError for
    anything else.
    """
    stored = f"labels of {where} are {values.dtype} of shape {values.shape}: give {count} whole numbers or names, one an image"
    values = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if values.shape != (count,):
        raise DataError(stored)
    if values.dtype.kind == "f":
        numbers = np.where(np.isnan(values), -1, values)
        if not np.all((numbers == np.floor(numbers)) & (np.abs(numbers) < 2**53)):
            odd = int(np.flatnonzero((numbers != np.floor(numbers)) | (np.abs(numbers) >= 2**53))[0])
            raise DataError(f"{stored} (label {odd} is {values[odd]})")
        return numbers.astype(np.int64)
    if values.dtype.kind in "SOT":
        try:
            return np.array([value.decode() if isinstance(value, bytes) else _text(value) for value in values.tolist()])
        except (TypeError, UnicodeDecodeError) as error:
            raise DataError(stored) from error
    if values.dtype.kind not in "iubU":
        raise DataError(stored)
    return values


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError
    return value
