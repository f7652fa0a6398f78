"""Sources: the same pictures in any format are the same bytes, and what is wrong is one sentence with file and index."""

import json
import pathlib
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import tyro

from eqx_shortcut import settings
from eqx_shortcut.data import TFDS, Arrays, DataError, ImageFolder, ImageRecords, Images, Parquet, Source
from eqx_shortcut.data.classes import number
from eqx_shortcut.data.errors import BadImage
from eqx_shortcut.data.formats import example as examples_format
from eqx_shortcut.data.formats import tfds, tfrecord
from eqx_shortcut.data.pipeline import WholeBatches
from eqx_shortcut.data.preprocess import square
from eqx_shortcut.data.records import OnBadImage, class_count
from eqx_shortcut.data.sources import Photos
from stored import (
    BAD,
    ENCODED,
    FORMATS,
    LABELS,
    NAMES,
    PIXELS,
    PNGS,
    SIZE,
    as_flat_folder,
    as_folder,
    as_npz,
    as_parquet,
    as_tfds,
    encode,
    example,
    examples,
    tell_features,
    write_tfds,
    write_tfrecord,
)

ALL = np.arange(len(PIXELS))


def whole(source: Photos, on_bad_image: OnBadImage = "refuse") -> ImageRecords:
    """All records of a source in order, nothing held out."""
    records, held_out = source.parts()
    assert held_out is None
    numbered, _ = number(records)
    return ImageRecords(**vars(numbered), size=source.size, classes=class_count(numbered), on_bad_image=on_bad_image)


def refusal(source: Photos) -> str:
    with pytest.raises(DataError) as caught:
        train, held_out = source.build()
        for part in (train, held_out):
            part.rows(np.arange(len(part.labels)))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("format", FORMATS)
def test_files_written_anew_are_read_anew(tmp_path, format):
    """In one process, as a notebook has it: new labels would stand beside old images."""
    here, elsewhere = tmp_path / "here", tmp_path / "elsewhere"
    for folder in (here, elsewhere):
        folder.mkdir()
    whole(FORMATS[format](here, PNGS, LABELS)).rows(ALL)
    again, expected = (whole(FORMATS[format](folder, PNGS[::-1], LABELS)).rows(ALL) for folder in (here, elsewhere))
    np.testing.assert_array_equal(again["pixels"], expected["pixels"])


@pytest.mark.parametrize("format", FORMATS)
def test_the_same_pictures_are_the_same_bytes_in_every_format(tmp_path, format):
    data = whole(FORMATS[format](tmp_path, PNGS, LABELS))
    rows = data.rows(ALL)
    np.testing.assert_array_equal(rows["pixels"], [square(pixels, SIZE) for pixels in PIXELS])
    np.testing.assert_array_equal(rows["labels"], LABELS if format != "flat folder" else 0 * LABELS)
    assert rows["replaced"].size == 0 and data.classes == (3 if format != "flat folder" else 1)
    assert data.shape == (SIZE, SIZE, 3) and data.labels.dtype == np.int32


@pytest.mark.parametrize("format", FORMATS)
def test_rows_come_in_the_order_asked_for(tmp_path, format):
    data = whole(FORMATS[format](tmp_path, PNGS, LABELS))
    for indices in ([11, 0, 5, 5, 2], [3], [7, 6]):
        found = data.rows(np.array(indices))
        np.testing.assert_array_equal(found["pixels"], [square(PIXELS[i], SIZE) for i in indices])
        np.testing.assert_array_equal(found["labels"], data.labels[indices])


@pytest.mark.parametrize("format", FORMATS)
def test_a_fixed_share_is_held_out(tmp_path, format):
    source = FORMATS[format](tmp_path, PNGS, LABELS)
    assert isinstance(source, Source)
    train, held_out = source.build()
    assert (len(train.labels), len(held_out.labels)) == (11, 1) and train.classes == held_out.classes
    parts = [part.rows(np.arange(len(part.labels)))["pixels"] for part in (train, held_out)]
    assert sorted(map(bytes, np.concatenate(parts))) == sorted(bytes(square(pixels, SIZE)) for pixels in PIXELS)
    np.testing.assert_array_equal(source.build()[1].rows(np.array([0]))["pixels"], parts[1])


def test_the_share_held_out_is_the_same_in_every_format(tmp_path):
    pictures = set()
    for i, write in enumerate(FORMATS.values()):
        (folder := tmp_path / str(i)).mkdir()
        pictures.add(bytes(write(folder, PNGS, LABELS).build()[1].rows(np.array([0]))["pixels"]))
    assert len(pictures) == 1


def named_parts(folder: pathlib.Path) -> list[Photos]:
    """Sources of 9 training and 3 held-out images that are named so."""
    train, rest = np.array([0, 1, 2, 4, 5, 6, 8, 9, 10]), np.array([3, 7, 11])
    for name, part in (("train", train), ("val", rest)):
        for write in (as_folder, as_npz):
            (folder / write.__name__ / name).mkdir(parents=True)
        as_folder(folder / "as_folder" / name, [PNGS[i] for i in part], LABELS[part])
        np.savez(folder / "as_npz" / f"{name}.npz", images=PIXELS[part], labels=LABELS[part])
        (folder / "parquet").mkdir(exist_ok=True)
        cells = [{"bytes": PNGS[i], "path": None} for i in part]
        table = pa.table({"img": cells, "label": LABELS[part]})
        pyarrow.parquet.write_table(table, folder / "parquet" / f"{name.replace('val', 'validation')}-0.parquet")
        split = f"church-{name}".replace("val", "test")
        write_tfds(folder / "tfds", "tfrecord", examples([PNGS[i] for i in part], LABELS[part]), split=split, files=1)
    return [
        ImageFolder(path=folder / "as_folder", size=SIZE),
        Arrays(path=folder / "as_npz", size=SIZE),
        Parquet(path=folder / "parquet", size=SIZE),
        TFDS(path=folder / "tfds", size=SIZE, split="church-train", index=folder / "index"),
    ]


def test_a_part_that_is_named_so_is_the_one_held_out(tmp_path):
    for source in named_parts(tmp_path):
        train, held_out = source.build()
        np.testing.assert_array_equal(train.labels, [0, 0, 0, 1, 1, 1, 2, 2, 2])
        np.testing.assert_array_equal(held_out.rows(np.arange(3))["pixels"], [square(PIXELS[i], SIZE) for i in (3, 7, 11)])
        assert train.classes == held_out.classes == 3


# Bad images.


@pytest.mark.parametrize("format", ENCODED)
@pytest.mark.parametrize("bad", BAD)
def test_a_bad_image_is_named_with_file_index_reason_and_remedy(tmp_path, format, bad):
    image, reason = BAD[bad]
    data = whole(ENCODED[format](tmp_path, [*PNGS[:5], image, *PNGS[6:]], LABELS))
    with pytest.raises(DataError) as caught:
        data.rows(np.array([4, 5, 6]))
    message = str(caught.value)
    assert message.startswith(data.records.where(5)) and reason in message and "\n" not in message
    assert str(tmp_path) in message and "--data.on-bad-image replace" in message
    assert data.rows(np.array([4, 6]))["pixels"].shape == (2, SIZE, SIZE, 3)


WHERE = {
    "folder": ("image 5", "cat/05.png"),
    "flat folder": ("image 5", "05.PNG"),
    "parquet": ("image 5 of", "train-00000-of-00001.parquet"),
    "3 parquet": ("image 1 of", "train-00001-of-00003.parquet"),
    "array_record": ("record 5 of", "pets-train.array_record-00000-of-00002"),
    "tfrecord": ("record 5 of", "pets-train.tfrecord-00000-of-00002"),
    "npy": ("image 5 of", "pets.npy"),
    "npz": ("image 5 of", "train.npz"),
}


@pytest.mark.parametrize("format", FORMATS)
def test_an_image_is_where_its_file_has_it(tmp_path, format):
    records, _ = FORMATS[format](tmp_path, PNGS, LABELS).parts()
    assert all(word in records.where(5) for word in WHERE[format]), records.where(5)


