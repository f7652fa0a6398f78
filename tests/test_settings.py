"""Settings as JSON and back, and their differences."""

import dataclasses
import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import experiment, settings
from eqx_shortcut.data import CIFAR10, ImageFolder, LatentImages
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
    names = "Averages Checkpointing Config Figures Health Mesh Processes Quality WandB".split()
    assert all(settings.find_class(f"config:{name}") is getattr(experiment, name) for name in names)
    assert settings.find_class("config:LatentConfig") is experiment.Config


@pytest.mark.parametrize("images", [None, ImageFolder(path=pathlib.Path("photos"), size=64)])
def test_a_record_of_an_earlier_run_on_latents_has_autoencoder_and_cache_in_its_data(images, tmp_path):
    """A folder's record, and settings as a whole, of the class that had them beside `data`."""
    latents = {"vae": "sd", "cache": "latents/a", "encode_batch": 8}
    old = {"kind": "config:LatentConfig", "steps": 5, "data": settings.dump(images), **latents}
    parts = {"network": DiTConfig(), "objective": Shortcut(), "optimizer": AdamW()}
    (tmp_path / "config.json").write_text(json.dumps(old))
    found = settings.read(tmp_path / "config.json")
    data = LatentImages(images, pathlib.Path("sd"), pathlib.Path("latents/a"), 8)
    assert settings.parse(found["data"]) == data and not found.keys() & latents.keys()
    for whole in (old, found):
        assert settings.parse(whole | settings.dump(parts)) == experiment.Config(data=data, steps=5, **parts)


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


@dataclasses.dataclass(frozen=True)
class Nested:
    pairs: tuple[tuple[int, int], ...] = ((1, 2), (3, 4))
    any: Any = None

    @dataclasses.dataclass(frozen=True)
    class Within:
        a: int = 1


def test_tuples_of_tuples_and_classes_within_classes_come_back():
    value = Nested(any=Nested.Within(3))
    assert settings.parse(json.loads(json.dumps(settings.dump(value)))) == value
    settings.check_importable(value)


def test_a_class_of_a_private_module_is_named_by_it_unless_its_package_exports_it(tmp_path, monkeypatch):
    (tmp_path / "their_nets").mkdir()
    (tmp_path / "their_nets" / "__init__.py").write_text("from ._nets import Shown")
    text = "import dataclasses\n"
    text += "".join(f"@dataclasses.dataclass(frozen=True)\nclass {name}:\n    a: int = 1\n" for name in ("Shown", "Hidden"))
    (tmp_path / "their_nets" / "_nets.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    from their_nets import _nets  # pyright: ignore[reportMissingImports]

    kinds = [settings.dump(value)["kind"] for value in (_nets.Shown(), _nets.Hidden())]
    assert kinds == ["their_nets:Shown", "their_nets._nets:Hidden"]
    for value in (_nets.Shown(), _nets.Hidden()):
        settings.check_importable(value)
        assert settings.parse(settings.dump(value)) == value
    for name in ("their_nets", "their_nets._nets"):
        monkeypatch.delitem(sys.modules, name)


def test_what_could_not_be_imported_again_is_refused_at_the_start(monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Local:
        a: int = 1

    for value in (Local(), Nested(any=Local()), Nested(any=(1, {"x": Local()}))):
        with pytest.raises(ValueError, match=r"Local is defined in a function of .*: move it to a module of its own"):
            settings.check_importable(value)
    monkeypatch.setattr(Inner, "__module__", "__main__")
    with pytest.raises(ValueError, match=r"Inner is defined in the script that runs, .*: move it to a module of its own"):
        settings.check_importable(Outer())


@pytest.mark.parametrize("value", [len, {1, 2}, np.zeros(2), 1j])
def test_what_json_cannot_hold_is_refused_at_the_start(value):
    with pytest.raises(ValueError, match=r"^config.any is a \w+, which config.json cannot hold: settings are numbers"):
        settings.check_importable(Nested(any=(1, value)), "config")


def test_everything_the_package_has_in_its_settings_can_be_recorded():
    for value in (DiTConfig(), Shortcut(), AdamW(), CIFAR10(pathlib.Path("c")), None, "a", 1.5, True):
        settings.check_importable(value)


CONDITION = {
    "state": np.zeros((2, 3), np.float32),
    "text": (jnp.arange(4.0) / 3, [np.int32(5), None]),
    "flag": np.array(True),
    "scale": 0.5,
    "empty": {},
}


def test_a_condition_comes_back_through_json_to_the_bit():
    dumped = json.loads(json.dumps(settings.dump_arrays(CONDITION)))
    assert dumped["dict"]["state"] == {"array": "float32", "shape": [2, 3]}, "zeros take no room"
    found = settings.parse_arrays(dumped)
    assert jax.tree.structure(found) == jax.tree.structure(CONDITION)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(CONDITION), strict=True):
        np.testing.assert_array_equal(a, b, strict=hasattr(b, "dtype"))
    assert settings.parse_arrays(settings.dump_arrays(7)) == 7 and settings.parse_arrays(None) is None


@pytest.mark.parametrize("condition", ["text", {1: np.zeros(2)}, Inner(), {"a": {3, 4}}])
def test_a_condition_of_another_kind_is_refused(condition):
    with pytest.raises(ValueError, match=r"a condition holds a \w+: build it of dicts by name, tuples, lists and arrays"):
        settings.dump_arrays(condition)
