"""Folders: every image that Pillow reads is found, in its class and part, and all else is passed over and counted."""

import os
import pathlib

import numpy as np
import PIL.Image
import pytest

from eqx_shortcut.data import DataError, ImageFolder
from eqx_shortcut.data.formats import folder as folders
from eqx_shortcut.data.formats.folder import open_folder, open_folders
from eqx_shortcut.data.identity import summary
from eqx_shortcut.data.names import natural_sorted
from eqx_shortcut.data.parts import find_files, named
from eqx_shortcut.data.preprocess import FORMATS
from stored import PIXELS, PNGS, encode


def fill(root: pathlib.Path, *folders: str, count: int = 2, suffix: str = ".png") -> pathlib.Path:
    """So many images in each folder."""
    for folder in folders:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            (root / folder / f"{i}{suffix}").write_bytes(PNGS[i])
    return root


LEFT = [
    "cat/._0.png",
    "cat/.DS_Store",
    "cat/Thumbs.db",
    "cat/ehthumbs.db",
    "cat/Desktop.ini",
    "cat/Icon\r",
    "cat/0.png~",
    "cat/1.jpg.crdownload",
    "cat/1.jpg.part",
    "cat/@eaDir/0.png/SYNOPHOTO_THUMB_M.png",
    "cat/.ipynb_checkpoints/0-checkpoint.png",
    "__MACOSX/cat/._0.png",
    ".Trash-1000/files/0.png",
    ".git/0.png",
    "$RECYCLE.BIN/0.png",
    "System Volume Information/0.png",
    "lost+found/0.png",
    "FOUND.000/0.png",
    "#recycle/0.png",
    "cat/notes.txt",
    "cat/boxes.xml",
    "cat/README",
]


@pytest.mark.parametrize("path", LEFT)
def test_what_other_programs_leave_is_passed_over_and_counted(tmp_path, path):
    plain = open_folder(fill(tmp_path, "cat", "dog"))
    assert plain.notes == ()
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_bytes(b"text" if path.endswith(("txt", "xml", "README")) else PNGS[0])
    found = open_folder(tmp_path)
    assert (found.paths, found.names) == (plain.paths, plain.names)
    assert [note.startswith("passed over: ") and note.endswith(" 1") for note in found.notes] == [True]


def test_reasons_are_counted_and_the_rarest_added_up(tmp_path):
    fill(tmp_path, "cat", "empty", "dog", count=0)
    for name in ["a.txt", "b.TXT", *(f"x.{letter}" for letter in "cdefgh")]:
        (tmp_path / "cat" / name).write_text("no image")
    fill(tmp_path, "cat")
    (note,) = open_folder(tmp_path).notes
    counts = dict(part.rsplit(" ", 1) for part in note.removeprefix("passed over: ").split(", "))
    assert counts[".txt files"] == counts["folders without images"] == "2" and len(counts) == 7
    assert sum(map(int, counts.values())) == 10 and counts["others"] == "2"


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("suffix", ["own", "", ".tmp2", ".txt"])
def test_images_of_every_format_are_found_by_suffix_or_content(tmp_path, format, suffix):
    PIL.Image.init()
    if format not in PIL.Image.SAVE:
        pytest.skip(f"this Pillow does not write {format}")
    if format == "TGA" and suffix != "own":
        pytest.skip("TGA has no mark at its beginning")
    suffixes = FORMATS[format] if suffix == "own" else [suffix]
    fill(tmp_path, "cat", "fox")
    (tmp_path / "dog").mkdir()
    for i, end in enumerate(suffixes):
        (tmp_path / "dog" / f"{i}{end.upper()}").write_bytes(encode(PIXELS[0], format))
    train, held_out = ImageFolder(path=tmp_path, size=8).build()
    assert train.names == ("cat", "dog", "fox") and len(train.labels) + len(held_out.labels) == 4 + len(suffixes)
    train.rows(np.arange(len(train.labels)))