@pytest.mark.parametrize("format", ENCODED)
def test_the_next_good_image_takes_the_place_of_a_bad_one(tmp_path, format):
    """Bad are 0, 5, 6 and 11: 1 stands for 0, 7 for 5 and 6, and the first good one, 1, for the last."""
    images = [b"bad" if i in (0, 5, 6, 11) else png for i, png in enumerate(PNGS)]
    data = whole(ENCODED[format](tmp_path, images, LABELS), "replace")
    expected = np.array([1, 1, 2, 3, 4, 7, 7, 7, 8, 9, 10, 1])
    rows = data.rows(ALL)
    np.testing.assert_array_equal(rows["pixels"], [square(PIXELS[i], SIZE) for i in expected])
    np.testing.assert_array_equal(rows["labels"], data.labels[expected])
    np.testing.assert_array_equal(rows["replaced"], [0, 5, 6, 11])
    for _ in range(2):
        assert set(data.note(rows)) == {"pixels", "labels"}
    assert sorted(data.bad) == [0, 5, 6, 11]
    assert data.bad[5] == f"{data.records.where(5)} cannot be used (no image file, or of a format that is not read)"


def test_a_bad_image_shifts_no_other(tmp_path):
    """The order is that of the positions, so the state of a run means the same whatever was replaced."""
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    good = whole(as_folder(tmp_path / "good", PNGS, LABELS), "replace")
    bad = whole(as_folder(tmp_path / "bad", [*PNGS[:5], b"bad", *PNGS[6:]], LABELS), "replace")
    sources = [WholeBatches(data, 4, seed=0) for data in (good, bad)]
    for i in range(6):
        places, (one, other) = sources[0].indices(i), [source[i]["pixels"] for source in sources]
        np.testing.assert_array_equal((one == other).all(axis=(1, 2, 3)), places != 5)


@pytest.mark.parametrize("format", ENCODED)
def test_images_all_bad_are_refused_even_if_replaced(tmp_path, format):
    data = whole(ENCODED[format](tmp_path, [b"bad"] * 12, LABELS), "replace")
    with pytest.raises(DataError, match="and so it is with all 12 images"):
        data.rows(np.array([3]))


def test_shares_of_two_processes_are_the_batch_of_one(tmp_path):
    images = [*PNGS[:5], b"bad", *PNGS[6:]]
    data = whole(as_folder(tmp_path, images, LABELS), "replace")
    shares = [WholeBatches(data, 4, seed=0, share=share) for share in (np.arange(2), np.arange(2, 4))]
    for i in range(2, 8):
        for name in ("pixels", "labels"):
            together = np.concatenate([share[i][name] for share in shares])
            np.testing.assert_array_equal(together, WholeBatches(data, 4, seed=0)[i][name])


# Labels and classes.


def test_labels_out_of_range_are_named_with_file_and_index(tmp_path):
    records, _ = as_parquet(3)(tmp_path, PNGS, [*LABELS[:5], -1, *LABELS[6:]]).parts()
    with pytest.raises(DataError, match=r"label -1 of image 1 of .*train-00001-of-00003.parquet is not in 0 to 2"):
        number(records)


def test_class_names_come_from_folder_hugging_face_and_tensorflow_datasets(tmp_path):
    assert as_folder(tmp_path, PNGS, LABELS).parts()[0].names == NAMES
    assert as_tfds("tfrecord")(tmp_path, PNGS, LABELS).parts()[0].names == NAMES
    told = {"info": {"features": {"label": {"names": NAMES, "_type": "ClassLabel"}}}}
    table = pa.table({"image": [{"bytes": PNGS[0], "path": None}] * 2, "label": [0, 1]})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), tmp_path / "a.parquet")
    source = Parquet(path=tmp_path / "a.parquet", size=SIZE)
    assert source.parts()[0].names == NAMES and source.build()[0].classes == 3


def test_different_classes_of_training_and_held_out_images_are_refused(tmp_path):
    source, *_ = named_parts(tmp_path)
    (source.path / "val" / "cat").rename(source.path / "val" / "cow")
    assert "differ in 'cat'" in refusal(source)


