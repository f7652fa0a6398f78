"""The reference's checkpoints read back to the bit, and nothing else read at all."""

import dataclasses
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import pickles
from eqx_shortcut import reference
from eqx_shortcut.objectives import FlowMatching, Networks
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.reference import ReferenceCheckpointError
from eqx_shortcut.train import TrainState, make_step
from eqx_shortcut.types import Batch
from pickles import CLASSES, CONFIG, COUNT, SHAPE, STEP, content, pickled, trees


@pytest.fixture
def stored(tmp_path):
    """Writes bytes, or what is to be pickled, to a file."""

    def write(value) -> pathlib.Path:
        path = tmp_path / "checkpoint.pkl"
        path.write_bytes(value if isinstance(value, bytes) else pickle.dumps(value, 4))
        return path

    return write


def refused(path: pathlib.Path) -> str:
    """The sentence with which the file is refused."""
    with pytest.raises(ReferenceCheckpointError) as caught:
        reference.read(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(found: dict[str, np.ndarray] | None, expected: dict[str, np.ndarray]) -> None:
    assert found is not None and found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype and found[name].dtype.isnative
        np.testing.assert_array_equal(found[name], value, err_msg=name)


# What is read


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("conversion", pickles.CONVERSIONS)
def test_a_checkpoint_is_read_to_the_bit(stored, conversion, protocol):
    found = reference.read(stored(pickled(conversion, protocol)))
    for name, expected in trees().items():
        assert_same(getattr(found, name), expected)
    assert (found.count, found.step) == (COUNT, STEP)


@pytest.mark.parametrize("protocol", [3, 5])
def test_names_of_older_numpy_are_read(stored, protocol):
    data, short, long = pickled("numpy", protocol), b"numpy.core.", b"numpy._core."
    if protocol == 5:
        for module in (b"multiarray", b"numeric"):
            old, new = long + module, short + module
            data = data.replace(bytes([len(old)]) + old, bytes([len(new)]) + new)
    data = data.replace(long, short)
    assert short in data
    assert_same(reference.read(stored(data)).parameters, trees()["parameters"])


def test_without_the_optimizers_state_its_fields_are_none(stored):
    saved = content()
    saved["train_state"]["opt_state"] = None
    found = reference.read(stored(saved))
    assert (found.mu, found.nu, found.count) == (None, None, None)
    assert_same(found.average, trees()["average"])


def test_the_folder_that_the_saver_makes_is_read(tmp_path):
    (tmp_path / "step100").mkdir()
    (tmp_path / "step100" / "step100.tmp").write_bytes(pickled())
    assert reference.read(tmp_path / "step100").step == STEP
    assert reference.read(f"{tmp_path}/step100/").step == STEP


# What is refused: code

TOUCH = "import pathlib; pathlib.Path('canary').touch()"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def by_global(module: str, name: str, argument: str) -> bytes:
    return b"\x80\x03c" + f"{module}\n{name}\n".encode() + text(argument) + b"\x85R."


def by_stack_global(module: str, name: str, argument: str) -> bytes:
    return b"\x80\x04" + text(module) + text(name) + b"\x93" + text(argument) + b"\x85R."


@pytest.mark.parametrize("form", [by_global, by_stack_global])
@pytest.mark.parametrize(
    ("module", "name", "argument"),
    [("os", "system", "touch canary"), ("builtins", "exec", TOUCH), ("builtins", "eval", f"exec({TOUCH!r})")],
)
def test_code_in_a_checkpoint_never_runs(stored, tmp_path, monkeypatch, form, module, name, argument):
    monkeypatch.chdir(tmp_path)
    path = stored(form(module, name, argument))
    message = refused(path)
    assert f"the global {module}.{name}," in message and "numpy.ndarray" in message
    assert not (tmp_path / "canary").exists()
    pickle.loads(path.read_bytes())
    assert (tmp_path / "canary").exists(), "the test would show that code ran"


class Reduced:
    """Pickles as a call."""

    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("function", [os.system, eval, np.load, getattr, jnp.load, np.fromfile, optax.adam])
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_no_function_outside_the_list_may_be_named(stored, function, protocol):
    saved = content()
    saved["train_state"]["step"] = Reduced(function, ("x",))
    message = refused(stored(pickle.dumps(saved, protocol)))
    assert "names the global " in message and (protocol == 2 or function.__name__ in message)


def test_protocol_2_needs_a_name_that_is_not_on_the_list(stored):
    assert "names the global _codecs.encode," in refused(stored(pickled("numpy", 2)))


@pytest.mark.parametrize("call", [(np.ndarray, ((2,),)), (np.dtype, ("O8", False, True)), (optax.EmptyState, ())])
def test_names_on_the_list_mean_only_what_a_checkpoint_means(stored, call):
    saved = content()
    saved["train_state"]["step"] = Reduced(*call)
    refused(stored(saved))


@pytest.mark.parametrize(
    "code", ["i", "o", "\x82", "P", "Q", "\x92", "2", "0", "1", "\x97", "\x98", "I", "L", "V", "\x8b", "]"]
)
def test_entries_that_no_checkpoint_holds_are_refused(stored, code):
    data = pickled()
    assert "which no checkpoint holds" in refused(stored(data[:-1] + code.encode("latin-1") + data[-1:]))


# What is refused: damage


def test_a_checkpoint_cut_off_says_where(stored):
    data = pickled()
    for end in range(1, len(data), len(data) // 60):
        assert f"ends at byte {end} " in refused(stored(data[:end]))
    assert "byte 0" in refused(stored(b""))


def test_bytes_after_the_end_are_refused(stored):
    assert "more bytes follow the end" in refused(stored(pickled() + b"."))


def test_other_files_are_refused(stored, tmp_path):
    assert "is no pickle" in refused(stored(b"PK\x03\x04 something else"))
    assert "no checkpoint" in refused(tmp_path / "absent.pkl")
    (tmp_path / "folder").mkdir()
    assert "folder without folder.tmp" in refused(tmp_path / "folder")
    assert "protocol 9" in refused(stored(b"\x80\x09" + pickled()[2:]))


@pytest.mark.parametrize("value", [{}, [], {"train_state": 3}, {"train_state": {"params": {}}}, (), 5, {1: 2}])
def test_other_contents_are_refused(stored, value):
    refused(stored(value))


NAME = "DiTBlock_1/Dense_3/bias"


def changed(change) -> dict:
    """The content after `change(train_state, block)`."""
    saved = content()
    change(saved["train_state"], saved["train_state"]["params"]["DiTBlock_1"]["Dense_3"])
    return saved


def cyclic(state, block):
    state["params"]["DiTBlock_1"]["self"] = state["params"]


def laughing(state, block):
    level = {"a": np.zeros(1, np.float32)}
    for _ in range(60):
        level = {"a": level, "b": level}
    state["params"]["more"] = level


def deep(state, block):
    level = {}
    for _ in range(400):
        level = {"a": level}
    state["params"]["more"] = level


def with_nodes(state, block):
    level = state["opt_state"]
    for _ in range(60):
        level = (level, level)
    state["opt_state"] = level


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state, block: block.pop("bias"), f"its params lacks {NAME}, which its params_ema has"),
        (lambda state, block: block.update(extra=np.zeros(1)), "its params_ema lacks DiTBlock_1/Dense_3/extra"),
        (lambda state, block: block.update(bias=np.zeros(9)), f"has {NAME} of shape (8,), its params of (9,)"),
        (lambda state, block: block.update(bias=np.zeros(8, object)), "EMPTY_LIST, which no checkpoint holds"),
        (lambda state, block: block.update(bias=np.zeros(8, "U3")), "type U3"),
        (lambda state, block: block.update(bias=np.zeros(8, "f4,i4")), "gives the type V8 a state"),
        (lambda state, block: block.update(bias=np.zeros(8, np.int32)), f"no array of real numbers at {NAME}"),
        (lambda state, block: block.update(bias=None), f"no array of real numbers at {NAME}"),
        (lambda state, block: block.update({"a/b": np.zeros(1)}), "a part named 'a/b'"),
        (lambda state, block: block.update({"a" * 101: np.zeros(1)}), "a part named 'aaa"),
        (cyclic, "holds itself"),
        (laughing, "too deep"),
        (deep, "too deep"),
        (with_nodes, "opt_state is not that of AdamW"),
        (lambda state, block: state.pop("params_ema"), "lacks params_ema"),
        (lambda state, block: state.update(params=3), "its params is no dictionary"),
        (lambda state, block: state.update(step=-1), "step is no whole number"),
        (lambda state, block: state.update(step=2**31), "step is no whole number"),
        (lambda state, block: state.update(step=True), "step is no whole number"),
        (lambda state, block: state.update(opt_state=()), "opt_state is not that of AdamW"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_contradictions_are_named(stored, change, words):
    assert words in refused(stored(changed(change)))


def test_parts_shared_below_the_deepest_level_cost_nothing(stored):
    def change(state, block):
        state["params"]["more"] = {str(i): block for i in range(1000)}

    assert "holds itself, or a part twice" in refused(stored(changed(change)))


def test_counts_that_differ_are_refused(stored):
    saved = content()
    (adam, decay, _), *_ = saved["train_state"]["opt_state"]
    saved["train_state"]["opt_state"] = ((adam, decay, optax.ScaleByScheduleState(np.int32(4))),)
    assert "counts 5 updates, its schedule 4" in refused(stored(saved))


@pytest.mark.parametrize("size", [2**31 - 1, 2**40, 2**62, 2**63 - 1])
@pytest.mark.parametrize("code", [b"\x8d", b"\x8e", b"\x96", b"\x95"])
def test_counts_that_lie_reserve_nothing(stored, code, size):
    refused(stored(b"\x80\x04" + code + struct.pack("<Q", size) + b"abc"))


def test_an_index_that_is_huge_reserves_nothing(stored):
    data = pickled("numpy", 3)
    assert "cannot be read" in refused(stored(data[:2] + b"}r\xff\xff\xff\xff" + data[2:]))
    assert "value 4294967295, which was never stored" in refused(stored(b"\x80\x03j\xff\xff\xff\xff."))


@pytest.mark.parametrize(
    "shape", [b"J\xff\xff\xff\x7f", b"\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", b"J\xff\xff\xff\xff", b"K\x05"]
)
def test_a_shape_that_lies_is_refused(stored, shape):
    array = b"\x80\x03cnumpy._core.numeric\n_frombuffer\n(C\x04abcdcnumpy\ndtype\nX\x02\0\0\0f4\x89\x88\x87R" + shape + b"\x85"
    assert "4 bytes for an array of shape (" in refused(stored(array + text("C") + b"tR."))


def test_bytes_are_never_taken_for_objects(stored):
    message = refused(stored(pickled().replace(b"\x8c\x02f4", b"\x8c\x02O8")))
    assert "an array of type O8, and only plain numbers are allowed" in message


def test_a_million_entries_are_the_most(stored):
    assert "more than 1,000,000 entries" in refused(stored(b"\x80\x04" + b"}" * 1_000_001 + b"."))


def test_mutated_checkpoints_are_read_or_refused_and_do_nothing_else(tmp_path):
    (tmp_path / "whole.pkl").write_bytes(pickle.dumps(content(most=5), 4))
    line = [
        sys.executable,
        str(pathlib.Path(__file__).with_name("fuzz.py")),
        str(tmp_path / "whole.pkl"),
        str(tmp_path),
        "1000",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(line, capture_output=True, text=True, timeout=250, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    report = json.loads(done.stdout)
    assert report["events"] == [] and report["control"] > 0
    assert len(report["outcomes"]) == 1000
    assert not any("\\n" in sentence for sentence in report["outcomes"])
    assert report["longest"] < 5
    kinds = {sentence.split(": ")[1].split(" at byte")[0] for sentence in report["outcomes"] if sentence != "read"}
    assert 20 < report["outcomes"].count("read") < 800 and len(kinds) > 10


# What is made of it


def resumed(checkpoint: reference.Checkpoint, tx: optax.GradientTransformation) -> TrainState:
    return reference.train_state(checkpoint, CONFIG, SHAPE, CLASSES, tx, key=jax.random.key(1))


def stepped(tx: optax.GradientTransformation, *states: TrainState) -> list[TrainState]:
    """Each after one step on a fixed batch."""
    x = jnp.asarray(np.random.default_rng(0).standard_normal((4, *SHAPE)), jnp.float32)
    step = make_step(FlowMatching(steps=4), tx, prepare=lambda raw, key: raw, ema_decay=0.9, steps=100)
    return [step(state, Batch(x, jnp.arange(4) % CLASSES))[0] for state in states]


def test_training_continues_as_from_the_same_numbers(stored):
    tx = AdamW(lr=0.1, schedule="cosine").build(100)
    stored_networks: Any = (reference.from_parameters(tree, CONFIG, SHAPE, CLASSES) for tree in trees().values())
    online, average, mu, nu = stored_networks
    adam = optax.ScaleByAdamState(jnp.int32(COUNT), mu, nu)
    moments = (adam, optax.EmptyState(), optax.ScaleByScheduleState(jnp.int32(COUNT)))
    expected = TrainState(
        jnp.int32(STEP - 1), jax.random.key(1), Networks(online, average, null=CLASSES), moments, jnp.int32(0), jnp.int32(0)
    )
    found = resumed(reference.read(stored(pickled())), tx)
    before = jax.tree.map(np.asarray, (eqx.filter(found, eqx.is_inexact_array), eqx.filter(expected, eqx.is_inexact_array)))
    assert jax.tree.all(jax.tree.map(np.array_equal, *before))
    new, want = stepped(tx, found, expected)
    assert int(new.step) == STEP and int(new.opt_state[0].count) == COUNT + 1
    assert jax.tree.structure(new) == jax.tree.structure(want)
    for a, b in zip(
        jax.tree.leaves((new.networks, new.opt_state)), jax.tree.leaves((want.networks, want.opt_state)), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(jax.tree.leaves(new.networks.online)[0], before[0].networks.online.patches.kernel)


@pytest.mark.parametrize(("step", "expected"), [(0, 0), (1, 0), (2, 1)])
def test_steps_are_counted_from_zero(step, expected):
    tree = trees()["parameters"]
    checkpoint = reference.Checkpoint(tree, tree, None, None, None, step)
    state = resumed(checkpoint, AdamW().build(10))
    assert int(state.step) == expected
    assert int(state.opt_state[0].count) == 0
    assert all(not leaf.any() for leaf in jax.tree.leaves(state.opt_state[0]))


@pytest.mark.parametrize("tx", [AdamW(clip=1.0).build(10), optax.adamw(1e-3), optax.sgd(1e-3)], ids=["clip", "constant", "sgd"])
def test_an_optimizer_of_other_parts_is_refused(tx):
    tree = trees()["parameters"]
    with pytest.raises(ReferenceCheckpointError, match="without gradient clipping"):
        resumed(reference.Checkpoint(tree, tree, tree, tree, 1, 2), tx)


def test_another_architecture_is_refused_by_name():
    tree = trees()["parameters"]
    other = dataclasses.replace(CONFIG, depth=3)
    with pytest.raises(ReferenceCheckpointError, match=r"14 missing .*DiTBlock_2"):
        checkpoint = reference.Checkpoint(tree, tree, None, None, None, 1)
        reference.train_state(checkpoint, other, SHAPE, CLASSES, AdamW().build(1), key=jax.random.key(0))