def test_a_file_with_the_suffix_of_an_image_is_not_opened_to_be_found(tmp_path, monkeypatch):
    fill(tmp_path, "cat", suffix=".JPEG")
    (tmp_path / "cat" / "odd").write_bytes(PNGS[0])
    asked: list[str] = []
    monkeypatch.setattr(folders, "is_image", lambda path: asked.append(path) or True)
    assert len(open_folder(tmp_path)) == 3 and [os.path.basename(path) for path in asked] == ["odd"]


def test_images_that_pillow_cannot_read_are_refused_by_name_and_not_missing(tmp_path):
    fill(tmp_path, "cat")
    fill(tmp_path, "dog", suffix=".heic")
    (tmp_path / "dog" / "0.heic").write_bytes(b"\0\0\0\x24ftypheic" + bytes(64))
    source = ImageFolder(path=tmp_path, size=8)
    train, _ = source.build()
    assert train.names == ("cat", "dog")
    with pytest.raises(DataError, match=r"dog/0.heic, cannot be used \(no image file, or of a format that is not read\)"):
        [part.rows(np.arange(len(part.labels))) for part in source.build()]


def test_deeper_folders_belong_to_their_class(tmp_path):
    fill(tmp_path, "cat", "dog/more/still", "dog", "bird/robin", "n01443537/images", "a/2019.jpg")
    found = open_folder(tmp_path)
    assert found.names == ("a", "bird", "cat", "dog", "n01443537")
    assert found.paths[4:10] == (
        "cat/0.png",
        "cat/1.png",
        "dog/0.png",
        "dog/1.png",
        "dog/more/still/0.png",
        "dog/more/still/1.png",
    )
    assert found.labels is not None and np.bincount(found.labels).tolist() == [2, 2, 2, 4, 2]
    assert all(found.encoded(i) == PNGS[i % 2] for i in range(len(found)))


@pytest.mark.parametrize("name", ["images", "IMG", "photos", "unlabeled"])
def test_one_folder_of_a_name_that_says_nothing_stands_for_what_it_holds(tmp_path, name):
    found = open_folder(fill(tmp_path / "flat", name))
    assert found.labels is None and found.names == () and len(found) == 2
    fill(tmp_path / "classes", f"{name}/cat", f"{name}/dog", "labels", count=2)
    for file in (tmp_path / "classes" / "labels").iterdir():
        file.write_text("0 0.5 0.5 1 1")
        file.rename(file.with_suffix(".txt"))
    assert open_folder(tmp_path / "classes").names == ("cat", "dog")
    train, held_out = open_folders(fill(tmp_path / "parts", f"{name}/train/cat", f"{name}/val/cat"))
    assert train.names == ("cat",) and held_out is not None


def test_folders_in_one_class_alone_are_pointed_at(tmp_path):
    (note,) = open_folder(fill(tmp_path, "archive/cat", "archive/dog")).notes
    assert f"if its folders (cat, ...) are the classes, name {tmp_path / 'archive'} with --data.path" in note


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["10", "9", "2", "1"], ["1", "2", "9", "10"]),
        (["class 11", "class 2", "class 1b", "class 1"], ["class 1", "class 1b", "class 2", "class 11"]),
        (["n02", "n01", "b", "B", "a10", "a9"], ["B", "a9", "a10", "b", "n01", "n02"]),
        (["001", "1", "01", "0"], ["0", "001", "01", "1"]),
    ],
)
def test_classes_are_in_natural_order(tmp_path, names, expected):
    assert natural_sorted(names) == expected and open_folder(fill(tmp_path, *names)).names == tuple(expected)


PARTS = [
    ("train", "val"),
    ("Train", "Test"),
    ("TRAIN", "VAL"),
    ("training", "validation"),
    ("Training", "Testing"),
    ("training_set", "test_set"),
    ("train2017", "val2017"),
    ("train_64x64", "valid_64x64"),
    ("seg_train", "seg_test"),
    ("ILSVRC2012_img_train", "ILSVRC2012_img_val"),
    ("TrainData", "EvalData"),
    ("train", "dev"),
]


