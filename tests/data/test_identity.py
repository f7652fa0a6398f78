"""The identity of images: another place is the same, another meaning is one sentence."""

import os
import pathlib
import shutil
from collections.abc import Callable

import numpy as np
import pytest

from eqx_shortcut.data import Arrays, Digits, ImageFolder, Images
from eqx_shortcut.data.identity import Identified, Identity, changed, identity, summary
from eqx_shortcut.data.records import ImageRecords
from stored import ENCODED, FORMATS, LABELS, PIXELS, PNGS, as_folder


def of(path: pathlib.Path) -> Identity:
    return identity(*ImageFolder(path=path, size=8).build())


@pytest.fixture
def pets(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "pets").mkdir()
    as_folder(tmp_path / "pets", PNGS, LABELS)
    return tmp_path / "pets"


def test_the_same_images_elsewhere_are_the_same(pets, tmp_path, monkeypatch):
    recorded = of(pets)
    assert recorded["names"] == ["bird", "cat", "dog"] and (recorded["train"], recorded["held_out"]) == (11, 1)
    assert changed(recorded, of(shutil.copytree(pets, tmp_path / "copy"))) is None
    (tmp_path / "link").symlink_to(pets)
    assert changed(recorded, of(tmp_path / "link")) is None
    (pets / "cat" / ".DS_Store").touch()
    (pets / "Thumbs.db").touch()
    monkeypatch.chdir(tmp_path)
    assert changed(recorded, of(pathlib.Path("pets"))) is None
    assert changed(recorded, of(pets.rename(tmp_path / "moved"))) is None


CHANGES: dict[str, tuple[Callable[[pathlib.Path], object], str]] = {
    "renamed": (lambda p: (p / "bird").rename(p / "zebra"), "class 0 of 3 is 'cat' now, and was 'bird' of 3"),
    "renamed in place": (lambda p: (p / "cat").rename(p / "cow"), "class 1 of 3 is 'cow' now, and was 'cat' of 3"),
    "another class": (lambda p: shutil.copytree(p / "cat", p / "eel"), "class 3 of 4 is 'eel' now, and was none of 3"),
    "a class less": (lambda p: shutil.rmtree(p / "dog"), "class 2 of 2 is none now, and was 'dog' of 3"),
    "another image": (lambda p: (p / "cat" / "x.png").write_bytes(PNGS[0]), "there are 12 training images now, and were 11"),
    "an image less": (lambda p: (p / "cat" / "05.png").unlink(), "there are 10 training images now, and were 11"),
    "another size": (lambda p: (p / "cat" / "05.png").write_bytes(PNGS[0] + b"?" * 9), "other names, sizes or labels"),
    "another name": (lambda p: (p / "cat" / "05.png").rename(p / "cat" / "055.png"), "other names, sizes or labels"),
    "another class of one": (lambda p: (p / "cat" / "05.png").rename(p / "dog" / "05.png"), "other names, sizes or labels"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_means_something_else_is_one_sentence(pets, change):
    recorded = of(pets)
    spoil, words = CHANGES[change]
    spoil(pets)
    said = changed(recorded, of(pets))
    assert said is not None and words in said and "\n" not in said


@pytest.mark.parametrize("format", FORMATS)
def test_every_format_has_an_identity_that_does_not_tell_its_place(tmp_path, format):
    found = []
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        found.append(identity(*FORMATS[format](tmp_path / place, PNGS, LABELS).build()))
    assert changed(*found) is None and found[0] == found[1]
    if format in ENCODED and format != "flat folder":
        (tmp_path / "three").mkdir()
        other = identity(*FORMATS[format](tmp_path / "three", PNGS, LABELS[::-1]).build())
        assert changed(found[0], other) == "the files have other names, sizes or labels now"


def test_images_in_memory_are_known_by_what_they_are():
    images = Images(PIXELS, LABELS, classes=3, names=("a", "b", "c"))
    recorded = identity(images, images.first(2))
    assert changed(recorded, identity(Images(PIXELS.copy(), LABELS, classes=3, names=images.names), images.first(2))) is None
    assert changed(recorded, identity(Images(PIXELS, 2 - LABELS, classes=3, names=images.names), images.first(2)))
    assert changed(recorded, identity(Images(255 - PIXELS, LABELS, classes=3, names=images.names), images.first(2)))
    assert Digits().build()[0].names == tuple("0123456789")


def test_an_array_is_known_wherever_it_lies_and_whatever_it_is_called(tmp_path):
    np.savez(tmp_path / "a.npz", images=PIXELS, y=LABELS)
    recorded = identity(*Arrays(path=tmp_path / "a.npz", size=8).build())
    os.rename(tmp_path / "a.npz", tmp_path / "b.npz")
    assert changed(recorded, identity(*Arrays(path=tmp_path / "b.npz", size=8).build())) is None


def test_a_summary_is_one_line_with_classes_and_counts(pets):
    (pets / "cat" / "Thumbs.db").touch()
    train, held_out = ImageFolder(path=pets, size=8).build()
    assert isinstance(train, Identified) and isinstance(train, ImageRecords)
    bird, cat, dog = np.bincount(train.labels)
    classes = f"3 classes: bird ({bird}), cat ({cat}), dog ({dog})"
    told = "passed over: left by other programs 1"
    assert summary(train, held_out) == f"11 training and 1 held-out images; {classes}; {told}"
    many = Images(np.zeros((20, 2, 2, 1), np.uint8), np.arange(20), classes=20)
    classes = "20 classes: 0 (1), 1 (1), 2 (1), 3 (1), 4 (1), ... (20)"
    assert summary(many, many.first(1)) == f"20 training and 1 held-out images; {classes}"


def test_a_name_of_any_bytes_can_be_printed(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "0.png").write_bytes(PNGS[0])
    os.mkdir(os.fsencode(tmp_path) + b"/d\xe9g")
    for i in range(2):
        (tmp_path / os.fsdecode(b"d\xe9g") / f"{i}.png").write_bytes(PNGS[i])
    train, held_out = ImageFolder(path=tmp_path, size=8).build()
    assert "d\\udce9g" in summary(train, held_out).encode("utf-8").decode() and len(of(tmp_path)["sha256"]) == 2
