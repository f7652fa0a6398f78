"""Labels as people store them: each kind becomes classes 0 ... n - 1 and is said, or is refused in one sentence."""

import json
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest

from eqx_shortcut.data import TFDS, Arrays, DataError, Parquet
from eqx_shortcut.data.formats.labels import NAMES
from eqx_shortcut.data.identity import summary
from eqx_shortcut.data.sources import Photos
from stored import LABELS, PIXELS, PNGS, example, write_tfds

CLASSES = ("bird", "cat", "dog")
MAX = 2**64 - 1


def npz(folder: pathlib.Path, wanted: str | None = None, /, **arrays: object) -> Arrays:
    labels: Any = {name: np.asarray(array) for name, array in arrays.items()}
    np.savez(folder / "a.npz", images=PIXELS, **labels)
    return Arrays(path=folder / "a.npz", size=8, label=wanted, held_out=0.3)


def parquet(folder: pathlib.Path, wanted: str | None = None, /, *, marked: tuple[str, ...] = (), **columns: object) -> Parquet:
    table = pa.table({"image": list(PNGS), **columns})
    told = {"info": {"features": {name: {"names": CLASSES, "_type": "ClassLabel"} for name in marked}}}
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), folder / "a.parquet")
    return Parquet(path=folder / "a.parquet", size=8, label=wanted, held_out=0.3)


WRITERS = [npz, parquet]


