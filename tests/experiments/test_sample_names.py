"""Sampling by the name of a class: whose names a run has, and that they stand for the labels."""

import json
import pathlib
from typing import Any

import pytest
import tyro

from eqx_shortcut import settings
from eqx_shortcut.commands import _opening, sample
from eqx_shortcut.data import Digits, FashionMNIST
from eqx_shortcut.data.names import imagenet
from runs import write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run on Fashion-MNIST."""
    return write_run(tmp_path_factory.mktemp("run"))


def draw(run: pathlib.Path, out: pathlib.Path, *args: str) -> bytes:
    """The picture that a command line writes."""
    sample.main(tyro.cli(sample.Config, args=[str(run), "--steps", "1", "--count", "4", "--out", str(out), *args]))
    return out.read_bytes()


def test_names_stand_for_their_labels(run, tmp_path, capsys):
    named = draw(run, tmp_path / "named.png", "--class", "boot", "Bag")
    assert "labels 9 (ankle boot), 8 (bag)" in capsys.readouterr().out
    assert named == draw(run, tmp_path / "numbered.png", "--labels", "9", "8")
    assert named != draw(run, tmp_path / "swapped.png", "--labels", "8", "9")
    assert "labels" not in capsys.readouterr().out


def test_one_class_is_named_beside_its_rows(run, tmp_path, capsys):
    draw(run, tmp_path / "one.png", "--class", "ankle boot")
    assert "1 step, ankle boot: 4 samples" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--class", "bag", "banana"], "no class is called 'banana'"),
        (
            ["--class", "bag", "--labels", "3", "4"],
            "--labels 3 4 and --class 'bag' both say what to sample: give one of the two",
        ),
    ],
)
def test_classes_that_cannot_be_sampled_are_refused_in_one_sentence(run, args, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        draw(run, tmp_path / "none.png", *args)
    assert list(tmp_path.iterdir()) == []


DIGITS = settings.dump(Digits())


@pytest.mark.parametrize(
    ("record", "names"),
    [
        ({"classes": 10, "data": DIGITS}, Digits.names),
        ({"classes": 10, "data": settings.dump(FashionMNIST(pathlib.Path("here")))}, FashionMNIST.names),
        ({"classes": 1000, "data": DIGITS}, imagenet()),
        ({"classes": 1000}, imagenet()),
    ],
)
def test_names_are_those_of_the_data_if_as_many_else_of_imagenet(record: dict[str, Any], names, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert _opening.class_names(tmp_path) == names


@pytest.mark.parametrize("record", [{"classes": 3, "data": DIGITS}, {"classes": 3}])
def test_classes_without_names_are_chosen_by_number(record: dict[str, Any], tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match=r"the 3 classes of .* have no names: choose them by number with --labels"):
        _opening.class_names(tmp_path)
