"""Which file this is."""

import hashlib
import pathlib


def sha256(path: pathlib.Path) -> str:
    """The file's SHA-256 in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
