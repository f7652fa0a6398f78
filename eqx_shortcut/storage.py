"""Files on disks and in object stores: paths of both, files that are written whole or not at all, checksums."""

import contextlib
import hashlib
import os
import pathlib
import secrets
import shutil
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from .errors import first_line

if TYPE_CHECKING:
    Path = pathlib.Path
else:
    # An etils.epath.Path has the methods of a pathlib.Path that are used here and is none: this is what the two share.
    Path = pathlib.PurePath

SCHEME = "gs://"
"""The one kind of object store in which Orbax, hence a run, can keep arrays."""


class StorageError(ValueError):
    """A place that cannot be reached: says which, why, and what to do."""


def as_path(path: str | os.PathLike[str]) -> Path:
    """The path of that name: of the path layer of Orbax (`etils.epath`) for gs://BUCKET/NAME, else a pathlib.Path.

    Raises StorageError for the address of another kind of store. Nothing is read.
    """
    name = os.fspath(path)
    if "://" not in name:
        return pathlib.Path(name)
    if not name.startswith(SCHEME):
        raise StorageError(f"{name} is in no store that can be used: name a folder, or one of {SCHEME}BUCKET/FOLDER")
    # Imported here, for they are needed for addresses alone.
    import fsspec.config
    from etils import epath

    # Arrays are written past gcsfs, which would not find them in the listings that it keeps.
    fsspec.config.conf.setdefault("gcs", {}).setdefault("use_listings_cache", False)
    return epath.Path(name)  # pyright: ignore[reportReturnType]  # see Path


def cache_home() -> pathlib.Path:
    """The folder of what can be made again: compiled programs, copies of remote files.

    In XDG_CACHE_HOME, or in `.cache` of the home folder; raises StorageError where there is neither, as in containers.
    """
    if not (named := os.environ.get("XDG_CACHE_HOME")):
        try:
            named = pathlib.Path.home() / ".cache"
        except RuntimeError as error:
            raise StorageError("there is no home folder to keep files in: name a folder by XDG_CACHE_HOME") from error
    return pathlib.Path(named) / "eqx_shortcut"


def is_remote(path: Path) -> bool:
    """Whether a path lies in an object store: no appending there, no mapping into memory, no file for other libraries."""
    return os.fspath(path).startswith(SCHEME)


def absolute(path: Path) -> Path:
    """The path from the root. (That of `etils.epath` makes a local path of an address.)"""
    return path if is_remote(path) else path.absolute()


def exists(path: Path) -> bool:
    """Whether there is something; raises StorageError if an object store cannot be reached, as a first look shows."""
    try:
        return path.exists()
    except Exception as error:  # each client has its own, and lacks the package for it perhaps
        if not is_remote(path):
            raise
        raise StorageError(_unreached(path, error)) from error


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, whatever the locale. Raises StorageError, naming it, if it holds other bytes."""
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError as error:
        raise StorageError(f"{path} is no text in UTF-8 ({error}): save it in UTF-8") from error


def write(path: Path, data: bytes | str) -> None:
    """Writes a file that is whole if it bears its name, whatever stops the writing, a loss of power too."""
    raw = data.encode() if isinstance(data, str) else data
    if not is_remote(path):
        with draft_of(path) as draft:
            draft.write_bytes(raw)
        return
    try:  # an object appears when all of it has been sent
        path.write_bytes(raw)
    except Exception as error:
        raise StorageError(_unreached(path, error)) from error


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """A file beside a local `path` to be written inside, which takes its place at the end, and is removed where that fails."""
    draft = path.with_name(f".{path.name}.{secrets.token_hex(4)}")  # of this process alone
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())  # else the name may reach the disk before what it names
        draft.replace(path)
    finally:  # on a full disk, or when it is interrupted, a part of it
        draft.unlink(missing_ok=True)


def remove(folder: Path) -> None:
    """Removes a folder with all that is in it, as far as that can be done."""
    if is_remote(folder):
        folder.rmtree(missing_ok=True)  # pyright: ignore[reportAttributeAccessIssue]
    else:
        shutil.rmtree(folder, ignore_errors=True)


def files(folder: Path) -> list[Path]:
    """All files below a folder, in order."""
    # Level by level, one request each: what `walk` of `etils.epath` says of the level below is no address any more.
    walk = folder.walk() if is_remote(folder) else os.walk(folder)  # pyright: ignore[reportAttributeAccessIssue]
    _, folders, names = next(iter(walk), ("", [], []))
    return sorted([folder / name for name in names] + [file for name in folders for file in files(folder / name)])


def checksum(paths: Iterable[Path]) -> str:
    """SHA-256 of files one after another."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def _unreached(path: Path, error: Exception) -> str:
    return (
        f"{path} cannot be reached ({type(error).__name__}: {first_line(error)}): install gcsfs, log in (gcloud auth "
        "application-default login), and check the name of the bucket"
    )
