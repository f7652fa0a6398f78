"""Sets of images: what is read is what was written, and every damage is named with its file, the rule and the remedy."""

import gzip
import io
import pathlib
import struct

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet
import pytest

from eqx_shortcut.data import CIFAR10, DataError, Digits, FashionMNIST, Images, Source

CIFAR = pathlib.Path(__file__).parents[3] / "shared" / "data" / "cifar10"
RNG = np.random.default_rng(0)
PIXELS, LABELS = RNG.integers(0, 256, (7, 4, 6), np.uint8), np.arange(7, dtype=np.uint8)


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist(tmp_path: pathlib.Path) -> FashionMNIST:
    """A set of the MNIST family: 7 training and 3 held-out images of 4 x 6."""
    for part, count in (("train", 7), ("t10k", 3)):
        (tmp_path / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(PIXELS[:count])))
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(LABELS[:count])))
    return FashionMNIST(tmp_path)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, format="png")
    return file.getvalue()


COLOURS = RNG.integers(0, 256, (5, 4, 4, 3), np.uint8)
CELLS = [{"bytes": png(picture), "path": None} for picture in COLOURS]


def write_parquet(path: pathlib.Path, **columns: list) -> None:
    pyarrow.parquet.write_table(pa.table(columns), path)


@pytest.fixture
def cifar(tmp_path: pathlib.Path) -> CIFAR10:
    """Parquet files of the form of CIFAR-10: two of training images (5 and 2) and one of held-out images (5)."""
    write_parquet(tmp_path / "train-00000-of-00002.parquet", img=CELLS, label=[0, 1, 2, 3, 9])
    write_parquet(tmp_path / "train-00001-of-00002.parquet", img=CELLS[:2], label=[4, 5])
    write_parquet(tmp_path / "test-00000-of-00001.parquet", img=CELLS, label=[0, 0, 0, 0, 0])
    return CIFAR10(tmp_path)


def refusal(source: Source) -> str:
    with pytest.raises(DataError) as caught:
        source.build()
    return str(caught.value)


def test_digits_are_a_fixed_stratified_split():
    train, held_out = Digits().build()
    assert (len(train.labels), len(held_out.labels)) == (1400, 397)
    assert train.shape == held_out.shape == (8, 8, 1) and train.classes == 10 and train.peak == 16
    share = np.bincount(train.labels) / np.bincount(np.concatenate([train.labels, held_out.labels]))
    np.testing.assert_allclose(share, 1400 / 1797, atol=0.01)
    again, _ = Digits().build()
    assert np.array_equal(train.pixels, again.pixels) and np.array_equal(train.labels, again.labels)


def test_digits_parts_are_disjoint_and_cover_the_set():
    from sklearn.datasets import load_digits

    parts = np.concatenate([part.pixels.reshape(-1, 64) for part in Digits().build()])
    whole = np.asarray(load_digits(return_X_y=True)[0]).astype(np.uint8)
    assert sorted(map(bytes, parts)) == sorted(map(bytes, whole))


def test_scaled_maps_0_and_peak_to_minus_1_and_1():
    images = Images(np.array([0, 8, 16], np.uint8).reshape(3, 1, 1, 1), np.zeros(3, np.int32), classes=1, peak=16)
    assert images.scaled().dtype == np.float32
    np.testing.assert_array_equal(images.scaled().ravel(), [-1, 0, 1])


def test_idx_files_are_read_as_written(mnist):
    train, held_out = mnist.build()
    np.testing.assert_array_equal(train.pixels, PIXELS[..., None])
    np.testing.assert_array_equal(train.labels, LABELS)
    np.testing.assert_array_equal(held_out.pixels, PIXELS[:3, ..., None])
    assert train.shape == (4, 6, 1) and train.labels.dtype == np.int32


