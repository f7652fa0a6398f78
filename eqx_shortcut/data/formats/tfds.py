"""Data sets that TensorFlow Datasets prepared, as tfrecord or array_record, without TensorFlow.

A file has no column of labels, and a tfrecord file no table of its records: one pass over the files finds both, and an index
keeps them.
"""

import concurrent.futures
import dataclasses
import io
import json
import os
import pathlib
import re
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Integer

from ... import storage
from ..errors import BadImage, DataError
from ..identity import hash_files
from . import array_record, example, tfrecord
from .labels import choose_labels

NONE = np.iinfo(np.int64).min
"""In an index, the label of a record that is no labelled image."""
NUMBERS = r"-(?P<shard>\d{5})-of-(?P<count>\d{5})"
NAME = re.compile(r"(?P<set>[^-]+)-(?P<split>.+)\.(?P<format>tfrecord|array_record)" + NUMBERS)


@dataclasses.dataclass(frozen=True)
class Features:
    """Names of the features that are the image and its label (None: there is none), and names of the classes."""

    image: str
    label: str | None
    names: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class TFDSRecords:
    """The records of the files of one split, one file after another."""

    paths: tuple[pathlib.Path, ...]
    features: Features
    labels: Integer[np.ndarray, " count"] | None
    places: Integer[np.ndarray, "count 3"]
    """File, place in it (offset, or number in array_record) and length of each record."""
    names: tuple[str, ...]
    notes: tuple[str, ...] = ()

    def encoded(self, index: int) -> bytes:
        file, place, length = map(int, self.places[index])
        path = self.paths[file]
        record = tfrecord.read(path, place, length) if _is_tfrecord(path) else array_record.read(path, place)
        return bytes(_features(record, self.features)[0])

    def where(self, index: int) -> str:
        file, _, _ = map(int, self.places[index])
        return f"record {index - np.searchsorted(self.places[:, 0], file)} of {self.paths[file]}"

    def __len__(self) -> int:
        return len(self.places)

    def sha256(self) -> str:
        return hash_files((path.name, path.stat().st_size) for path in self.paths)


def splits(folder: pathlib.Path) -> dict[str, tuple[pathlib.Path, ...]]:
    """The files of each split of a prepared data set: {"train": (imagenet2012-train.tfrecord-00000-of-01024, ...), ...}.

    Raises DataError if the folder does not exist, or a split lacks a file.
    """
    try:
        entries = sorted(os.listdir(folder))
    except OSError as error:
        raise DataError(f"no folder {folder.absolute()} ({error.strerror}): name another with --data.path") from error
    found: dict[str, list[str]] = {}
    for entry in entries:
        if match := NAME.fullmatch(entry):
            found.setdefault(match["split"], []).append(entry)
    for split, files in found.items():
        _check_whole(folder, split, files)
    return {split: tuple(folder / file for file in files) for split, files in found.items()}


def _check_whole(folder: pathlib.Path, split: str, files: Sequence[str]) -> None:
    matches = [match for file in files if (match := NAME.fullmatch(file))]
    if len({(match["format"], match["count"]) for match in matches}) > 1:
        raise DataError(f"{folder} holds split {split!r} twice ({files[0]}, {files[-1]}): keep one of the two")
    count = int(matches[0]["count"])
    missing = sorted(set(range(count)) - {int(match["shard"]) for match in matches})
    if missing:
        raise DataError(
            f"{len(missing)} of {count} files of split {split!r} are missing in {folder}, the first number {missing[0]:05d}: "
            "copy or prepare them again"
        )


def open_split(files: Sequence[pathlib.Path], index: pathlib.Path, label: str | None = None) -> TFDSRecords:
    """The records of these files, by the index in the folder `index`, which is made if it is missing or of other files.

    A record that is no labelled image has the label of the next one that is, which takes its place where images are
    replaced. Raises DataError if no record is one, or a file is truncated.
    """
    features = read_features(files[0].parent, label)
    made_of = _made_of(files, features)
    path = index / f"{re.sub(NUMBERS, '', files[0].name)}.npz"
    stored = _read_index(path, made_of)
    if stored is None:
        stored = _scan_all(files, features)
        _check_counts(files, stored["places"])
        _write_index(path, made_of | stored)
    if not np.any(stored["labels"] != NONE):
        raise DataError(f"no record of {files[0].parent} has an image {features.image!r} and a label: name other files")
    labels = _filled(stored["labels"]) if features.label else None
    return TFDSRecords(tuple(files), features, labels, stored["places"], features.names)


