"""TFRecord: records one after another, each behind its length, without a table of where they are."""

import functools
import mmap
import pathlib
import struct
from collections.abc import Iterator

from ..errors import DataError

HEADER, FOOTER = 12, 4  # length (8) with its checksum (4), record, checksum of the record (4)


def scan(path: pathlib.Path) -> Iterator[tuple[int, memoryview]]:
    """Offset and bytes of each record; bytes are fetched from the disk when they are looked at.

    Raises DataError if the file is truncated, or a length does not have its checksum; those of the records are left unread.
    """
    data, at, number = _mapped(path), 0, 0
    while at < len(data):
        header = data[at : at + HEADER]
        if len(header) == HEADER and _masked(crc32c(header[:8])) != struct.unpack_from("<I", header, 8)[0]:
            raise DataError(f"{path}: the length before record {number} does not have its checksum: copy the file again")
        start = at + HEADER
        end = start + struct.unpack_from("<Q", header)[0] if len(header) == HEADER else len(data)
        if end + FOOTER > len(data):
            raise DataError(f"{path} ends inside record {number}: it is truncated; copy it again")
        yield start, data[start:end]
        at, number = end + FOOTER, number + 1


def read(path: pathlib.Path, offset: int, length: int) -> bytes:
    """One record. Raises DataError if it cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(length)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): restore it") from error


def _mapped(path: pathlib.Path) -> memoryview:
    try:
        with path.open("rb") as file:
            # A map of nothing is an error.
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if path.stat().st_size else b"")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}): restore it") from error


def _masked(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _table() -> tuple[int, ...]:
    def divided(byte: int) -> int:
        for _ in range(8):
            byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
        return byte

    return tuple(divided(byte) for byte in range(256))


def crc32c(data: bytes | memoryview) -> int:
    """The checksum of Castagnoli's polynomial; a microsecond for the eight bytes of a length, too slow for images."""
    crc, table = 0xFFFFFFFF, _table()
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF
