"""Paths on the command line, on disks and in object stores, and where copies of remote files are kept."""

import logging
import os
import pathlib
from typing import Annotated

import tyro


def parsed(words: list[str]) -> pathlib.Path:
    """The path that a word names (see eqx_shortcut.storage)."""
    from eqx_shortcut.storage import as_path

    # It raises what it reports, and tracebacks above an error would bury its sentence.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    return as_path(words[0])


Place = Annotated[
    pathlib.Path,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="PATH",
        instance_from_str=parsed,
        is_instance=lambda value: isinstance(value, pathlib.PurePath),
        str_from_instance=lambda path: [str(path)],
    ),
]
"""A folder, or gs://BUCKET/FOLDER."""


def cache_home() -> pathlib.Path:
    """The folder of what can be made again: compiled programs, copies of remote files."""
    return pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "eqx_shortcut"