BODY = gzip.compress(idx(PIXELS))
IDX_DAMAGE = {
    "truncated": (BODY[:-20], ["not a whole gzip file", "download it again"]),
    "flipped": (BODY[:10] + bytes([BODY[10] ^ 255]) + BODY[11:], ["not a whole gzip file", "download it again"]),
    "empty": (b"", ["IDX file", "--data.path"]),
    "not gzip": (idx(PIXELS), ["not a whole gzip file", "download it again"]),
    "of int32": (gzip.compress(b"\0\0\x0c\3" + idx(PIXELS)[4:]), ["IDX file of bytes with 3 axes", "--data.path"]),
    "of labels": (gzip.compress(idx(LABELS)), ["IDX file of bytes with 3 axes", "--data.path"]),
    "header only": (gzip.compress(idx(PIXELS)[:9]), ["IDX file of bytes with 3 axes"]),
    "a byte short": (gzip.compress(idx(PIXELS)[:-1]), ["announces 7 x 4 x 6", "holds 167", "download it again"]),
    "a byte long": (gzip.compress(idx(PIXELS) + b"\0"), ["announces 7 x 4 x 6", "holds 169"]),
    "fewer images": (gzip.compress(idx(PIXELS[:6])), ["6 images", "7 labels", "do not belong together"]),
}


@pytest.mark.parametrize("damage", IDX_DAMAGE)
def test_a_damaged_idx_file_is_named_with_rule_and_remedy(mnist, damage):
    content, words = IDX_DAMAGE[damage]
    file = mnist.path / "train-images-idx3-ubyte.gz"
    file.write_bytes(content)
    message = refusal(mnist)
    assert str(mnist.path) in message and all(word in message for word in words), message


@pytest.mark.parametrize("name", ["train-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"])
def test_a_missing_idx_file_is_named_with_the_remedy(mnist, name):
    (mnist.path / name).unlink()
    message = refusal(mnist)
    assert f"no file {mnist.path / name}" in message and "--data.path" in message


def test_a_label_out_of_range_is_named_with_its_image(mnist):
    labels = np.array([0, 1, 2, 10, 4, 11, 6], np.uint8)
    (mnist.path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels)))
    message = refusal(mnist)
    assert "label 10 of image 3 is not in 0 to 9" in message and "2 such labels" in message
    assert str(mnist.path) in message


@pytest.mark.parametrize("label", [-1, 3])
def test_images_refuse_labels_outside_their_classes(label):
    with pytest.raises(DataError, match=f"label {label} of image 1 is not in 0 to 2"):
        Images(np.zeros((2, 2, 2, 1), np.uint8), np.array([0, label]), classes=3)


def test_a_set_without_images_is_refused():
    with pytest.raises(DataError, match="no images"):
        Images(np.zeros((0, 2, 2, 1), np.uint8), np.zeros(0, np.int32), classes=3)


def test_parquet_files_are_read_in_order(cifar):
    train, held_out = cifar.build()
    np.testing.assert_array_equal(train.pixels, np.concatenate([COLOURS, COLOURS[:2]]))
    np.testing.assert_array_equal(train.labels, [0, 1, 2, 3, 9, 4, 5])
    assert len(held_out.labels) == 5 and train.classes == 10 and train.shape == (4, 4, 3)


def test_grey_and_palette_images_become_rgb(cifar):
    grey = COLOURS[0, ..., 0]
    write_parquet(cifar.path / "test-00000-of-00001.parquet", img=[{"bytes": png(grey), "path": "a.png"}], label=[1])
    np.testing.assert_array_equal(cifar.build()[1].pixels[0], np.repeat(grey[..., None], 3, axis=2))


