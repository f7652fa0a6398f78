"""Finds the training and the held-out part of a data set by the names that people give their files and folders."""

import pathlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from .errors import DataError

WORDS = {
    "train": ("train", "training", "trainset", "traindata"),
    "validation": ("validation", "val", "valid", "validate", "valset", "dev", "eval", "evaluation"),
    "test": ("test", "testing", "tests", "testset", "testdata"),
}
"""Words in a name that say to which part it belongs, in upper or lower case."""
HELD_OUT = ("validation", "test")
"""Parts to hold out, the first that there is."""
FILLERS = ("set", "data", "dataset", "split", "part", "images", "image", "img", "imgs", "photos", "pictures", "of", "x")
"""Words that say nothing beside such a word: `training_set`, `train-00000-of-00002`, `train_64x64`, `val2017`."""


class Named(NamedTuple):
    """The part that a name speaks of, and its other words, which a pair has in common (`seg_train`, `seg_test`)."""

    part: str
    beside: tuple[str, ...]


def named(name: str) -> Named | None:
    """The part that a name speaks of; None if it speaks of none, or of several."""
    words = [word.casefold() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)]
    spoken = [(part, word) for word in words for part, known in WORDS.items() if word in known]
    if len(spoken) != 1:
        return None
    ((part, told),) = spoken
    return Named(part, tuple(word for word in words if word != told and word not in FILLERS))


class Parts(NamedTuple):
    """Names of the training part and of the one held out (empty: there is none), and of what is left aside."""

    train: list[str]
    held_out: list[str]
    aside: list[str]


def _sorted(names: Iterable[str], where: str) -> Parts:
    """Names by part. What has other words beside the part than the training images have is left aside."""
    names = sorted(names)
    said_by = {name: said for name in names if (said := named(name))}
    train = [name for name, said in said_by.items() if said.part == "train"]
    beside = {said_by[name].beside for name in train} or {()}
    rest = [[name for name, said in said_by.items() if said.part == part and said.beside in beside] for part in HELD_OUT]
    held_out = next(filter(None, rest), [])
    aside = [name for name in names if name not in train + held_out]
    if held_out and not train:
        others = f"beside {aside[0]}" if aside else "and no images to train on"
        raise DataError(
            f"{where} holds {held_out[0]}, a name of images held out, {others}: call those to train on train, or rename it"
        )
    return Parts(train, held_out, aside)


def find_folders(names: Iterable[str], where: str) -> Parts | None:
    """The parts among names of folders, or None if they are none: `train` is a vehicle too, beside `bus` and `car`.

    Raises DataError if they can be read in two ways.
    """
    parts = _sorted(names, where)
    bare = all(said.beside == () for name in parts.train if (said := named(name)))
    if not parts.held_out and (parts.aside or not parts.train or not bare):
        return None
    for part in (parts.train, parts.held_out):
        if len(part) > 1:
            raise DataError(f"{where} holds {' and '.join(part)}, two names of one part: keep one of them")
    return parts


def find_files(path: pathlib.Path, suffix: str) -> tuple[list[pathlib.Path], list[pathlib.Path], list[str]]:
    """The file, or the files in a folder, to train on (all if no name speaks of a part), those held out, and names left aside.

    NAME-00000-of-00001 and NAME-0 are of the part that NAME says. Raises DataError if there are only files to hold out.
    """
    if not path.is_dir():
        return [path] if path.exists() else [], [], []
    files = sorted(file for file in path.iterdir() if file.suffix.lower() == f".{suffix}" and not file.name.startswith("."))
    groups: dict[str, list[pathlib.Path]] = {}
    for file in files:
        groups.setdefault(re.sub(r"(-\d{5}-of-\d{5}.*|[-_.]?\d+)$", "", file.stem), []).append(file)
    parts = _sorted(groups, str(path))
    train, held_out = ([file for name in names for file in groups[name]] for names in parts[:2])
    return train or files, held_out, parts.aside if train else []
