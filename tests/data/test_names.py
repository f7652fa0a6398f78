"""Names of classes: one for each, and a search that finds the one meant or says why it cannot."""

import re

import pytest

from eqx_shortcut import settings
from eqx_shortcut.data import CIFAR10, Digits, FashionMNIST, Source
from eqx_shortcut.data.names import display_names, find, imagenet

CERTAIN = {
    0: "tench",
    1: "goldfish",
    207: "golden retriever",
    281: "tabby cat",
    282: "tiger cat",
    388: "giant panda",
    555: "fire truck",
    817: "sports car",
    930: "French loaf",
    954: "banana",
    985: "daisy",
    999: "toilet paper",
}
SOURCES = [Digits(), FashionMNIST(), CIFAR10()]
COLLECTIONS = [imagenet(), *(source.names for source in SOURCES)]


def test_imagenet_has_a_name_for_each_label():
    assert len(imagenet()) == 1000
    assert {label: imagenet()[label] for label in CERTAIN} == CERTAIN
    assert len({re.sub(r"[\W_]", "", name.lower()) for name in imagenet()}) == 1000
    assert all(name and name.isascii() and name == " ".join(name.split()) for name in imagenet())


@pytest.mark.parametrize("source", SOURCES)
def test_sources_name_their_ten_classes_outside_their_settings(source):
    assert len(source.names) == 10 and isinstance(source, Source)
    assert "names" not in settings.dump(source)


def test_sources_name_their_classes_in_the_order_of_their_labels():
    assert Digits.names[7] == "7" and FashionMNIST.names[6] == "shirt" and FashionMNIST.names[9] == "ankle boot"
    assert CIFAR10.names[0] == "airplane" and CIFAR10.names[5] == "dog" and CIFAR10.names[9] == "truck"


@pytest.mark.parametrize("names", COLLECTIONS)
@pytest.mark.parametrize(
    "written", [str, str.upper, lambda name: f" {name.replace(' ', '_')}", lambda name: re.sub(r"[\s-]", "", name)]
)
def test_a_name_finds_its_own_label_whatever_its_case_and_spaces(names, written):
    labels = range(0, len(names), 1 + len(names) // 40)
    assert [find(names, written(names[label])) for label in labels] == list(labels)


@pytest.mark.parametrize(
    ("query", "label"),
    [("labrador", 208), ("tabby", 281), ("crane bird", 134), ("tiger", 292), ("hen", 8), ("Golden-Retriever", 207)],
)
def test_a_name_is_found_by_itself_before_those_that_contain_it_as_words(query, label):
    assert find(imagenet(), query) == label


@pytest.mark.parametrize(
    ("query", "words"),
    [
        ("crane", ["'crane' is in several names", "write one of 'crane (bird)', 'crane (machine)'"]),
        ("retriever", ["'flat-coated retriever'", "'golden retriever'"]),
        ("goldn retriever", ["no class is called 'goldn retriever'", "the nearest names are 'golden retriever'"]),
        ("labra", ["no class is called 'labra'"]),
        ("", ["no class is called ''"]),
        ("?", ["no class is called '?'"]),
    ],
)
def test_a_query_that_is_no_name_is_refused_in_one_sentence(query, words):
    with pytest.raises(ValueError) as caught:
        find(imagenet(), query)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value)


def test_classes_are_called_as_the_data_call_them_and_by_identifiers_of_imagenet_in_words():
    own = [f"bird {i}" for i in range(1000)]
    assert (
        display_names(own, 1000) == tuple(own) and display_names(["2", "10"], 2) == ("2", "10") and display_names([], 12) == ()
    )
    identifiers = [f"n{i:08d}" for i in range(1000)]
    assert display_names(identifiers, 1000) == display_names([], 1000) == imagenet()
    assert (
        display_names(identifiers[:3], 3) == tuple(identifiers[:3])
        and display_names([*identifiers[1:], "cat"], 1000)[-1] == "cat"
    )
