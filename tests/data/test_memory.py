"""Rows in memory of any shape with conditions of any structure, as a source of one's own builds them."""

import dataclasses
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import data, sharding
from eqx_shortcut.data import ArraySource, DataError, Digits, Images, Rows, Source, batches, prepare
from eqx_shortcut.data.pipeline import WholeBatches

COUNT, SIZE = 22, 8
NUMBERS = np.arange(COUNT)
ACTIONS = np.sin(NUMBERS[:, None, None] + np.arange(32.0).reshape(16, 2))
SEEN = {"state": np.stack([NUMBERS, -NUMBERS], axis=1) / COUNT, "camera": np.full((COUNT, 4, 4, 3), 7, np.uint8), "id": NUMBERS}
ROWS = ArraySource(ACTIONS, SEEN)


@dataclasses.dataclass(frozen=True)
class Demonstrations:
    """The source of data/source.py, as a user writes it."""

    path: pathlib.Path = pathlib.Path("demonstrations.npz")

    def build(self):
        stored = np.load(self.path)
        return ArraySource(stored["actions"], {"state": stored["state"], "camera": stored["camera"]}).split(0.1)


def test_a_source_of_ones_own_needs_build_alone(tmp_path):
    np.savez(tmp_path / "d.npz", actions=ACTIONS, state=SEEN["state"], camera=SEEN["camera"])
    source = Demonstrations(tmp_path / "d.npz")
    assert isinstance(source, Source)
    train, held_out = source.build()
    assert isinstance(train, Rows) and (len(train.labels), len(held_out.labels)) == (20, 2)
    both = np.concatenate([train.x, held_out.x])
    np.testing.assert_allclose(both[np.argsort(both[:, 0, 1])], ACTIONS[np.argsort(ACTIONS[:, 0, 1])], rtol=1e-6)
    one = data.blank(source)
    assert one.shape == (16, 2) and len(one.labels) == 1 and one.classes == 0
    assert data.pictures(source, np.zeros((3, 16, 2))) is None


def test_what_a_source_has_beside_build_is_used():
    @dataclasses.dataclass(frozen=True)
    class Drawn(Demonstrations):
        def blank(self):
            return ROWS.first(1)

        def pictures(self, samples):
            return jnp.ones((len(samples), 8, 8, 3))

    found = data.pictures(Drawn(), np.zeros((5, 16, 2)))
    assert found is not None and found.shape == (5, 8, 8, 3)
    assert data.blank(Drawn()).shape == (16, 2)
    images = np.zeros((2, 8, 8, 1), np.float32)
    assert data.pictures(Digits(), images) is images and data.pictures(Digits(), np.zeros((2, 4, 4, 4))) is None


def test_arrays_are_a_source_themselves():
    assert isinstance(ROWS, Source)
    train, held_out = dataclasses.replace(ROWS, held_out=0.5).build()
    assert sorted([*train.condition["id"], *held_out.condition["id"]]) == list(range(COUNT)) and len(held_out.x) == 11
    again, _ = dataclasses.replace(ROWS, held_out=0.5).build()
    np.testing.assert_array_equal(again.x, train.x)


def test_conditions_stay_with_their_rows_in_any_batch_and_share():
    whole = WholeBatches(ROWS, SIZE, seed=0)
    shares = [WholeBatches(ROWS, SIZE, seed=0, share=np.arange(SIZE)[half]) for half in (slice(4), slice(4, 8))]
    for i in range(6):
        batch, halves = whole[i], [share[i] for share in shares]
        np.testing.assert_allclose(batch["x"], ACTIONS[batch["condition"]["id"]], rtol=1e-6)
        np.testing.assert_allclose(batch["condition"]["state"], SEEN["state"][batch["condition"]["id"]], rtol=1e-6)
        jax.tree.map(lambda a, *b: np.testing.assert_array_equal(np.concatenate(b), a), batch, *halves)
    assert sorted(np.concatenate([whole[i]["condition"]["id"] for i in range(11)])) == sorted([*range(COUNT)] * 4)


def loader(workers: int = 0):
    layout = sharding.batch_sharding(sharding.make_mesh())
    return batches(ROWS, SIZE, seed=0, sharding=layout, workers=workers)


def test_the_loader_lays_every_leaf_out_over_the_devices_and_goes_to_an_exact_position():
    iterator, whole = loader(), WholeBatches(ROWS, SIZE, seed=0)
    found = [next(iterator) for _ in range(3)]
    assert all(len(leaf.sharding.device_set) == 8 for leaf in jax.tree.leaves(found))
    state = json.loads(json.dumps(iterator.get_state()))
    iterator.close()
    for workers in (0, 2):
        again = loader(workers)
        again.set_state(state)
        found[3:] = [next(again)]
        again.close()
        jax.tree.map(np.testing.assert_array_equal, found[3], whole[3])
    for i, batch in enumerate(found):
        jax.tree.map(np.testing.assert_array_equal, batch, whole[i])


