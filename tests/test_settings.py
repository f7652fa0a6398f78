"""Settings as JSON and back, and their differences."""

import dataclasses
import json
import pathlib

import pytest

from eqx_shortcut import experiment, settings
from eqx_shortcut.data import CIFAR10
from eqx_shortcut.experiment import Mesh, Quality
from eqx_shortcut.models import DiTConfig
from eqx_shortcut.objectives import FlowMatching, Shortcut
from eqx_shortcut.optimizer import AdamW


@dataclasses.dataclass(frozen=True)
class Inner:
    a: int = 1
    b: float | None = None


@dataclasses.dataclass(frozen=True)
class Outer:
    inner: Inner = Inner()
    name: str = "x"


@pytest.mark.parametrize(
    "value",
    [DiTConfig(hidden=16, heads=2), Shortcut(steps=4, clip=None), FlowMatching(), AdamW(clip=1.0), Outer(Inner(2, 0.5))],
)
def test_parse_inverts_dump_through_json(value):
    assert settings.parse(json.loads(json.dumps(settings.dump(value)))) == value


@dataclasses.dataclass(frozen=True)
class Places:
    here: pathlib.Path
    there: pathlib.Path | None = None
    name: str = "no/path"
    nested: Inner | None = None


@pytest.mark.parametrize("value", [Places(pathlib.Path("a/b")), Places(pathlib.Path("a"), pathlib.Path("/c"), "d", Inner())])
def test_paths_come_back_as_paths_and_names_as_names(value):
    found = settings.parse(json.loads(json.dumps(settings.dump(value))))
    assert found == value and type(found.name) is str and isinstance(found.here, pathlib.Path)


def test_dump_is_plain_json():
    assert settings.dump(Outer()) == {
        "kind": f"{__name__}:Outer",
        "inner": {"kind": f"{__name__}:Inner", "a": 1, "b": None},
        "name": "x",
    }
    assert settings.dump({"paths": (pathlib.Path("a/b"),)}) == {"paths": ["a/b"]}
    assert settings.dump(CIFAR10(pathlib.Path("c")))["path"] == "c"


def test_a_record_of_an_earlier_version_names_classes_where_they_are_now(tmp_path):
    """All that the experiments' module `config` had, nested or not; classes of others of that name stay what they are."""
    old = {"quality": {"kind": "config:Quality", "steps": [1], "count": 8}, "mesh": {"kind": "config:Mesh", "tensor": 2}}
    other = {"kind": "configs:Quality"}
    (tmp_path / "config.json").write_text(json.dumps({**old, "other": other, "kind": None}))
    found = settings.read(tmp_path / "config.json")
    assert found["other"] == other and found["kind"] is None
    now = {"quality": Quality(steps=(1,), count=8), "mesh": Mesh(tensor=2)}
    for name, value in now.items():
        assert settings.parse(found[name]) == settings.parse(old[name]) == value
        assert found[name]["kind"] == settings.dump(value)["kind"]
    names = "Averages Checkpointing Config Figures Health LatentConfig Mesh Processes Quality WandB".split()
    assert all(settings.find_class(f"config:{name}") is getattr(experiment, name) for name in names)


REFUSED = {
    "no_such_module:A": "no_such_module:A, which cannot be imported here",
    f"{__name__}:Gone": "Gone, which cannot be imported here",
    "no colon": "no colon, which cannot be imported here",
    "pathlib:Path": "pathlib:Path, which is not a dataclass",
    "json:dumps": "json:dumps, which is not a dataclass",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_parse_refuses_what_is_no_dataclass(kind):
    with pytest.raises(ValueError, match=REFUSED[kind]):
        settings.parse({"kind": kind})


def test_parse_names_a_field_that_is_not_there_any_more():
    with pytest.raises(ValueError, match="Inner has no field c, d: stored by another version"):
        settings.parse({"kind": f"{__name__}:Inner", "a": 1, "d": 0, "c": 0})


def test_parse_gives_fields_of_a_later_version_their_default():
    assert settings.parse({"kind": f"{__name__}:Inner", "a": 5}) == Inner(5)


@pytest.mark.parametrize("text", ['{"a": 1', "", "[1]", "\x00"])
def test_a_file_that_holds_no_settings_is_named(tmp_path, text):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"a": 1}))
    assert settings.read(path) == {"a": 1}
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"{path} .*settings.*restore it from a copy"):
        settings.read(path)


def test_equal_settings_do_not_differ():
    assert settings.differences(settings.dump(Outer()), settings.dump(Outer())) == {}


def test_differences_are_named_by_dotted_path_with_both_values():
    old, new = Outer(Inner(1, None), "x"), Outer(Inner(2, 0.5), "y")
    found = settings.differences(settings.dump(old), settings.dump(new))
    assert found == {"inner.a": (1, 2), "inner.b": (None, 0.5), "name": ("x", "y")}


def test_another_class_differs_by_its_kind_and_its_fields():
    found = settings.differences({"objective": settings.dump(Shortcut())}, {"objective": settings.dump(FlowMatching())})
    assert found["objective.kind"] == ("eqx_shortcut.objectives:Shortcut", "eqx_shortcut.objectives:FlowMatching")
    assert found["objective.bootstrap_every"] == (8, None) and "objective.steps" not in found


def test_an_entry_that_one_side_lacks_differs_whichever_side_it_is():
    assert settings.differences({"a": 1}, {}) == {"a": (1, None)}
    assert settings.differences({}, {"a": 1}) == {"a": (None, 1)}
    assert settings.differences({"a": {"b": 1}}, {"a": 2}) == {"a": ({"b": 1}, 2)}


def test_objectives_are_stored_by_the_package_that_exports_them():
    """So were they when it was one file: earlier records and later ones name the same class."""
    assert settings.dump(Shortcut())["kind"] == "eqx_shortcut.objectives:Shortcut"
    assert settings.find_class("eqx_shortcut.objectives:Shortcut") is Shortcut