def test_sets_without_labels_are_of_one_class(tmp_path):
    (tmp_path / "tfds").mkdir()
    write_tfds(tmp_path / "tfds", "tfrecord", [example(image=[png]) for png in PNGS])
    told = {"image": {"pythonClassName": "x.Image"}}
    (tmp_path / "tfds" / "features.json").write_text(json.dumps({"featuresDict": {"features": told}}))
    pyarrow.parquet.write_table(pa.table({"image": list(PNGS)}), tmp_path / "a.parquet")
    np.save(tmp_path / "a.npy", PIXELS[..., 0])
    sources = (
        TFDS(path=tmp_path / "tfds", size=SIZE, index=tmp_path),
        Parquet(path=tmp_path / "a.parquet", size=SIZE),
        Arrays(path=tmp_path / "a.npy", size=SIZE),
    )
    for source in sources:
        data = whole(source)
        assert data.classes == 1 and not data.labels.any() and data.rows(ALL)["pixels"].shape == (12, SIZE, SIZE, 3)


# What can be wrong with the files.


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "note.txt").write_text("no picture")
    assert f"no images in {tmp_path}" in (message := refusal(ImageFolder(path=tmp_path)))
    assert "(passed over: .txt files 1, folders without images 1)" in message
    assert "name another with --data.path" in refusal(ImageFolder(path=tmp_path / "missing"))


def test_a_folder_of_images_and_classes_is_refused(tmp_path):
    as_folder(tmp_path, PNGS, LABELS)
    as_flat_folder(tmp_path, PNGS[:1], LABELS)
    assert "itself (00.PNG) and in sub-folders (bird)" in refusal(ImageFolder(path=tmp_path))


def test_one_image_is_too_few_to_hold_one_out(tmp_path):
    assert "is the only one" in refusal(as_flat_folder(tmp_path, PNGS[:1], LABELS))


def test_an_image_that_vanished_is_no_bad_image(tmp_path):
    data = whole(as_folder(tmp_path, PNGS, LABELS), "replace")
    (tmp_path / "cat" / "05.png").unlink()
    with pytest.raises(DataError, match=r"05.png \(image 5\) cannot be read \(No such file"):
        data.rows(np.array([5]))


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"photo": list(PNGS), "label": [0] * 12}, ["no column 'image' or 'img'", "found ['photo', 'label']", "rename"]),
        ({"image": list(range(12))}, ["column 'image' holds int64", "store the bytes"]),
        ({"image": list(PNGS), "label": [*[0] * 11, None]}, ["label -1 of image 11", "1 such labels"]),
        ({"image": pa.array([], pa.binary())}, ["there are no images in it"]),
    ],
)
def test_a_parquet_file_without_its_columns_is_refused(tmp_path, columns, words):
    pyarrow.parquet.write_table(pa.table(columns), tmp_path / "a.parquet")
    message = refusal(Parquet(path=tmp_path))
    assert str(tmp_path / "a.parquet") in message and all(word in message for word in words), message


def test_parquet_files_that_are_missing_or_damaged_or_unlike_are_refused(tmp_path):
    assert "no parquet file at" in refusal(Parquet(path=tmp_path / "x.parquet"))
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    assert "cannot be read as parquet" in refusal(Parquet(path=tmp_path))
    for name in ("image", "img"):
        pyarrow.parquet.write_table(pa.table({name: list(PNGS)}), tmp_path / f"{name}.parquet")
    (tmp_path / "a.parquet").unlink()
    assert "has images in column 'img'" in refusal(Parquet(path=tmp_path))


