"""IDX, the format of MNIST."""

import gzip
import math
import pathlib
import zlib

import numpy as np
from jaxtyping import UInt8

from ..errors import DataError


def read_idx(path: pathlib.Path, *, axes: int, remedy: str) -> UInt8[np.ndarray, "..."]:
    """The array of bytes, of `axes` axes, in a gzipped IDX file (the format of MNIST)."""
    if not path.exists():
        raise DataError(f"no file {path}: {remedy}")
    try:
        raw = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is not a whole gzip file ({error}): copy or download it again") from error
    header = 4 + 4 * axes
    if len(raw) < header or raw[:4] != bytes([0, 0, 8, axes]):
        raise DataError(f"{path} does not begin like an IDX file of bytes with {axes} axes: {remedy}")
    shape = tuple(int(size) for size in np.frombuffer(raw, ">u4", axes, offset=4))
    if len(raw) - header != math.prod(shape):
        raise DataError(
            f"{path} announces {' x '.join(map(str, shape))} bytes and holds {len(raw) - header}: it is truncated or "
            "damaged; copy or download it again"
        )
    return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
