"""Hugging Face parquet files: a column of encoded images and, as a rule, one of labels."""

import dataclasses
import functools
import json
import pathlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Integer, Shaped

from ..errors import BadImage, DataError
from ..identity import hash_files
from .labels import choose_labels, not_taken, plain_labels

IMAGES = ("image", "img")


@dataclasses.dataclass(frozen=True)
class ParquetRecords:
    """The rows of parquet files one after another, read by row groups."""

    paths: tuple[pathlib.Path, ...]
    column: str
    """Name of the column of images."""
    labels: Shaped[np.ndarray, " count"] | None
    names: tuple[str, ...]
    groups: Integer[np.ndarray, "groups 2"]
    """File and number in it of each row group."""
    starts: Integer[np.ndarray, " groups"]
    """Index of the first row of each."""
    count: int
    notes: tuple[str, ...] = ()

    def encoded(self, index: int) -> bytes:
        file, group, row = self._place(index)
        cell = _row_group(self.paths[file], group, self.column)[row].as_py()
        image = cell.get("bytes") if isinstance(cell, dict) else cell
        if not image:
            raise BadImage("it has no bytes")
        return image

    def where(self, index: int) -> str:
        file = self._place(index)[0]
        first = self.starts[np.searchsorted(self.groups[:, 0], file)]
        return f"image {index - first} of {self.paths[file]}"

    def __len__(self) -> int:
        return self.count

    def sha256(self) -> str:
        alone = len(self.paths) == 1
        return hash_files(("" if alone else file.name, file.stat().st_size) for file in self.paths)

    def _place(self, index: int) -> tuple[int, int, int]:
        at = int(np.searchsorted(self.starts, index, side="right")) - 1
        file, group = map(int, self.groups[at])
        return file, group, index - int(self.starts[at])


class Opened(NamedTuple):
    """Columns, labels and row groups of one file."""

    column: str
    chosen: str | None
    """Name of the column of labels."""
    labels: np.ndarray | None
    names: tuple[str, ...]
    counts: list[int]
    """Rows of each row group."""
    others: tuple[str, ...]
    """Columns that hold neither."""


def open_parquet(files: Sequence[pathlib.Path], label: str | None = None) -> ParquetRecords:
    """All rows of the files, labels by a usual name, or one that Hugging Face's metadata say are classes, or in the
    column `label`.

    Raises DataError if a file is damaged, has no rows or lacks a column, or if the files differ in columns or in names of
    classes.
    """
    for kept in (_row_group, _file):  # which may be of files that were written anew since
        kept.cache_clear()
    opened = [_open(file, label) for file in files]
    first = opened[0]
    for file, other in zip(files, opened, strict=True):
        if other.column != first.column:
            raise DataError(f"{file} has images in column {other.column!r}, {files[0]} in {first.column!r}: rename one")
        if (other.chosen, other.names) != (first.chosen, first.names):
            raise DataError(
                f"{file} has labels in {other.chosen!r} with {len(other.names)} names of classes, {files[0]} in "
                f"{first.chosen!r} with {len(first.names)}, or others: give all files the same"
            )
    rows = [count for one in opened for count in one.counts]
    return ParquetRecords(
        paths=tuple(files),
        column=first.column,
        labels=_joined({file: one.labels for file, one in zip(files, opened, strict=True) if one.labels is not None}),
        names=first.names,
        groups=np.array([(i, group) for i, one in enumerate(opened) for group in range(len(one.counts))]),
        starts=np.cumsum([0, *rows[:-1]]),
        count=sum(rows),
        notes=not_taken(first.others) if first.chosen is None else (),
    )


def _joined(labels: Mapping[pathlib.Path, np.ndarray]) -> np.ndarray | None:
    """NumPy joins int64 and uint64 to floats, which do not hold them all, and numbers and text to text."""
    kinds = {"text" if part.dtype.kind == "U" else part.dtype.kind: f"{part.dtype} in {file}" for file, part in labels.items()}
    if len(kinds) > 1:
        raise DataError(f"labels are of several types ({', '.join(kinds.values())}): give all files one type")
    return np.concatenate(list(labels.values())) if labels else None


def _open(path: pathlib.Path, label: str | None) -> Opened:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            column, names = _image_column(path, schema), _names(schema)
            others = [name for name in schema.names if name != column]
            chosen = choose_labels(others, label, str(path), marked=names)
            cells = None if chosen is None else file.read([chosen], use_threads=False)[chosen]
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({error}): copy or download it again") from error
    if not rows:
        raise DataError(f"{path}: there are no images in it: remove the file")
    if cells is None:
        return Opened(column, None, None, (), counts, tuple(others))
    return Opened(column, chosen, _plain(cells, f"{path}, column {chosen!r},"), names.get(chosen or "", ()), counts, ())


def _plain(cells: Any, where: str) -> np.ndarray:
    """A column of labels as an array, with -1 or "" where there is none."""
    import pyarrow

    kind = cells.type.value_type if pyarrow.types.is_dictionary(cells.type) else cells.type
    cells = cells.cast(kind)
    if pyarrow.types.is_string(kind) or pyarrow.types.is_large_string(kind):
        return plain_labels(np.array(cells.to_pylist(), object), len(cells), where)
    if pyarrow.types.is_null(kind):
        return np.full(len(cells), -1)
    if not (pyarrow.types.is_integer(kind) or pyarrow.types.is_boolean(kind) or pyarrow.types.is_floating(kind)):
        raise DataError(f"{where} holds {kind}: labels are whole numbers or names, one for each image")
    if cells.null_count and pyarrow.types.is_boolean(kind):
        cells = cells.cast(pyarrow.int8())
    if cells.null_count and pyarrow.types.is_unsigned_integer(kind):
        cells = cells.cast(pyarrow.int64())
    filled = cells.fill_null(-1) if cells.null_count else cells
    return plain_labels(filled.to_numpy(), len(cells), where)


def _image_column(path: pathlib.Path, schema: Any) -> str:
    import pyarrow

    column = next((name for name in IMAGES if name in schema.names), None)
    if column is None:
        raise DataError(f"{path} has no column {' or '.join(map(repr, IMAGES))}, found {schema.names}: rename its columns")
    kind = schema.field(column).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise DataError(f"{path}: column {column!r} holds {kind} and no encoded images: store the bytes of image files in it")
    return column


def _names(schema: Any) -> dict[str, tuple[str, ...]]:
    """Names of the classes in each column that holds some, which Hugging Face writes into the file's metadata."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {name: tuple(kind["names"]) for name, kind in told.items() if name in schema.names and "names" in kind}
    except (AttributeError, KeyError, TypeError, ValueError):
        return {}


_one_at_a_time = threading.Lock()


@functools.lru_cache(maxsize=4)
def _row_group(path: pathlib.Path, group: int, column: str) -> Any:
    import pyarrow
    import pyarrow.parquet

    with _one_at_a_time:
        try:
            return _file(path).read_row_group(group, columns=[column], use_threads=False)[column]
        except (pyarrow.ArrowException, OSError) as error:
            raise DataError(f"{path}: row group {group} cannot be read ({error}): copy or download it again") from error


@functools.lru_cache(maxsize=256)
def _file(path: pathlib.Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.ParquetFile(path)