def all_labels(source: Photos) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels of all images in the order of the files, and names of the classes."""
    parts = source.build()
    found = np.empty(len(PIXELS), np.int32)
    for part in parts:
        found[part.indices] = part.labels
        assert part.labels.dtype == np.int32 and part.names == parts[0].names
    return found, parts[0].names


def refusal(source: Photos) -> str:
    with pytest.raises(DataError) as caught:
        source.build()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", [*NAMES, "Label", "LABELS", "ClassId", "fine-label"])
@pytest.mark.parametrize("write", WRITERS)
def test_labels_are_found_under_their_usual_names(tmp_path, write, name):
    np.testing.assert_array_equal(all_labels(write(tmp_path, **{name: LABELS, "id": np.arange(12)}))[0], LABELS)


@pytest.mark.parametrize("write", WRITERS)
def test_several_columns_that_could_be_meant_are_asked_about(tmp_path, write):
    for first, second in (("fine_label", "coarse_label"), ("y", "target"), ("label", "labels")):
        message = refusal(write(tmp_path, **{first: LABELS, second: 2 - LABELS}))
        assert repr(first) in message and repr(second) in message and "--data.label" in message
        np.testing.assert_array_equal(all_labels(write(tmp_path, second, **{first: LABELS, second: 2 - LABELS}))[0], 2 - LABELS)
    assert "has no 'breed', found ['y']" in refusal(write(tmp_path, "breed", y=LABELS))
    np.testing.assert_array_equal(all_labels(write(tmp_path, "breed", y=2 - LABELS, breed=LABELS))[0], LABELS)


@pytest.mark.parametrize("write", WRITERS)
def test_a_set_without_labels_says_so_and_what_could_be_some(tmp_path, write):
    source = write(tmp_path, breed=LABELS)
    assert not all_labels(source)[0].any()
    assert (
        "1 class" in (told := summary(*source.build()))
        and "UNLABELLED" in told
        and "not taken for labels: breed; name one with --data.label" in told
    )


def test_columns_that_hugging_face_marks_as_classes_are_labels(tmp_path):
    assert all_labels(parquet(tmp_path, marked=("breed",), breed=LABELS, id=np.arange(12)))[1] == CLASSES
    assert "'breed' and in 'kind'" in refusal(parquet(tmp_path, marked=("breed", "kind"), breed=LABELS, kind=LABELS))


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("pets", "pets_labels"),
        ("pets", "pets_label"),
        ("x", "x_labels"),
        ("images", "labels"),
        ("x_train", "y_train"),
        ("X", "y"),
    ],
)
def test_labels_beside_an_array_of_images_are_found(tmp_path, images, labels):
    np.save(tmp_path / f"{images}.npy", PIXELS)
    np.save(tmp_path / f"{labels}.npy", LABELS)
    np.save(tmp_path / "other_labels.npy", 0 * LABELS) if images == "pets" else None
    np.testing.assert_array_equal(all_labels(Arrays(path=tmp_path / f"{images}.npy", size=8))[0], LABELS)


KINDS = {
    "64 bits": (LABELS.astype(np.int64), LABELS, ()),
    "bytes": (LABELS.astype(np.uint8), LABELS, ()),
    "whole floats": (LABELS.astype(np.float64), LABELS, ()),
    "from 1": (LABELS + 1, LABELS, ("1", "2", "3")),
    "gaps": (np.array([900, 7, 30])[LABELS], np.array([2, 0, 1])[LABELS], ("7", "30", "900")),
    "beyond 32 bits": (np.array([2**40, 5, 2**32 + 5])[LABELS], np.array([2, 0, 1])[LABELS], ("5", str(2**32 + 5), str(2**40))),
    "unsigned of 64 bits": (
        np.array([MAX, 0, 2**63], np.uint64)[LABELS],
        np.array([2, 0, 1])[LABELS],
        ("0", str(2**63), str(MAX)),
    ),
    "text": (np.array(["dog", "ant", "cow"])[LABELS], np.array([2, 0, 1])[LABELS], ("ant", "cow", "dog")),
    "numbers as text": (np.array(["10", "9", "2"])[LABELS], np.array([2, 1, 0])[LABELS], ("2", "9", "10")),
    "bool": (LABELS > 0, np.minimum(LABELS, 1), ("False", "True")),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("write", WRITERS)
def test_labels_of_every_kind_are_classes_in_their_order_and_said(tmp_path, write, kind):
    stored, labels, names = KINDS[kind]
    source = write(tmp_path, label=stored)
    found = all_labels(source)
    np.testing.assert_array_equal(found[0], labels)
    assert found[1] == names and bool(names) == ("are classes 0 to" in summary(*source.build()))


def test_labels_in_a_dictionary_and_bytes_are_text(tmp_path):
    cells = pa.array(list("cabcabcabcab")).dictionary_encode()
    assert all_labels(parquet(tmp_path, label=cells))[1] == ("a", "b", "c")
    assert all_labels(npz(tmp_path, label=np.array([b"c", b"a", b"b"] * 4)))[1] == ("a", "b", "c")


def test_one_column_of_labels_is_taken(tmp_path):
    np.testing.assert_array_equal(all_labels(npz(tmp_path, label=LABELS[:, None]))[0], LABELS)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([*LABELS[:-1], -1], ["label -1 of image 11 of", "1 such labels", "leave out images without one"]),
        ([*LABELS[:-1], -7], ["label -7 of image 11 of"]),
        (LABELS + 0.5, ["give 12 whole numbers", "label 0 is 0.5"]),
        ([*LABELS[:-1], np.inf], ["label 11 is inf"]),
        ([*LABELS[:-1].astype(float), np.nan], ["label -1 of image 11"]),
        ([*"abcabcabcab", ""], ["image 11 of", "has no label (1 such images)"]),
    ],
)
@pytest.mark.parametrize("write", WRITERS)
def test_labels_that_are_none_are_refused(tmp_path, write, labels, words):
    message = refusal(write(tmp_path, label=labels))
    assert all(word in message for word in words), message


def test_labels_of_other_types_are_refused(tmp_path):
    assert "holds list" in refusal(parquet(tmp_path, label=[[0, 1]] * 12))
    assert "holds timestamp" in refusal(parquet(tmp_path, label=pa.array(np.zeros(12, "datetime64[s]"))))
    assert "give 12 whole numbers or names" in refusal(npz(tmp_path, label=np.eye(12, 3)))
    assert "give 12 whole numbers or names" in refusal(npz(tmp_path, label=LABELS.astype(np.complex64)))
    for column in ([*LABELS[:-1], None], pa.array([*LABELS[:-1], None], pa.uint64()), [*(LABELS > 0)[:-1].tolist(), None]):
        assert "label -1 of image 11" in refusal(parquet(tmp_path, label=column))


@pytest.mark.parametrize("missing", [-1, None, np.nan, ""])
def test_a_test_part_without_labels_is_left_aside(tmp_path, missing):
    """Of sets whose labels are secret, Hugging Face's test part has -1 throughout."""
    (tmp_path / "a").mkdir()
    labels = [CLASSES[i] for i in LABELS] if missing == "" else LABELS
    for name, column in (("train", labels), ("test", [missing] * 12)):
        pyarrow.parquet.write_table(pa.table({"image": list(PNGS), "label": column}), tmp_path / "a" / f"{name}.parquet")
    train, held_out = Parquet(path=tmp_path / "a", size=8).build()
    assert (len(train.labels), len(held_out.labels), train.classes) == (11, 1, 3)
    assert "the 12 images to be held out have no labels" in summary(train, held_out)
    pyarrow.parquet.write_table(pa.table({"image": list(PNGS), "label": [missing] * 12}), tmp_path / "b.parquet")
    train, held_out = Parquet(path=tmp_path / "b.parquet", size=8).build()
    assert train.classes == 1 and not train.labels.any() and "UNLABELLED" in summary(train, held_out)


