"""The identity of a set of images, wherever it lies: recorded by a run or a cache, and compared when either goes on."""

import hashlib
import os
from collections.abc import Iterable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Integer

from .names import listed

Identity = dict[str, Any]
"""{"train": count, "held_out": count, "classes": count, "names": [...], "sha256": [of each part]}, as JSON holds it."""


@runtime_checkable
class Identified(Protocol):
    """Images, in memory or in files, or what was made of them."""

    @property
    def labels(self) -> Integer[np.ndarray, " count"]: ...
    @property
    def classes(self) -> int: ...
    @property
    def names(self) -> tuple[str, ...]: ...
    @property
    def notes(self) -> tuple[str, ...]: ...
    def digest(self) -> str: ...


def hash_files(files: Iterable[tuple[str, int]]) -> str:
    """SHA-256 of names and sizes."""
    return hashlib.sha256(b"".join(os.fsencode(name) + b"\0%d\n" % size for name, size in files)).hexdigest()


def identity(train: Identified, held_out: Identified) -> Identity:
    """Counts, names of the classes in order, and hashes of names and sizes of the files, and of the labels."""
    return {
        "train": len(train.labels),
        "held_out": len(held_out.labels),
        "classes": train.classes,
        "names": list(train.names),
        "sha256": [train.digest(), held_out.digest()],
    }


def changed(recorded: Identity, present: Identity) -> str | None:
    """The first difference from what was recorded, as a sentence without its full stop; None if there is none."""
    old, new = ([str(name) for name in known["names"]] for known in (recorded, present))
    if old != new:
        place = next((i for i, (one, other) in enumerate(zip(old, new, strict=False)) if one != other), min(len(old), len(new)))
        was, now = (repr(listed([names[place]])) if place < len(names) else "none" for names in (old, new))
        return f"class {place} of {len(new)} is {now} now, and was {was} of {len(old)}"
    for part, noun in (("train", "training"), ("held_out", "held-out")):
        if recorded[part] != present[part]:
            return f"there are {present[part]:,} {noun} images now, and were {recorded[part]:,}"
    if recorded["classes"] != present["classes"]:
        return f"there are {present['classes']} classes now, and were {recorded['classes']}"
    if recorded["sha256"] != present["sha256"]:
        return "the files have other names, sizes or labels now"
    return None


def summary(train: Identified, held_out: Identified) -> str:
    """One line on a data set: images, classes with the first names and their counts, what was passed over."""
    counts = np.bincount(train.labels, minlength=train.classes)
    called = [f"{name} ({count:,})" for name, count in zip(train.names or range(train.classes), counts.tolist(), strict=True)]
    classes = f"{train.classes:,} class{'es' * (train.classes > 1)}: {listed(called)}"
    notes = dict.fromkeys((*train.notes, *(f"held out: {note}" for note in held_out.notes if note not in train.notes)))
    return "; ".join((f"{len(train.labels):,} training and {len(held_out.labels):,} held-out images", classes, *notes))
