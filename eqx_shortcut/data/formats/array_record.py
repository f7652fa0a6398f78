"""ArrayRecord: compressed records with a table of where they are. Its reader comes with Grain where there is one."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

from ..errors import BadImage, DataError


def scan(path: pathlib.Path) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of each record, a damaged one without bytes. Raises DataError if the file is truncated."""
    for number in range(reader(path).num_records()):
        try:
            yield number, read(path, number)
        except BadImage:
            yield number, b""


def read(path: pathlib.Path, number: int) -> bytes:
    """One record. Raises BadImage if it is damaged."""
    try:
        return reader(path).read([number])[0]
    except RuntimeError as error:
        raise BadImage(f"its record is damaged: {str(error).split(' (')[0]}") from error


@functools.lru_cache(maxsize=256)
def reader(path: pathlib.Path) -> Any:
    """The open file, kept for the next record. Raises DataError if it is truncated."""
    try:
        from array_record.python.array_record_module import ArrayRecordReader
    except ImportError as error:
        raise DataError(
            f"{path} needs the package array_record, which cannot be imported here ({error}): install it, or prepare the data "
            "set with file_format='tfrecord'"
        ) from error
    reader = ArrayRecordReader(str(path), "readahead_buffer_size:0,max_parallelism:0")
    if not reader.ok():
        raise DataError(f"{path} is no whole array_record file: copy or prepare it again")
    return reader