ARRAYS = {
    "floats": ({"images": PIXELS.astype(np.float32)}, ["float32 of shape", "images are uint8"]),
    "one axis": ({"images": PIXELS[0, 0, 0]}, ["of shape (3,)"]),
    "none": ({"images": PIXELS[:0]}, ["of shape (0, 20, 29, 3)"]),
    "other names": ({"x": PIXELS}, ["has no array 'images' or 'arr_0'", "np.savez"]),
    "few labels": ({"images": PIXELS, "labels": LABELS[:3]}, ["of shape (3,)", "give 12 whole numbers"]),
    "labels between numbers": ({"images": PIXELS, "labels": LABELS + 0.5}, ["give 12 whole numbers", "label 0 is 0.5"]),
    "labels in two columns": ({"images": PIXELS, "labels": np.zeros((12, 2), np.int32)}, ["give 12 whole numbers"]),
    "negative label": ({"images": PIXELS, "labels": LABELS - 1}, ["label -1 of image 0 of", "is not in 0 to 1"]),
}


@pytest.mark.parametrize("damage", ARRAYS)
def test_arrays_that_are_no_images_are_refused(tmp_path, damage):
    arrays, words = ARRAYS[damage]
    np.savez(tmp_path / "a.npz", **arrays)
    message = refusal(Arrays(path=tmp_path / "a.npz"))
    assert "a.npz" in message and all(word in message for word in words), message


@pytest.mark.parametrize("name", ["a.npz", "a.npy"])
def test_a_damaged_array_file_is_refused(tmp_path, name):
    as_npz(tmp_path, PNGS, LABELS)
    np.save(tmp_path / "train.npy", PIXELS)
    (tmp_path / name).write_bytes((tmp_path / f"train.{name[-3:]}").read_bytes()[:300])
    assert f"{name} cannot be read as" in refusal(Arrays(path=tmp_path / name))
    (tmp_path / "train.npz").unlink()
    (tmp_path / "train.npy").unlink()
    assert "no train.npz or train.npy in" in refusal(Arrays(path=tmp_path))


FOREIGN = {
    "text": (b"no example", "no tf.train.Example"),
    "nothing": (b"", "no tf.train.Example"),
    "other features": (example(video=[b"x"], label=[1]), "has features ['label', 'video'], not 'image' and 'label'"),
    "no label": (example(image=[PNGS[0]]), "has features ['image'], not 'image' and 'label'"),
    "label of text": (example(image=[PNGS[0]], label=[b"cat"]), "not 'image' and 'label'"),
}


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_foreign_record_is_a_bad_image(tmp_path, kind, foreign):
    record, reason = FOREIGN[foreign]
    records = examples(PNGS, LABELS)
    write_tfds(tmp_path, kind, [*records[:3], record, *records[4:]])
    source = TFDS(path=tmp_path, size=SIZE, index=tmp_path)
    with pytest.raises(DataError) as caught:
        whole(source).rows(ALL)
    message = str(caught.value)
    assert message.startswith(f"record 3 of {tmp_path}/pets-train.{kind}-00000-of-00002 cannot be used") and reason in message
    rows = whole(source, "replace").rows(ALL)
    np.testing.assert_array_equal(rows["pixels"][3], square(PIXELS[4], SIZE))
    assert rows["labels"][3] == whole(source).labels[3] == LABELS[4]


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_a_set_of_foreign_records_is_refused(tmp_path, kind):
    write_tfds(tmp_path, kind, [b"junk"] * 4)
    assert "has an image 'image' and a label" in refusal(TFDS(path=tmp_path, index=tmp_path))


def test_a_damaged_record_of_array_record_is_a_bad_image(tmp_path):
    write_tfds(tmp_path, "array_record", examples(PNGS, LABELS), files=1)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    at = content.index(PNGS[5][60:90])
    content[at : at + 4] = b"\0\1\2\3"
    path.write_bytes(content)
    data = whole(TFDS(path=tmp_path, size=SIZE, index=tmp_path), "replace")
    rows = data.note(data.rows(ALL))
    np.testing.assert_array_equal(rows["pixels"][5], square(PIXELS[6], SIZE))
    assert list(data.bad) == [5] and "its record is damaged" in data.bad[5]


