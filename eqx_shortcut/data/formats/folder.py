"""Image files in folders."""

import collections
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Integer

from ..errors import BadImage, DataError
from ..identity import hash_files
from ..names import listed, natural_sorted
from ..parts import find_folders, named
from ..preprocess import SUFFIXES, is_image

LEFT_BEHIND = frozenset(
    "thumbs.db/ehthumbs.db/ehthumbs_vista.db/desktop.ini/icon\r/picasa.ini/@eadir/@tmp/@recycle/#recycle/#snapshot/"
    "$recycle.bin/recycler/system volume information/lost+found/lost.dir/__macosx/__pycache__".split("/")
)
"""Files and folders of operating systems, file servers and tools, in any case."""
UNFINISHED = ("~", ".bak", ".tmp", ".part", ".partial", ".crdownload", ".download", ".swp", ".orig")
"""Ends of names of copies and of downloads that are not whole."""
UNNAMED = ("images", "image", "imgs", "img", "jpegimages", "photos", "pictures", "data", "files", "all", "unknown", "unlabeled")
"""A folder called so, alone, is no class: what it holds is read as if it lay in its place."""

Passed = collections.Counter[str]
"""How many files and folders were passed over, by reason."""


@dataclasses.dataclass(frozen=True)
class FolderRecords:
    """The image files of one folder, or of its sub-folders, each a class."""

    folder: pathlib.Path
    paths: tuple[str, ...]
    """Inside the folder."""
    labels: Integer[np.ndarray, " count"] | None
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def encoded(self, index: int) -> bytes:
        path = self.folder / self.paths[index]
        try:
            return path.read_bytes()
        except OSError as error:
            if path.is_symlink() and not path.exists():
                raise BadImage("a link to nothing") from error
            raise DataError(f"{path} (image {index}) cannot be read ({error.strerror}): restore it") from error

    def where(self, index: int) -> str:
        return f"image {index}, {self.folder / self.paths[index]},"

    def __len__(self) -> int:
        return len(self.paths)

    def sha256(self) -> str:
        return self._sha256

    @functools.cached_property
    def _sha256(self) -> str:
        # File servers answer slowly, and to many at once.
        with concurrent.futures.ThreadPoolExecutor(16) as threads:
            chunks = [self.paths[i : i + 4096] for i in range(0, len(self.paths), 4096)]
            sizes = [size for chunk in threads.map(self._sizes, chunks) for size in chunk]
        return hash_files(zip(self.paths, sizes, strict=True))

    def _sizes(self, paths: Sequence[str]) -> list[int]:
        return [_size(os.path.join(self.folder, path)) for path in paths]


@no_type_check
def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:  # a link to nothing
        return -1


def open_folder(folder: pathlib.Path) -> FolderRecords:
    """All images of a folder in the order of their paths. Each sub-folder that holds some, at any depth, is a class, in
    natural order: 2 comes before 10.

    Raises DataError if there are no images, or some in the folder itself and some in sub-folders.
    """
    return _records(_listing(folder))


def open_folders(folder: pathlib.Path) -> tuple[FolderRecords, FolderRecords | None]:
    """Training and held-out images: those of PATH/train and PATH/val by whatever usual name, or else all of the folder."""
    listing = _listing(folder)
    folder = listing.folder
    parts = find_folders(listing.names, str(folder))
    if parts is None:
        return _records(listing), None
    aside = parts.aside + [f"{folder} itself"] * bool(listing.images)
    train = open_folder(folder / parts.train[0])
    train = dataclasses.replace(train, notes=(*train.notes, *[f"left aside: images in {listed(aside)}"] * bool(aside)))
    return train, open_folder(folder / parts.held_out[0]) if parts.held_out else None


class Listing(NamedTuple):
    """The content of a folder itself: names of sub-folders and of images, and what was passed over."""

    folder: pathlib.Path
    names: list[str]
    images: list[str]
    passed: Passed


def _listing(folder: pathlib.Path) -> Listing:
    """Lists the folder, or the one inside it that holds everything and has the same name, or a name that says nothing."""
    passed, names, images = Passed(), [], []
    try:
        for entry in _entries(str(folder), passed):
            if _is_folder(entry):
                names.append(entry.name)
            elif _holds_image(entry, passed):
                images.append(entry.name)
    except OSError as error:
        raise DataError(f"no folder {folder.absolute()} ({error.strerror}): name another with --data.path") from error
    inner = [name for name in names if name == folder.name or name.casefold() in UNNAMED]
    if inner or any(map(named, names)):  # an empty folder is no part, and beside `train` no class
        holding = [name for name in names if next(_walk(folder / name, Passed()), None)]
        passed["folders without images"] += len(names) - len(holding)
        names = holding
    if len(names) == 1 and names[0] in inner and not images:
        inside = _listing(folder / names[0])
        return inside._replace(passed=passed + inside.passed)
    return Listing(folder, names, images, passed)