def read_features(folder: pathlib.Path, wanted: str | None = None) -> Features:
    """The features that features.json tells of; without that file `image` and `label`.

    The label is the one `wanted`, or the one by which the data set is supervised, or the only one that is a class or has a
    usual name. Raises DataError if several could be meant.
    """
    try:
        told = json.loads((folder / "features.json").read_bytes())["featuresDict"]["features"]
        kinds = {name: feature["pythonClassName"].rpartition(".")[2] for name, feature in told.items()}
    except FileNotFoundError:
        kinds = {"image": "Image", "label": "ClassLabel"}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise DataError(f"{folder / 'features.json'} does not tell of features ({error!r}): prepare the data again") from error
    image = next((name for name in kinds if kinds[name] == "Image"), None)
    if image is None:
        raise DataError(f"{folder / 'features.json'} tells of no image, found {kinds}: name another data set")
    numbers = [name for name in kinds if kinds[name] in ("ClassLabel", "Scalar", "Tensor")]
    marked = [name for name in numbers if kinds[name] == "ClassLabel"]
    supervised = None if wanted else _supervised(folder, numbers)
    label = supervised or choose_labels(numbers, wanted, str(folder), marked=marked)
    listed = folder / f"{label}.labels.txt"
    return Features(image, label, tuple(storage.read_text(listed).splitlines()) if listed.exists() else ())


def _supervised(folder: pathlib.Path, numbers: Sequence[str]) -> str | None:
    """The label that the data set is commonly used with, by dataset_info.json."""
    try:
        items = json.loads((folder / "dataset_info.json").read_bytes())["supervisedKeys"]["tuple"]["items"]
        return next((item["featureKey"] for item in items if item["featureKey"] in numbers), None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _features(record: bytes | memoryview, features: Features) -> tuple[memoryview, int]:
    values = example.parse(record)
    image, label = values.get(features.image), values.get(features.label) if features.label else 0
    if not isinstance(image, memoryview) or not isinstance(label, int):
        raise BadImage(f"its record has features {sorted(values)}, not {features.image!r} and {features.label!r}")
    return image, label


def _scan_all(files: Sequence[pathlib.Path], features: Features) -> dict[str, np.ndarray]:
    array_record.reader.cache_clear()  # of files that were written anew since
    with concurrent.futures.ThreadPoolExecutor() as threads:
        scanned = list(threads.map(lambda number: _scan(number, files[number], features), range(len(files))))
    rows = np.array([row for file in scanned for row in file], np.int64).reshape(-1, 4)
    return {"labels": rows[:, 3], "places": rows[:, :3]}


def _scan(number: int, path: pathlib.Path, features: Features) -> list[tuple[int, int, int, int]]:
    rows = []
    for place, record in (tfrecord if _is_tfrecord(path) else array_record).scan(path):
        try:
            label = _features(record, features)[1]
        except BadImage:
            label = NONE
        rows.append((number, place, len(record), label))
    return rows


def _check_counts(files: Sequence[pathlib.Path], places: Integer[np.ndarray, "count 3"]) -> None:
    """Raises DataError if a file does not hold as many records as dataset_info.json tells, as after a cut between two."""
    name = NAME.fullmatch(files[0].name)
    try:
        told = json.loads((files[0].parent / "dataset_info.json").read_bytes())["splits"]
        lengths = next(split["shardLengths"] for split in told if name and split["name"] == name["split"])
    except (OSError, ValueError, KeyError, TypeError, StopIteration):
        return
    for file, wanted, found in zip(files, lengths, np.bincount(places[:, 0], minlength=len(files)), strict=False):
        if found != int(wanted):
            raise DataError(f"{file} holds {found} records, by dataset_info.json {wanted}: copy or prepare it again")


def _filled(labels: Integer[np.ndarray, " count"]) -> Integer[np.ndarray, " count"]:
    good = np.flatnonzero(labels != NONE)
    return labels[good[np.searchsorted(good, np.arange(len(labels))) % len(good)]]


def _made_of(files: Sequence[pathlib.Path], features: Features) -> dict[str, np.ndarray]:
    """Names, sizes, beginnings and ends of the files: an index with the same ones is theirs, wherever they lie."""
    return {
        "format": np.array(2),
        "files": np.array([file.name for file in files]),
        "sizes": np.array([file.stat().st_size for file in files]),
        "ends": np.array([_ends(file) for file in files], np.int64),
        "features": np.array([features.image, features.label or ""]),
    }


def _ends(path: pathlib.Path) -> int:
    # Files of array_record are padded to blocks of 64 KiB, so that many are of one size.
    with path.open("rb") as file:
        checksum = zlib.crc32(file.read(4096))
        file.seek(max(0, path.stat().st_size - 4096))
        return zlib.crc32(file.read(4096), checksum)


def _is_tfrecord(path: pathlib.Path) -> bool:
    return ".tfrecord-" in path.name


def _read_index(path: pathlib.Path, made_of: dict[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            same = all(np.array_equal(stored[name], value) for name, value in made_of.items())
            return {name: stored[name] for name in ("labels", "places")} if same else None
    except Exception:  # missing or damaged in any way: it is made again
        return None


def _write_index(path: pathlib.Path, arrays: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    file = io.BytesIO()
    np.savez(file, **arrays)
    storage.write(path, file.getvalue())
