"""Worker processes: the batches of one process, from a position that means the same with any number of them."""

import pathlib

import numpy as np
import pytest

from eqx_shortcut import sharding
from eqx_shortcut.data import DataError, ImageRecords, batches
from eqx_shortcut.data.classes import number
from eqx_shortcut.data.pipeline import Batches, WholeBatches
from eqx_shortcut.data.records import OnBadImage, class_count
from stored import LABELS, PNGS, SIZE, as_parquet


def data(folder: pathlib.Path, on_bad_image: OnBadImage) -> ImageRecords:
    """Twelve images of which number 5 is bad."""
    records, _ = as_parquet(3)(folder, [*PNGS[:5], b"bad", *PNGS[6:]], LABELS).parts()
    numbered, _ = number(records)
    return ImageRecords(**vars(numbered), size=SIZE, classes=class_count(numbered), on_bad_image=on_bad_image)


def loader(data: ImageRecords, workers: int) -> Batches:
    return batches(data, 8, seed=0, sharding=sharding.batch_sharding(sharding.make_mesh()), workers=workers)


def test_the_state_saved_under_two_workers_continues_under_none_and_three(tmp_path):
    images = data(tmp_path, "replace")
    expected = [WholeBatches(images, 8, seed=0)[i] for i in range(8)]

    def check(iterator: Batches, first: int, last: int) -> None:
        for i in range(first, last):
            batch = next(iterator)
            assert set(batch) == {"pixels", "labels"} and len(batch["pixels"].sharding.device_set) == 8
            np.testing.assert_array_equal(batch["pixels"], expected[i]["pixels"])
            np.testing.assert_array_equal(batch["labels"], expected[i]["labels"])

    two = loader(images, 2)
    check(two, 0, 3)
    assert two.get_state() == {"next_index": 3}
    two.close()
    assert list(images.bad) == [5] and "image 1 of" in images.bad[5]
    for workers in (0, 3):
        other = loader(images, workers)
        other.set_state(two.get_state())
        check(other, 3, 8)
        assert other.get_state() == {"next_index": 8}
        other.close()


def test_what_a_worker_refuses_is_said_in_one_sentence(tmp_path):
    iterator = loader(data(tmp_path, "refuse"), 1)
    with pytest.raises(DataError, match=r"image 1 of .*train-00001-of-00003.parquet cannot be used"):
        for _ in range(3):
            next(iterator)
    iterator.close()


def test_a_negative_number_of_workers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="--workers -1: use 0 or more"):
        loader(data(tmp_path, "replace"), -1)