def test_labels_of_both_parts_are_numbered_alike(tmp_path):
    for name, labels in (("train", [3, 9, 11] * 4), ("val", [11, 9] * 6)):
        np.savez(tmp_path / f"{name}.npz", images=PIXELS, y=labels)
    train, held_out = Arrays(path=tmp_path, size=8).build()
    assert train.names == held_out.names == ("3", "9", "11") and held_out.labels.tolist() == [2, 1] * 6
    np.savez(tmp_path / "val.npz", images=PIXELS, y=["11", "9"] * 6)
    assert "numbers and names" in refusal(Arrays(path=tmp_path, size=8))


def test_a_class_without_images_to_train_on_is_said(tmp_path):
    source = parquet(tmp_path, marked=("label",), label=np.minimum(LABELS, 1))
    assert source.build()[0].classes == 3 and "no image to train on is of class dog" in summary(*source.build())


def test_files_that_number_their_classes_differently_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    for name, names in (("train-0", CLASSES), ("train-1", CLASSES[::-1])):
        told = {"info": {"features": {"label": {"names": names}}}}
        table = pa.table({"image": list(PNGS), "label": LABELS}).replace_schema_metadata({"huggingface": json.dumps(told)})
        pyarrow.parquet.write_table(table, tmp_path / "a" / f"{name}.parquet")
    assert "give all files the same" in refusal(Parquet(path=tmp_path / "a"))


def tell(folder: pathlib.Path, supervised: str | None, **kinds: str) -> None:
    features = {name: {"pythonClassName": f"tfds.{kind}"} for name, kind in {"image": "Image", **kinds}.items()}
    (folder / "features.json").write_text(json.dumps({"featuresDict": {"features": features}}))
    items = [{"featureKey": "image"}, {"featureKey": supervised}]
    told = {"supervisedKeys": {"tuple": {"items": items}}} if supervised else {}
    (folder / "dataset_info.json").write_text(json.dumps(told))


def test_of_several_classes_of_tensorflow_datasets_the_supervised_one_is_the_label(tmp_path):
    records = [example(image=[png], coarse_label=[0], label=[int(i)]) for png, i in zip(PNGS, LABELS, strict=True)]
    write_tfds(tmp_path, "tfrecord", records)
    tell(tmp_path, "label", coarse_label="ClassLabel", label="ClassLabel")
    np.testing.assert_array_equal(all_labels(TFDS(path=tmp_path, size=8, index=tmp_path))[0], LABELS)
    assert not all_labels(TFDS(path=tmp_path, size=8, index=tmp_path, label="coarse_label"))[0].any()
    tell(tmp_path, None, coarse_label="ClassLabel", label="ClassLabel")
    assert "--data.label" in refusal(TFDS(path=tmp_path, size=8, index=tmp_path))


def test_labels_of_64_bits_in_tensorflow_datasets_are_not_cut(tmp_path):
    stored = [2**31 + 7, 2**40, 7]
    write_tfds(tmp_path, "tfrecord", [example(image=[png], y=[stored[i]]) for png, i in zip(PNGS, LABELS, strict=True)])
    tell(tmp_path, None, y="Tensor")
    found, names = all_labels(TFDS(path=tmp_path, size=8, index=tmp_path))
    np.testing.assert_array_equal(found, np.array([1, 2, 0])[LABELS])
    assert names == ("7", str(2**31 + 7), str(2**40))


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((9, 3, 20, 20), "with 20 channels: put the channels last"),
        ((9, 1, 28, 28), "with 28 channels: put the channels last"),
        ((20, 20, 3), "holds uint8 of shape"),
        ((20, 20, 1), "holds uint8 of shape"),
        ((0, 20, 20, 3), "holds uint8 of shape"),
        ((9, 1200), "holds uint8 of shape"),
    ],
)
def test_arrays_that_are_no_images_are_refused_by_their_shape(tmp_path, shape, words):
    np.savez(tmp_path / "a.npz", images=np.zeros(shape, np.uint8))
    with pytest.raises(DataError, match=words):
        Arrays(path=tmp_path / "a.npz").build()


@pytest.mark.parametrize("name", ["A.NPZ", "a.Npz"])
def test_a_suffix_is_read_in_any_case(tmp_path, name):
    images = np.zeros((9, 20, 20, 3), np.uint8)
    with (tmp_path / name).open("wb") as file:
        np.savez(file, images=images, labels=np.arange(9) % 2)
    assert Arrays(path=tmp_path / name).build()[0].classes == 2
    assert len(Parquet(path=_parquet(tmp_path / "B.PARQUET")).build()[0].labels) > 0
    with pytest.raises(DataError, match=r"no file .*name another with --data\.path"):
        Arrays(path=tmp_path / "b.npz").build()


def _parquet(path: pathlib.Path) -> pathlib.Path:
    pyarrow.parquet.write_table(pa.table({"image": PNGS[:4], "label": [0, 1, 0, 1]}), path)
    return path.parent
