"""Files of torch: both formats are read to the bit, nothing in them is run, and every fault is one sentence."""

import collections
import pathlib
import pickle

import numpy as np
import pytest

import torchfiles
from eqx_shortcut.pretrained.torchfile import is_torch, read_tensors
from torchfiles import Name, Storage, Tensor

RNG = np.random.default_rng(0)
ARRAYS = {
    "weight": RNG.normal(size=(2, 3, 4)).astype(np.float32),
    "half": RNG.normal(size=3).astype(np.float16),
    "double": RNG.normal(size=(1, 2)),
    "count": np.array(7),
    "small": np.arange(-3, 3, dtype=np.int8),
    "flags": np.array([True, False]),
    "none": np.zeros((0, 3), np.float32),
}
FORMATS = {"archive": torchfiles.archive, "row": torchfiles.row}


@pytest.fixture
def stored(tmp_path):
    def write(data: bytes) -> pathlib.Path:
        path = tmp_path / "weights.pth"
        path.write_bytes(data)
        return path

    return write


def refused(path: pathlib.Path) -> str:
    with pytest.raises(ValueError) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return str(caught.value)


def assert_same(found, expected) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_tensors_are_read_to_the_bit(stored, write):
    path = stored(write(ARRAYS))
    assert is_torch(path)
    assert_same(read_tensors(path), ARRAYS)


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_views_share_a_storage(stored, write):
    shared = Storage("0", np.arange(12, dtype=np.float32))
    content = collections.OrderedDict(whole=Tensor(shared, 0, (3, 4), (4, 1)), turned=Tensor(shared, 1, (4, 2), (1, 4)))
    assert_same(
        read_tensors(stored(write(content=content))),
        {"whole": shared.values.reshape(3, 4), "turned": shared.values.reshape(3, 4)[:2].T + 1},
    )


class Versioned(collections.OrderedDict):
    """A state dictionary with the versions of its modules, as torch's own."""

    def __reduce__(self):
        return Name("collections", "OrderedDict"), (), {"_metadata": {"": {"version": 1}}}, None, iter(self.items())


def test_versions_of_modules_and_parameters_are_passed_over(stored):
    tensor = torchfiles.tensors({"a": ARRAYS["weight"]})["a"]

    class Parameter:
        def __reduce__(self):
            return Name("torch._utils", "_rebuild_parameter"), (tensor, True, collections.OrderedDict())

    for content in (Versioned(a=tensor), {"a": Parameter()}):
        assert_same(read_tensors(stored(torchfiles.archive(content=content))), {"a": ARRAYS["weight"]})


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


def one(storage: Storage, *view) -> dict[str, Tensor]:
    return {"a": Tensor(storage, *view)}


FLOATS = np.zeros(4, np.float32)
FAULTS = {
    "code": ({"a": Call(Name("os", "system"), ("touch canary",))}, "names the global os.system, and only"),
    "a module": ({"a": Call(Name("torch.nn.modules.linear", "Linear"), ())}, "global torch.nn.modules.linear.Linear"),
    "a number": ({"epoch": 3}, "what is of type int as 'epoch', which is no tensor"),
    "levels": ({"model": torchfiles.tensors(ARRAYS)}, "as 'model', which is no tensor"),
    "nothing": ({}, "no dictionary of tensors"),
    "a number for a name": ({0: torchfiles.tensors({"a": np.ones(1, np.float32)})["a"]}, "under 0, which is no name"),
    "a list": ([1], "no dictionary of tensors"),
    "too far": (one(Storage("0", FLOATS), 1, (4,), (1,)), "ends at number 4 of a storage of 4"),
    "too many": (one(Storage("0", FLOATS), 0, (5,), (0,)), "shape (5,) in a storage of 4"),
    "backwards": (one(Storage("0", FLOATS), 0, (2,), (-1,)), "shape (2,)"),
    "endless": (one(Storage("0", FLOATS), 0, (2**62, 4), (0, 0)), "in a storage of 4"),
    "another kind": (one(Storage("0", FLOATS, kind="ComplexFloatStorage"), 0, (4,), (1,)), "global torch.ComplexFloatStorage"),
    "a longer storage": (one(Storage("0", FLOATS, count=5), 0, (4,), (1,)), "storage 0"),
    "a huge storage": (one(Storage("0", FLOATS, count=2**60), 0, (4,), (1,)), "storage 0"),
    "one key, two storages": (
        one(Storage("0", FLOATS), 0, (4,), (1,)) | {"b": Tensor(Storage("0", np.zeros(4)), 0, (4,), (1,))},
        "in two ways",
    ),
}


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize(("content", "words"), FAULTS.values(), ids=FAULTS)
def test_other_contents_are_refused(stored, tmp_path, monkeypatch, write, content, words):
    monkeypatch.chdir(tmp_path)
    assert words in refused(stored(write(content=content)))
    assert not (tmp_path / "canary").exists()


def test_other_files_are_refused(stored, tmp_path):
    assert "check the path" in refused(tmp_path / "absent.pth")
    assert "does not begin as torch.save writes" in refused(stored(pickle.dumps({"a": 1})))
    assert "in big-endian order" in refused(stored(torchfiles.archive(ARRAYS, order="big")))
    assert "little-endian" in refused(stored(torchfiles.row(ARRAYS, info={"little_endian": False})))
    assert "of version" in refused(stored(torchfiles.row(ARRAYS, version=1000)))
    assert "is compressed" in refused(stored(torchfiles.archive(ARRAYS, packed=True)))
    assert not is_torch(stored(b"PK"))


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_a_file_cut_off_is_refused(stored, write):
    data = write(ARRAYS)
    for end in range(0, len(data), len(data) // 50):
        refused(stored(data[:end]))
    if write is torchfiles.row:
        assert "more bytes follow the end" in refused(stored(data + b"x"))


@pytest.mark.parametrize("write", FORMATS.values(), ids=FORMATS)
def test_a_file_with_a_byte_changed_is_read_or_refused(stored, write):
    data, rng = write(ARRAYS), np.random.default_rng(1)
    for at in rng.integers(0, len(data), 60):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        try:
            read_tensors(stored(bytes(changed)))
        except ValueError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize("new", [True, False])
def test_files_of_torch_itself(tmp_path, new):
    torch = pytest.importorskip("torch", reason="needs torch: install the extra `parity`")
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    content = module.state_dict() | {
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "kept": torch.nn.Parameter(torch.ones(2).double()),
    }
    torch.save(content, tmp_path / "weights.pth", _use_new_zipfile_serialization=new)
    assert_same(read_tensors(tmp_path / "weights.pth"), {name: value.detach().numpy() for name, value in content.items()})
