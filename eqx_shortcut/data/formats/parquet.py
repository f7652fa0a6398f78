"""Hugging Face parquet files: a column of encoded images and, as a rule, one of labels."""

import dataclasses
import functools
import json
import pathlib
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from ..errors import BadImage, DataError

IMAGES, LABEL = ("image", "img"), "label"


@dataclasses.dataclass(frozen=True)
class ParquetRecords:
    """The rows of parquet files one after another, read by row groups."""

    files: tuple[pathlib.Path, ...]
    column: str
    """Name of the column of images."""
    labels: Integer[np.ndarray, " count"]
    names: tuple[str, ...]
    groups: Integer[np.ndarray, "groups 2"]
    """File and number in it of each row group."""
    starts: Integer[np.ndarray, " groups"]
    """Index of the first row of each."""

    def encoded(self, index: int) -> bytes:
        file, group, row = self._place(index)
        cell = _row_group(self.files[file], group, self.column)[row].as_py()
        found = cell.get("bytes") if isinstance(cell, dict) else cell
        if not found:
            raise BadImage("it has no bytes")
        return found

    def where(self, index: int) -> str:
        file = self._place(index)[0]
        first = self.starts[np.searchsorted(self.groups[:, 0], file)]
        return f"image {index - first} of {self.files[file]}"

    def _place(self, index: int) -> tuple[int, int, int]:
        at = int(np.searchsorted(self.starts, index, side="right")) - 1
        file, group = map(int, self.groups[at])
        return file, group, index - int(self.starts[at])


def open_parquet(files: Sequence[pathlib.Path], *, labelled: bool = False) -> ParquetRecords:
    """All rows of the files. A file without a column of labels has label 0 throughout, unless `labelled` forbids it.

    Raises DataError if a file is damaged, has no rows or lacks a column.
    """
    found = [_open(file, labelled=labelled) for file in files]
    columns = [column for column, _, _, _ in found]
    odd = next((i for i, column in enumerate(columns) if column != columns[0]), None)
    if odd is not None:
        raise DataError(f"{files[odd]} has images in column {columns[odd]!r}, {files[0]} in {columns[0]!r}: rename one")
    rows = [count for _, _, _, counts in found for count in counts]
    return ParquetRecords(
        files=tuple(files),
        column=columns[0],
        labels=np.concatenate([labels for _, labels, _, _ in found]),
        names=found[0][2],
        groups=np.array([(i, group) for i, (*_, counts) in enumerate(found) for group in range(len(counts))]),
        starts=np.cumsum([0, *rows[:-1]]),
    )


def _open(path: pathlib.Path, *, labelled: bool) -> tuple[str, np.ndarray, tuple[str, ...], list[int]]:
    import pyarrow
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
            counts = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
            column = _image_column(path, schema, labelled=labelled)
            labels = file.read([LABEL])[LABEL] if LABEL in schema.names else None
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read as parquet ({error}): copy or download it again") from error
    if not rows:
        raise DataError(f"{path}: there are no images in it: remove the file")
    if labels is not None and (not pyarrow.types.is_integer(labels.type) or labels.null_count):
        raise DataError(f"{path}: column {LABEL!r} must hold whole numbers, one for each image: correct the labels")
    return column, np.zeros(rows, np.int32) if labels is None else labels.to_numpy().astype(np.int32), _names(schema), counts


def _image_column(path: pathlib.Path, schema: Any, *, labelled: bool) -> str:
    import pyarrow

    column = next((name for name in IMAGES if name in schema.names), None)
    if column is None or (labelled and LABEL not in schema.names):
        wanted = f"{' or '.join(map(repr, IMAGES))}{f' and {LABEL!r}' * labelled}"
        raise DataError(f"{path} has no column {wanted}, found {schema.names}: rename its columns")
    kind = schema.field(column).type
    if pyarrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind)):
        raise DataError(f"{path}: column {column!r} holds {kind} and no encoded images: store the bytes of image files in it")
    return column


def _names(schema: Any) -> tuple[str, ...]:
    """Names of the classes, which Hugging Face writes into the file's metadata."""
    try:
        told = json.loads((schema.metadata or {})[b"huggingface"])
        return tuple(told["info"]["features"][LABEL]["names"])
    except (KeyError, TypeError, ValueError):
        return ()


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