def damaged_tfds(folder: pathlib.Path, damage: str) -> None:
    first = next(folder.glob("*-00000-of-*"))
    content = first.read_bytes()
    if damage == "missing":
        first.unlink()
    elif damage == "twice":
        shutil.copy(first, folder / "pets-train.array_record-00000-of-00001")
    else:
        first.write_bytes(content[: len(content) * 2 // 3 + 5] if damage == "truncated" else content[:3] + b"\7" + content[4:])


@pytest.mark.parametrize(
    ("kind", "damage", "words"),
    [
        ("tfrecord", "missing", ["1 of 2 files of split 'train' are missing", "the first number 00000"]),
        ("tfrecord", "twice", ["holds split 'train' twice"]),
        ("tfrecord", "truncated", ["ends inside record", "it is truncated", "00000-of-00002"]),
        ("tfrecord", "length", ["the length before record 0 does not have its checksum", "00000-of-00002"]),
        ("array_record", "missing", ["1 of 2 files of split 'train' are missing"]),
        ("array_record", "truncated", ["is no whole array_record file", "00000-of-00002"]),
    ],
)
def test_damaged_files_of_tensorflow_datasets_are_refused(tmp_path, kind, damage, words):
    write_tfds(tmp_path, kind, examples(PNGS, LABELS))
    damaged_tfds(tmp_path, damage)
    message = refusal(TFDS(path=tmp_path, size=SIZE, index=tmp_path))
    assert str(tmp_path) in message and all(word in message for word in words), message


def test_a_tfrecord_file_cut_between_two_records_is_refused_where_the_data_set_tells_of_its_length(tmp_path):
    write_tfds(tmp_path, "tfrecord", examples(PNGS, LABELS))
    told = {"splits": [{"name": "test", "shardLengths": ["1"]}, {"name": "train", "shardLengths": ["6", "7"]}]}
    (tmp_path / "dataset_info.json").write_text(json.dumps(told))
    message = refusal(TFDS(path=tmp_path, size=SIZE, index=tmp_path))
    assert "train.tfrecord-00001-of-00002 holds 6 records, by dataset_info.json 7" in message


def test_a_split_or_folder_that_is_not_there_is_refused(tmp_path):
    source = as_tfds("tfrecord")(tmp_path, PNGS, LABELS)
    assert "no split 'test'" in (message := refusal(TFDS(path=source.path, split="test"))) and "the splits train" in message
    assert "holds no tfrecord or array_record files" in refusal(TFDS(path=tmp_path))
    assert "no folder" in refusal(TFDS(path=tmp_path / "missing"))
    (source.path / "features.json").write_text("{}")
    assert "features.json does not tell of features" in refusal(source)


def test_without_the_package_of_array_record_the_remedy_is_named(tmp_path, monkeypatch):
    source = as_tfds("array_record")(tmp_path, PNGS, LABELS)
    monkeypatch.setitem(__import__("sys").modules, "array_record.python.array_record_module", None)
    assert "needs the package array_record" in (message := refusal(source)) and "file_format='tfrecord'" in message


# The index of records.


@pytest.mark.parametrize("kind", ["array_record", "tfrecord"])
def test_the_index_is_built_once_and_again_when_the_files_change(tmp_path, kind, monkeypatch):
    source, passes = as_tfds(kind)(tmp_path, PNGS, LABELS), []
    scan = tfds._scan_all
    monkeypatch.setattr(tfds, "_scan_all", lambda *given: passes.append(1) or scan(*given))
    first = whole(source).rows(ALL)
    for _ in range(2):
        np.testing.assert_array_equal(whole(source).rows(ALL)["pixels"], first["pixels"])
    assert len(passes) == 1
    (index,) = (tmp_path / "index").iterdir()
    assert index.name == f"pets-train.{kind}.npz"
    moved = source.path.rename(tmp_path / "moved")
    moved_source = TFDS(path=moved, size=SIZE, index=tmp_path / "index")
    np.testing.assert_array_equal(whole(moved_source).rows(ALL)["pixels"], first["pixels"])
    assert len(passes) == 1
    index.write_bytes(index.read_bytes()[:100])
    np.testing.assert_array_equal(whole(moved_source).rows(ALL)["labels"], LABELS)
    assert len(passes) == 2
    other = tmp_path / "other"
    write_tfds(other, kind, examples(PNGS[:9], LABELS[:9]))
    tell_features(other)
    assert len(whole(TFDS(path=other, size=SIZE, index=tmp_path / "index")).labels) == 9 and len(passes) == 3


def test_features_are_found_by_their_kind(tmp_path):
    write_tfds(tmp_path, "tfrecord", [example(photo=[png], species=[int(i)]) for png, i in zip(PNGS, LABELS, strict=True)])
    tell_features(tmp_path, image="photo", label="species")
    data = whole(TFDS(path=tmp_path, size=SIZE, index=tmp_path))
    np.testing.assert_array_equal(data.labels, LABELS)
    np.testing.assert_array_equal(data.rows(ALL)["pixels"][7], square(PIXELS[7], SIZE))


def test_crc32c_is_that_of_the_standard():
    """RFC 3720, appendix B.4, and the check value of the catalogue."""
    assert tfrecord.crc32c(b"123456789") == 0xE3069283
    assert tfrecord.crc32c(bytes(32)) == 0x8A9136AA and tfrecord.crc32c(bytes(range(32))) == 0x46DD794E


def test_files_of_another_writer_are_scanned(tmp_path):
    writer = pytest.importorskip("tensorboardX.record_writer").RecordWriter(str(tmp_path / "events"))
    records = [b"", b"a", bytes(range(256)) * 9]
    for record in records:
        writer.write(record)
    writer.close()
    assert [bytes(record) for _, record in tfrecord.scan(tmp_path / "events")] == records
    assert [tfrecord.read(tmp_path / "events", at, len(r)) for at, r in tfrecord.scan(tmp_path / "events")] == records


def test_an_empty_file_holds_no_records(tmp_path):
    write_tfrecord(tmp_path / "a", [])
    assert list(tfrecord.scan(tmp_path / "a")) == []


@pytest.mark.parametrize("number", [0, 1, 127, 128, 999, 2**31 - 1, 2**63 - 1, -1, -(2**63)])
def test_an_example_is_read_as_written(number):
    found = examples_format.parse(example(a=[b"x" * 300], b=[number, 5], c=[0.5, 1.0], d=[b""]))
    assert set(found) == {"a", "b", "c", "d"} and found["b"] == number and found["c"] is None
    assert found["a"] == b"x" * 300 and found["d"] == b""


def test_damaged_examples_are_refused_or_read_and_nothing_else():
    """Each byte of an Example changed, and each beginning of one."""
    written, rng = example(image=[b"picture"], label=[7]), np.random.default_rng(0)
    damaged = [written[:n] for n in range(len(written))]
    damaged += [written[:n] + bytes([rng.integers(256)]) + written[n + 1 :] for n in range(len(written)) for _ in range(20)]
    for record in damaged:
        try:
            assert isinstance(examples_format.parse(record), dict)
        except BadImage as error:
            assert "no tf.train.Example" in str(error)


# The command line.


SOURCES = [
    ImageFolder(path=pathlib.Path("x")),
    Parquet(path=pathlib.Path("x")),
    TFDS(path=pathlib.Path("x")),
    Arrays(path=pathlib.Path("x")),
]


@pytest.mark.parametrize("source", SOURCES)
def test_sources_are_settings(source):
    assert settings.parse(json.loads(json.dumps(settings.dump(source)))) == source
    args = ["--path", "x", "--size", "64", "--on-bad-image", "replace", "--no-mirror"]
    made = tyro.cli(type(source), args=args)
    assert (made.size, made.on_bad_image, made.mirror, made.path) == (64, "replace", False, pathlib.Path("x"))


def test_sizes_and_shares_out_of_range_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"size=0: use 1 or more"):
        ImageFolder(path=tmp_path, size=0)
    with pytest.raises(ValueError, match=r"held_out=1.0: use more than 0, below 1"):
        ImageFolder(path=tmp_path, held_out=1.0)


def test_images_in_memory_have_no_bad_ones():
    images = Images(PIXELS, LABELS, classes=3)
    np.testing.assert_array_equal(images.rows(np.array([3, 1]))["pixels"], PIXELS[[3, 1]])
    assert encode(PIXELS[0]) == PNGS[0]