def _records(listing: Listing) -> FolderRecords:
    folder, names, images, passed = listing
    paths_by_class = {
        name: [f"{name}/{path}" for path in sorted(_walk(folder / name, passed))] for name in natural_sorted(names)
    }
    classes = {name: paths for name, paths in paths_by_class.items() if paths}
    passed["folders without images"] += len(paths_by_class) - len(classes)
    if images and classes:
        raise DataError(
            f"{folder} holds images itself ({min(images)}) and in sub-folders ({next(iter(classes))}): put all into "
            "sub-folders, one a class, or none"
        )
    notes = _notes(+passed)
    if not images and not classes:
        raise DataError(
            f"no images in {folder.absolute()} or its sub-folders{f' ({notes[0]})' if notes else ''}: name their folder with "
            "--data.path"
        )
    _check_links(folder, list(classes))
    inner = {name: sorted({path.split("/")[1] for path in paths if path.count("/") > 1}) for name, paths in classes.items()}
    for name, folders in inner.items():
        _check_class(folder / name, folders)
    paths = tuple(path for paths in classes.values() for path in paths) or tuple(sorted(images))
    if images:
        return FolderRecords(folder, paths, None, (), tuple(notes))
    inside = sorted({path.rpartition("/")[0] for path in paths})
    if len(classes) == 1 and len(inside) > 1:
        above = os.path.commonpath(inside)
        first = next(path for path in inside if path != above)[len(above) + 1 :].split("/")[0]
        notes.append(f"one class alone: if its folders ({first}, ...) are the classes, name {folder / above} with --data.path")
    labels = np.repeat(np.arange(len(classes), dtype=np.int32), [len(paths) for paths in classes.values()])
    return FolderRecords(folder, paths, labels, tuple(classes), tuple(notes))


def _notes(passed: Passed) -> list[str]:
    told = [f"{reason} {count:,}" for reason, count in passed.most_common(6)]
    rest = passed.total() - sum(count for _, count in passed.most_common(6))
    return [f"passed over: {', '.join(told + [f'others {rest:,}'] * bool(rest))}"] * bool(told)


def _check_links(folder: pathlib.Path, names: Sequence[str]) -> None:
    """Raises DataError if two classes are one folder, whose images would have two labels."""
    found: dict[str, str] = {}
    for name in names:
        other = found.setdefault(os.path.realpath(folder / name), name)
        if other != name:
            raise DataError(f"{folder} holds {other} and {name}, which a link makes one folder: remove the link")


def _check_class(folder: pathlib.Path, inner: Sequence[str]) -> None:
    """Raises DataError if a class has parts inside it, which would all be trained on."""
    parts = find_folders(inner, str(folder)) if len(inner) > 1 else None
    if parts and parts.held_out:
        train, held_out = parts.train[0], parts.held_out[0]
        raise DataError(
            f"{folder} holds {train} and {held_out}: name this folder with --data.path if they are the parts of the data set, "
            f"or, if it is a class, put them outside, as {train}/{folder.name} and {held_out}/{folder.name}"
        )


def _walk(folder: pathlib.Path, passed: Passed) -> Iterator[str]:
    """Paths of the images at any depth of a folder."""
    real, outer = os.path.realpath(folder), os.path.realpath(folder.parent)
    pending, seen = [("", real)], set()
    while pending:
        below, real = pending.pop()
        if real in seen or f"{outer}/".startswith(f"{real}/"):
            passed["links to folders read already"] += 1
            continue
        seen.add(real)
        try:
            entries = list(_entries(os.path.join(folder, below), passed))
        except OSError as error:
            raise DataError(f"{folder / below} cannot be read ({error.strerror}): make it readable, or move it away") from error
        for entry in entries:
            path = below + entry.name
            if _is_folder(entry):
                inner = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                pending.append((f"{path}/", inner))
            elif _holds_image(entry, passed):
                yield path


def _entries(folder: str, passed: Passed) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            reason = _reason(entry.name)
            if reason is None:
                yield entry
            else:
                passed[reason] += 1


# Called for each file: checking annotations took ten times as long as these do.
@no_type_check
def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False) or (entry.is_symlink() and os.path.isdir(entry.path))


@no_type_check
def _reason(name: str) -> str | None:
    """Why a name is not one of the user's images or classes."""
    if name.startswith("."):
        return "hidden"
    plain = name.casefold()
    if plain in LEFT_BEHIND or (plain.startswith("found.") and plain[6:].isdecimal()):
        return "left by other programs"
    return "unfinished or spare copies" if plain.endswith(UNFINISHED) else None


@no_type_check
def _holds_image(entry: os.DirEntry[str], passed: Passed) -> bool:
    """By its suffix, or else by its first bytes: opening each file of a million would take hours on a file server."""
    suffix = os.path.splitext(entry.name)[1].casefold()
    linked = entry.is_symlink()
    if os.path.isfile(entry.path) if linked else entry.is_file():
        if suffix in SUFFIXES or is_image(entry.path):
            return True
        passed[f"{suffix or 'other'} files"] += 1
        return False
    dangling = linked and suffix in SUFFIXES
    passed["links to nothing, pipes and devices"] += not dangling
    return dangling
