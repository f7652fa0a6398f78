"""From labels as people store them, numbers of any kind or names, to classes 0 ... n - 1, the same in every part."""

import dataclasses

import numpy as np
from jaxtyping import Bool, Shaped

from .errors import DataError
from .images import check_labels
from .names import listed, natural_sorted
from .records import Records, Subset, first_good, hold_out

Stored = Shaped[np.ndarray, " count"]


def number(train: Records, held_out: Records | None = None) -> tuple[Subset, Subset | None]:
    """Both parts with labels of classes that they have in common.

    Labels of named classes are matched by name. Others become 0, 1, ... in the order of their numbers, or of names in
    natural order. Without labels all images are of class 0. Raises DataError if some labels are missing, are not those of
    the classes named, or are of no class that is trained on.
    """
    parts = [train] if held_out is None else [train, held_out]
    if not labelled(train):
        told = "UNLABELLED: no image has a label, all are of one class"
        numbered = [Subset.of(part, np.zeros(len(part), np.int32), (), (told,)) for part in parts]
    elif any(part.names for part in parts):
        numbered = _by_name(parts)
    else:
        numbered = _by_value(parts)
    train_numbered, *rest = numbered
    return _with_gaps_noted(train_numbered), rest[0] if rest else None


def split(train: Records, held_out: Records | None, share: float, *, replace: bool) -> tuple[Subset, Subset]:
    """Training and held-out records, their classes numbered.

    A share of the training images is held out instead if there is no held-out part, if it alone has no labels, or, where bad
    images are replaced, if it has no good one.
    """
    useless = None
    if held_out is not None and labelled(train) and not labelled(held_out):
        useless = "have no labels"
    elif held_out is not None and replace and first_good(held_out) is None:
        useless = "cannot be used"
    rest = None if useless else held_out
    numbered, numbered_rest = number(train, rest)
    if numbered_rest is not None:
        return numbered, numbered_rest
    if useless and held_out is not None:
        told = f"the {len(held_out):,} images to be held out {useless} ({held_out.where(0)}): a share of the others is held out"
        numbered = dataclasses.replace(numbered, notes=(*numbered.notes, told))
    return hold_out(numbered, share, replace=replace)


def labelled(part: Records) -> bool:
    """Whether any image has a label."""
    return part.labels is not None and not _missing(part.labels).all()


def _missing(labels: Stored) -> Bool[np.ndarray, " count"]:
    return labels == ("" if labels.dtype.kind == "U" else -1)


def _by_name(parts: list[Records]) -> list[Subset]:
    names, numbered = next(part.names for part in parts if part.names), []
    for part in parts:
        labels, own = part.labels, part.names or names
        assert labels is not None
        if not set(own) <= set(names):
            raise DataError(
                f"the sets of {parts[0].where(0)} and {part.where(0)} have {len(names)} and {len(own)} classes, which differ "
                f"in {min(set(own) ^ set(names))!r}: give training and held-out images the same classes"
            )
        if labels.dtype.kind not in "iu":
            raise DataError(f"labels of {part.where(0)} are no numbers of the {len(own)} classes that it names: correct them")
        check_labels(labels, len(own), part.where)
        classes = np.array([names.index(name) for name in own], np.int32)
        numbered.append(Subset.of(part, classes[labels.astype(np.int64)], names))
    return numbered


def _by_value(parts: list[Records]) -> list[Subset]:
    values = [_unique(part) for part in parts]
    if len({isinstance(value, str) for own, _ in values for value in own}) > 1:
        raise DataError(f"labels of {parts[0].where(0)} and {parts[-1].where(0)} are numbers and names: give both the same")
    stored = {value for own, _ in values for value in own}
    ordered = natural_sorted(map(str, stored)) if isinstance(next(iter(stored)), str) else sorted(stored)
    classes = {value: i for i, value in enumerate(ordered)}
    # A bool equals a number, and has a name of its own.
    plain = all(type(value) is int for value in ordered) and ordered == list(range(len(ordered)))
    names = () if plain else tuple(map(str, ordered))
    notes = () if plain else (f"labels {listed(names)} are classes 0 to {len(names) - 1}",)
    return [
        Subset.of(part, np.array([classes[value] for value in own], np.int32)[inverse], names, notes)
        for part, (own, inverse) in zip(parts, values, strict=True)
    ]


def _unique(part: Records) -> tuple[list[int | str], Shaped[np.ndarray, " count"]]:
    """Different labels, and for each image which it has. Raises DataError if there are negative ones or some are missing."""
    assert part.labels is not None
    labels = part.labels
    if labels.dtype.kind == "U" and (missing := np.flatnonzero(_missing(labels))).size:
        raise DataError(
            f"{part.where(int(missing[0]))} has no label ({missing.size} such images): give it one, or leave it out"
        )
    values, inverse = np.unique(labels, return_inverse=True)
    if labels.dtype.kind == "i" and values[0] < 0:
        check_labels(labels, int(values[-1]) + 1, part.where)
    return values.tolist(), inverse


def _with_gaps_noted(train: Subset) -> Subset:
    classes = len(train.names) or int(train.labels.max()) + 1
    empty = np.flatnonzero(np.bincount(train.labels, minlength=classes) == 0)
    if not empty.size:
        return train
    called = [train.names[i] if train.names else str(i) for i in empty.tolist()]
    return dataclasses.replace(train, notes=(*train.notes, f"no image to train on is of class {listed(called)}"))