PARQUET_DAMAGE = {
    "other image column": (
        {"photo": CELLS, "label": [0] * 5},
        ["no column 'image' or 'img'", "found ['photo', 'label']"],
    ),
    "no label column": ({"img": CELLS}, ["has no 'label'", "found []"]),
    "label out of range": ({"img": CELLS, "label": [0, 1, 10, 3, 4]}, ["label 10 of image 2 of", "is not in 0 to 9"]),
    "label missing": (
        {"img": CELLS, "label": [0, 1, None, 3, 4]},
        ["label -1 of image 2 of", "correct the labels, or leave out images without one"],
    ),
    "labels of text": (
        {"img": CELLS, "label": list("abcde")},
        ["labels are of several types (<U1 in", "int64 in", "give all files one type"],
    ),
    "not an image": (
        {"img": [*CELLS[:3], {"bytes": b"junk", "path": None}], "label": [0] * 4},
        ["image 3 of", "no image file, or of a format", "repair or remove it"],
    ),
    "half an image": (
        {"img": [CELLS[0], {"bytes": CELLS[1]["bytes"][:-40], "path": None}], "label": [0] * 2},
        ["image 1 of", "cannot be used (", "repair or remove it"],
    ),
    "no bytes": ({"img": [CELLS[0], {"bytes": None, "path": "b.png"}], "label": [0] * 2}, ["image 1 of", "it has no bytes"]),
    "no cell": ({"img": [CELLS[0], None], "label": [0] * 2}, ["image 1 of", "it has no bytes"]),
    "numbers": ({"img": [0, 1], "label": [0] * 2}, ["column 'img' holds int64 and no encoded images"]),
    "two sizes": (
        {"img": [CELLS[0], {"bytes": png(COLOURS[0, :2]), "path": None}], "label": [0] * 2},
        ["image 1 of", "has size (2, 4, 3), image 0 of", "has (4, 4, 3)", "resize them"],
    ),
    "no rows": ({"img": pa.array([], pa.struct({"bytes": pa.binary()})), "label": pa.array([], pa.int64())}, ["no images"]),
}


def test_names_for_labels_of_cifar_are_refused(cifar):
    write_parquet(cifar.path / "test-00000-of-00001.parquet", img=CELLS, label=list("abcde"))
    with pytest.raises(DataError, match=r"labels of .*test-00000-of-00001\.parquet are no numbers of the 10 classes"):
        cifar.build()


@pytest.mark.parametrize("damage", PARQUET_DAMAGE)
def test_damaged_rows_of_parquet_are_named_with_file_and_index(cifar, damage):
    columns, words = PARQUET_DAMAGE[damage]
    file = cifar.path / "train-00000-of-00002.parquet"
    write_parquet(file, **columns)
    message = refusal(cifar)
    assert str(file) in message and all(word in message for word in words), message


def test_files_of_different_sizes_are_refused(cifar):
    small = [{"bytes": png(COLOURS[0, :2, :2]), "path": None}]
    write_parquet(cifar.path / "train-00001-of-00002.parquet", img=small, label=[0])
    message = refusal(cifar)
    assert "train-00001-of-00002.parquet" in message and "(2, 2, 3)" in message and "(4, 4, 3)" in message


@pytest.mark.parametrize("damage", [lambda raw: raw[:-30], lambda raw: b"", lambda raw: b"PAR1" + raw[4:40]])
def test_a_damaged_parquet_file_is_named_with_the_remedy(cifar, damage):
    file = cifar.path / "test-00000-of-00001.parquet"
    file.write_bytes(damage(file.read_bytes()))
    message = refusal(cifar)
    assert f"{file} cannot be read as parquet" in message and "download it again" in message


def test_missing_parquet_files_are_named_with_the_remedy(cifar):
    (cifar.path / "test-00000-of-00001.parquet").unlink()
    message = refusal(cifar)
    assert f"no file test-*.parquet in {cifar.path}" in message and "--data.path" in message


@pytest.mark.skipif(not CIFAR.exists(), reason="no CIFAR-10 parquet files beside the repository")
def test_cifar10_is_read_from_a_published_file(tmp_path):
    (published,) = CIFAR.glob("test-*.parquet")
    for part in ("train", "test"):
        (tmp_path / f"{part}-0.parquet").symlink_to(published)
    _, held_out = CIFAR10(tmp_path).build()
    assert held_out.shape == (32, 32, 3) and len(np.unique(held_out.labels)) == 10
    np.testing.assert_allclose(held_out.pixels.mean(axis=(0, 1, 2)), [125.3, 123.0, 113.9], atol=3)
