"""tf.train.Example, the protocol buffer in which TensorFlow Datasets stores an image and its label."""

from collections.abc import Iterator
from typing import Any, no_type_check

from ..errors import BadImage

Value = memoryview | int | None
"""Bytes, a whole number, or None for a feature of floats or without values."""


def parse(record: bytes | memoryview) -> dict[str, Value]:
    """The first value of each feature. Bytes are views into the record, so that those that nobody reads are not fetched.

    Raises BadImage if the record is no Example.
    """
    try:
        ((example, features),) = _fields(memoryview(record))
        if example != 1:
            raise ValueError("no field of features")
        entries = [dict(_fields(entry)) for _, entry in _fields(features)]
        return {entry[1].tobytes().decode(): _first(entry[2]) for entry in entries}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise BadImage("its record is no tf.train.Example") from error


# Called for every number: checking annotations took nine tenths of the time.
@no_type_check
def _first(feature: memoryview) -> Value:
    """The values of a Feature: BytesList = 1 | FloatList = 2 | Int64List = 3, each with repeated `value = 1`."""
    for kind, values in _fields(feature):
        if kind == 2:
            return None
        for _, value in _fields(values):
            if kind == 1:
                return value
            number = value if isinstance(value, int) else _varint(value, 0)[0]
            return number - (number >> 63 << 64)
    return None


@no_type_check
def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value (an int or a view) of each field of a message. Numbers of fixed width are not looked for here."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value, at = _varint(message, at)
        if tag & 7 == 2:
            value, at = message[at : at + value], at + value
        elif tag & 7:
            raise ValueError(f"wire type {tag & 7}")
        if at > len(message):
            raise IndexError("the message ends inside a field")
        yield tag >> 3, value


@no_type_check
def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """A number of seven bits a byte, the low ones first, and the place behind it."""
    number = 0
    for shift in range(0, 70, 7):
        byte = message[at]
        number, at = number | (byte & 127) << shift, at + 1
        if byte < 128:
            return number, at
    raise ValueError("a number of more than ten bytes")