@pytest.mark.parametrize(("train", "held_out"), PARTS)
@pytest.mark.parametrize("classes", [[""], ["cat", "dog"]])
def test_parts_are_known_by_their_usual_names(tmp_path, train, held_out, classes):
    fill(tmp_path, *(f"{train}/{name}" for name in classes), count=4)
    fill(tmp_path, *(f"{held_out}/{name}" for name in classes), count=1)
    one, other = ImageFolder(path=tmp_path, size=8).build()
    assert (len(one.labels), len(other.labels)) == (4 * len(classes), len(classes))
    assert one.classes == len(classes) and one.names == other.names == (() if classes == [""] else tuple(classes))


def test_validation_is_held_out_before_a_test_and_what_lies_beside_is_said(tmp_path):
    fill(tmp_path, "train/cat", "valid/cat", "test/cat", "extra")
    fill(tmp_path, ".", count=1)
    train, held_out = open_folders(tmp_path)
    assert held_out is not None and held_out.folder.name == "valid" and train.folder.name == "train"
    (note,) = train.notes
    assert note == f"left aside: images in extra, test, {tmp_path} itself"


def test_a_part_unpacked_into_a_folder_of_its_own_name_is_the_inner_one(tmp_path):
    train, held_out = open_folders(
        fill(tmp_path, "seg_train/seg_train/sea", "seg_test/seg_test/sea", "seg_train/seg_train/ice")
    )
    assert train.names == ("ice", "sea") and held_out is not None and held_out.names == ("sea",)


@pytest.mark.parametrize(
    "names", [["bus", "car", "train"], ["freight train", "tram"], ["test tube", "flask"], ["evil", "valley"]]
)
def test_classes_that_are_called_like_parts_are_classes(tmp_path, names):
    train, held_out = open_folders(fill(tmp_path, *names))
    assert train.names == tuple(sorted(names)) and held_out is None


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["cat", "dog", "test"], "a name of images held out, beside cat"),
        (["val", "test"], "holds val, a name of images held out, beside test"),
        (["Validation"], "and no images to train on"),
        (["train", "Train", "val"], "two names of one part"),
        (["train/cat", "val/cat", "valid/cat"], "two names of one part"),
        (["cat/train", "cat/test", "dog/train"], "if it is a class, put them outside, as train/cat and test/cat"),
        (["tiny/train/cat", "tiny/val/cat"], "name this folder with --data.path"),
    ],
)
def test_names_that_can_be_read_in_two_ways_are_refused_in_one_sentence(tmp_path, names, words):
    with pytest.raises(DataError) as caught:
        open_folders(fill(tmp_path, *names))
    assert words in str(caught.value) and str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_folder_is_no_part(tmp_path):
    fill(tmp_path, "cat", "dog")
    (tmp_path / "test").mkdir()
    train, held_out = open_folders(tmp_path)
    assert train.names == ("cat", "dog") and held_out is None


def test_a_part_without_labels_is_left_aside_where_the_images_have_some(tmp_path):
    fill(tmp_path, "train/cat", "train/dog", count=5)
    fill(tmp_path, "val/images", "test")
    train, held_out = ImageFolder(path=tmp_path, size=8).build()
    assert (len(train.labels), len(held_out.labels)) == (9, 1) and train.classes == 2
    assert "the 2 images to be held out have no labels" in summary(train, held_out)


def test_classes_of_parts_are_matched_by_name(tmp_path):
    fill(tmp_path, "train/cat", "train/dog", "train/fox", "val/fox")
    train, held_out = ImageFolder(path=tmp_path, size=8).build()
    assert held_out.labels.tolist() == [2, 2] and train.labels.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize(
    "name", ["train-00000-of-00002-ab12cd.parquet", "Training.parquet", "pets-train-1.parquet", "x_train.npy"]
)
def test_files_say_their_part(name):
    stem = name.partition(".")[0].partition("-00000")[0]
    assert (said := named(stem)) is not None and said.part == "train"


def test_files_of_parts_are_told_apart(tmp_path):
    for name in ("valid-0", "Train-00001-of-00002-1f", "Train-00000-of-00002-2e", "TEST", "._Train-0"):
        (tmp_path / f"{name}.parquet").touch()
    train, held_out, aside = find_files(tmp_path, "parquet")
    assert [path.name[:11] for path in train] == ["Train-00000", "Train-00001"]
    assert [path.stem for path in held_out] == ["valid-0"] and aside == ["TEST"]