def test_a_batch_is_floats_of_any_rank_with_its_condition(key):
    raw = jax.tree.map(jnp.asarray, ROWS.rows(np.arange(4)))
    batch = prepare(ROWS)(raw, key)
    assert batch.x.shape == (4, 16, 2) and batch.x.dtype == jnp.float32
    assert batch.cond["state"].dtype == jnp.float32 and batch.cond["camera"].dtype == jnp.uint8
    hidden = prepare(ROWS, labelled=False)(raw, key).cond
    assert jax.tree.structure(hidden) == jax.tree.structure(batch.cond)
    assert all(not np.any(leaf) for leaf in jax.tree.leaves(hidden))
    example = data.example(ROWS)
    assert example.x.shape == (16, 2) and example.cond["camera"].shape == (4, 4, 3) and example.cond["id"].shape == ()
    half = ArraySource(ACTIONS.astype(np.float16))
    assert prepare(half)(half.rows(np.arange(4)), key).x.dtype == jnp.float32
    assert ArraySource(jnp.asarray(ACTIONS, jnp.bfloat16)).x.dtype == np.float32


def test_the_null_condition_is_the_source_s_or_zeros_of_its_row():
    null = data.null_of(ROWS)
    assert jax.tree.map(lambda a: (a.shape, a.dtype.name, a.any()), null) == {
        "state": ((2,), "float32", False),
        "camera": ((4, 4, 3), "uint8", False),
        "id": ((), "int32", False),
    }
    given = {"state": np.ones(2), "camera": np.full((4, 4, 3), 128), "id": -1}
    own = data.null_of(ArraySource(ACTIONS, SEEN, null=given))
    jax.tree.map(np.testing.assert_array_equal, own, given)
    assert jax.tree.map(lambda a: a.dtype.name, own) == {"state": "float32", "camera": "uint8", "id": "int32"}
    assert data.null_of(ArraySource(ACTIONS)) is None


def test_one_integer_a_row_is_a_label():
    """Of which 0 is one: zeros would stand for it and for none."""
    labels = NUMBERS.astype(np.int64) % 5
    rows = ArraySource(ACTIONS, labels)
    assert (rows.classes, data.null_of(rows), rows.first(3).classes) == (5, 5, 5)
    assert rows.labels.dtype == np.int32 and np.array_equal(rows.labels, labels)
    assert data.null_of(ArraySource(ACTIONS, labels, classes=9)) == 9
    own = ArraySource(ACTIONS, labels, null=-1)
    assert own.classes == 0 and data.null_of(own) == -1
    images = Images(np.zeros((4, 2, 2, 1), np.uint8), np.zeros(4, np.int32), classes=3)
    assert data.null_of(images) == 3


NAN = ACTIONS.copy()
NAN[[3, 5], 0, 0] = np.nan, np.inf
WRONG: dict[str, tuple[Any, dict[str, Any], str]] = {
    "ragged": (
        [np.zeros((16, 2)), np.zeros((16, 2)), np.zeros((12, 2))], {},
        r"row 2 of x is of shape \(12, 2\), row 0 of \(16, 2\): give all rows one shape",
    ),
    "empty": (np.zeros((0, 16, 2)), {}, r"x has no rows \(its shape is \(0, 16, 2\)\): give an array with at least one"),
    "number": (1.0, {}, "x has no rows"),
    "nan": (NAN, {}, r"row 3 of x holds a number that is not finite \(2 such rows\): leave them out"),
    "too large": (np.full((3, 2), 1e300), {}, "row 0 of x holds a number that is not finite"),
    "bytes": (np.zeros((3, 2), np.uint8), {}, r"x is of uint8, and a network learns floats .*: scale it, as x / 127.5 - 1"),
    "text": (np.array(["a", "b"]), {}, r"x is of <U1, no numbers: give floats, integers or booleans"),
    "fewer": (
        ACTIONS,
        {"condition": {"state": np.zeros((21, 2))}},
        r"condition\['state'\] is of shape \(21, 2\) for 22 rows of x: let its first axis be the rows",
    ),
    "scalar": (ACTIONS, {"condition": (1.0,)}, r"condition\[0\] is of shape \(\) for 22 rows"),
    "nan condition": (ACTIONS, {"condition": NAN}, "row 3 of condition holds a number that is not finite"),
    "wide": (ACTIONS, {"condition": {"id": NUMBERS + 2**40}}, r"condition\['id'\] holds integers of more than 32 bits \(up to"),
    "label": (ACTIONS, {"condition": NUMBERS - 1}, r"label -1 of row 0 is not in 0 to 20 \(1 such labels\)"),
    "classes": (ACTIONS, {"condition": SEEN, "classes": 3}, "classes=3 for a condition that is not one integer a row"),
    "null parts": (ACTIONS, {"condition": SEEN, "null": 0.5}, r"null is 0\.5, a condition \{'camera': u8\[22,4,4,3\]"),
    "null range": (
        ACTIONS, {"condition": SEEN["camera"][:, 0, 0], "null": np.array([-1, 0, 0])},
        r"condition is of uint8, which cannot hold its null \[-1, 0, 0\]: give another one",
    ),
    "null shape": (
        ACTIONS, {"condition": ACTIONS, "null": np.zeros(2)},
        r"condition has rows of shape \(16, 2\) and a null of \(2,\): give one of that shape",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_trained_on_is_one_sentence(name):
    x, rest, said = WRONG[name]
    with pytest.raises(DataError, match=said):
        ArraySource(x, **rest)


def test_a_split_leaves_rows_on_both_sides():
    assert len(ROWS.split(1e-9)[1].x) == 1 and len(ROWS.split(1 - 1e-9)[0].x) == 1
    with pytest.raises(DataError, match="x has 1 row, and one must be held out"):
        ROWS.first(1).split(0.5)
    with pytest.raises(DataError, match=r"a share of 1\.5 to hold out"):
        ROWS.split(1.5)
