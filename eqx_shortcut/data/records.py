"""Sets of images that are read and decoded when their turn comes, whatever the format that holds them."""

import dataclasses
import hashlib
import itertools
from collections.abc import Mapping
from typing import ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Integer, PRNGKeyArray, Shaped, UInt8

from ..types import Batch
from .errors import BadImage, DataError
from .images import check_labels, floats
from .preprocess import Encoded, decode, square

OnBadImage = Literal["refuse", "replace"]


@runtime_checkable
class Records(Protocol):
    """Random access to encoded images. It holds no open file, so that a copy of it reaches a worker process."""

    @property
    def labels(self) -> Shaped[np.ndarray, " count"] | None:
        """The label of each image as stored, a number or a name, or that of a class in `names`; None if there are none."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in order of their labels; empty if they are not known."""
        ...

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks for the user on how they were found: files passed over, labels that are missing."""
        ...

    def __len__(self) -> int:
        """How many images there are."""
        ...

    def sha256(self) -> str:
        """Hash of names and sizes of the files, by which they are known wherever they lie."""
        ...

    def encoded(self, index: int) -> Encoded:
        """One image as stored. Raises BadImage if there is none at its place, DataError if its file cannot be read."""
        ...

    def where(self, index: int) -> str:
        """File and index of one image."""
        ...


@dataclasses.dataclass(frozen=True)
class Subset:
    """Some of the records, in the order of `indices`, each with the number of its class."""

    records: Records
    indices: Integer[np.ndarray, " count"]
    labels: Integer[np.ndarray, " count"]
    names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, records: Records, labels: Integer[np.ndarray, " count"], names: tuple[str, ...], notes: tuple[str, ...] = ()
    ) -> "Subset":
        """All of the records, with these labels, and more to be said of them."""
        return cls(records, np.arange(len(records)), labels, names, (*records.notes, *notes))

    def __len__(self) -> int:
        return len(self.indices)

    def encoded(self, index: int) -> Encoded:
        return self.records.encoded(int(self.indices[index]))

    def where(self, index: int) -> str:
        return self.records.where(int(self.indices[index]))

    def sha256(self) -> str:
        return self.records.sha256()

    def take(self, chosen: Integer[np.ndarray, " chosen"]) -> "Subset":
        """The records at these positions."""
        return dataclasses.replace(self, indices=self.indices[chosen], labels=self.labels[chosen])


def hold_out(records: Subset, share: float, *, replace: bool = False) -> tuple[Subset, Subset]:
    """Training and held-out records: `share` of them, at least one, drawn with a fixed seed. Raises DataError for one.

    If bad images are to be replaced, one that is good is among those held out, where there is one at all.
    """
    count = len(records.labels)
    if count < 2:
        raise DataError(f"{records.where(0)} is the only one, and one must be held out: add images")
    order = np.random.default_rng(0).permutation(count)
    held_out = min(max(1, round(count * share)), count - 1)
    if replace:
        good, last = first_good(records.take(order)) or 0, held_out - 1
        if good > last:
            order[[last, good]] = order[[good, last]]
    train, rest = (records.take(np.sort(part)) for part in (order[held_out:], order[:held_out]))
    return train, dataclasses.replace(rest, notes=())


def first_good(records: Records) -> int | None:
    """The first image that can be used."""

    def good(index: int) -> bool:
        try:
            decode(records.encoded(index))
        except BadImage:
            return False
        return True

    return next(filter(good, range(len(records))), None)


@dataclasses.dataclass(frozen=True)
class ImageRecords(Subset):
    """Records as squares of `size` x `size` RGB bytes, with a label each from 0 to `classes - 1`.

    A bad image is refused, or replaced by the next good one (after the last comes the first) with its label: an image's
    position never changes.
    """

    _: dataclasses.KW_ONLY
    size: int
    classes: int
    on_bad_image: OnBadImage = "refuse"
    bad: dict[int, str] = dataclasses.field(default_factory=dict, compare=False)
    """Images replaced so far: index, and a sentence with file, index and reason."""

    peak: ClassVar[int] = 255
    noun: ClassVar[str] = "images"

    def __post_init__(self):
        check_labels(self.labels, self.classes, self.where)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of one image."""
        return self.size, self.size, 3

    def digest(self) -> str:
        """SHA-256 of the files' names and sizes, the numbers of the images taken, and their labels."""
        taken = self.indices.astype("<i8").tobytes() + self.labels.astype("<i4").tobytes()
        return hashlib.sha256(self.sha256().encode() + taken).hexdigest()

    def rows(self, indices: Integer[np.ndarray, " rows"]) -> dict[str, np.ndarray]:
        """Images and labels at `indices`, and in `replaced` those of the indices whose image is bad.

        Raises DataError at a bad image if they are refused, or if there is no good one.
        """
        # In rising order, since what lies close together is read together.
        good = {int(index): self._good(int(index)) for index in np.sort(indices)}
        used, squares = zip(*(good[int(index)] for index in indices), strict=True)
        replaced = np.unique(indices[np.array(used) != indices])
        return {"pixels": np.stack(squares), "labels": self.labels[np.array(used)], "replaced": replaced}

    def first(self, count: int) -> "ImageRecords":
        """The first `count` images."""
        return dataclasses.replace(self, indices=self.indices[:count], labels=self.labels[:count])

    def batch(self, raw: dict[str, Array], key: PRNGKeyArray, *, mirror: bool) -> Batch:
        """Images in [-1, 1] with their labels, mirrored with probability 1/2 each if `mirror`."""
        return Batch(floats(raw["pixels"], self.peak, key, mirror=mirror), raw["labels"])

    def note(self, rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`rows` without `replaced`, which is added to `bad`. Workers decode, but what they find is counted in one place."""
        for index in map(int, rows["replaced"]):
            if index not in self.bad:
                self.bad[index] = self._reason(index)
        return {name: array for name, array in rows.items() if name != "replaced"}

    def _good(self, index: int) -> tuple[int, UInt8[np.ndarray, "size size 3"]]:
        count = len(self.labels)
        for place in itertools.chain(range(index, count), range(index)):
            try:
                return place, square(self.encoded(place), self.size)
            except BadImage as error:
                if self.on_bad_image == "refuse":
                    raise DataError(
                        f"{self._sentence(place, error)}: repair or remove it, or have the next good image in place of such "
                        "ones with --data.on-bad-image replace"
                    ) from error
        raise DataError(f"{self._reason(index)}, and so it is with all {count} images: name other files")

    def _reason(self, index: int) -> str:
        try:
            square(self.encoded(index), self.size)
        except BadImage as error:
            return self._sentence(index, error)
        return f"{self.where(index)} could not be used before"

    def _sentence(self, index: int, error: BadImage) -> str:
        return f"{self.where(index)} cannot be used ({error})"


def class_count(*parts: Subset) -> int:
    """Classes of records that belong together: those with a name, or else up to the largest label."""
    return len(parts[0].names) or int(max(part.labels.max() for part in parts)) + 1