# Links and what is neither a file nor a folder.


def test_links_are_followed_and_never_in_a_circle(tmp_path):
    fill(tmp_path / "store", "fox")
    fill(tmp_path / "photos", "cat")
    (tmp_path / "photos" / "fox").symlink_to(tmp_path / "store" / "fox")
    (tmp_path / "photos" / "cat" / "round").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "self").symlink_to(tmp_path / "photos")
    (tmp_path / "photos" / "itself").symlink_to("itself")
    fill(tmp_path / "one", "deep")
    (tmp_path / "one" / "other").symlink_to(tmp_path / "two")
    fill(tmp_path / "two", "deep")
    (tmp_path / "two" / "other").symlink_to(tmp_path / "one")
    (tmp_path / "photos" / "pair").symlink_to(tmp_path / "one")
    found = open_folder(tmp_path / "photos")
    assert found.names == ("cat", "fox", "pair") and len(found) == 8
    assert "links to folders read already 3" in found.notes[0] and "links to nothing, pipes and devices 1" in found.notes[0]


def test_a_link_to_nothing_is_a_bad_image_and_a_folder_called_jpg_is_a_folder(tmp_path):
    fill(tmp_path, "cat", "cat/album.jpg", count=4)
    (tmp_path / "cat" / "9.jpg").symlink_to("/nowhere/9.jpg")
    os.mkfifo(tmp_path / "cat" / "pipe.jpg")
    source = ImageFolder(path=tmp_path, size=8, held_out=0.2)
    with pytest.raises(DataError, match=r"cat/9.jpg, cannot be used \(a link to nothing\)"):
        [part.rows(np.arange(len(part.labels))) for part in source.build()]
    parts = ImageFolder(path=tmp_path, size=8, held_out=0.2, on_bad_image="replace").build()
    assert sum(len(part.labels) for part in parts) == 9
    assert sum(part.rows(np.arange(len(part.labels)))["replaced"].size for part in parts) == 1


@pytest.mark.parametrize("bad", [range(3), range(1, 4), [0, 1, 3], [0, 2, 3]])
def test_a_small_part_is_held_out_with_a_good_image_in_it(tmp_path, bad):
    fill(tmp_path, "cat", count=4)
    for i in bad:
        (tmp_path / "cat" / f"{i}.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"an empty file.*--data.on-bad-image replace"):
        [part.rows(np.arange(len(part.labels))) for part in ImageFolder(path=tmp_path, size=8).build()]
    _, held_out = ImageFolder(path=tmp_path, size=8, on_bad_image="replace").build()
    assert held_out.rows(np.array([0]))["pixels"].any()


def test_a_named_part_without_a_good_image_is_left_aside_where_bad_ones_are_replaced(tmp_path):
    fill(tmp_path, "train/cat", count=6)
    fill(tmp_path, "val/cat", count=1)
    (tmp_path / "val" / "cat" / "0.png").write_bytes(PNGS[0][:40])
    train, held_out = ImageFolder(path=tmp_path, size=8, on_bad_image="replace").build()
    assert (len(train.labels), len(held_out.labels)) == (5, 1)
    assert "the 1 images to be held out cannot be used" in summary(train, held_out)


@pytest.mark.parametrize("target", ["cat", "../links/cat"])
def test_two_classes_that_are_one_folder_are_refused(tmp_path, target):
    root = fill(tmp_path / "links", "cat", "dog")
    (root / "alias").symlink_to(target)
    with pytest.raises(DataError, match="holds alias and cat, which a link makes one folder: remove the link"):
        open_folder(root)


@pytest.mark.parametrize("above", ["archive/flowers", "archive/a/b", "archive"])
def test_classes_that_lie_deeper_in_one_folder_are_pointed_at(tmp_path, above):
    fill(tmp_path, f"{above}/cat", f"{above}/dog")
    (note,) = open_folder(tmp_path).notes
    assert note == f"one class alone: if its folders (cat, ...) are the classes, name {tmp_path / above} with --data.path"
