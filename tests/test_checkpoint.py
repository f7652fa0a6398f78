"""Checkpoints: what is read is what was saved, to the bit, or the checkpoint is refused by name."""

import contextlib
import pathlib
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from eqx_shortcut import sharding
from eqx_shortcut.checkpoint import TMP_DIR_SUFFIX, CheckpointError, Checkpoints
from eqx_shortcut.train import TrainState, init_state
from object_store import Objects


class Net(eqx.Module):
    w: jax.Array
    rule: Callable
    name: str = eqx.field(static=True, default="net")

    def __init__(self, key, width: int = 64):
        self.w, self.rule = jax.random.normal(key, (width, 128)), jax.nn.relu


TX = optax.adam(1e-2)


def state_at(step: int, seed: int = 0, teacher: bool = False) -> TrainState:
    """A state whose every number differs from that of another step."""
    state = init_state(Net, TX, jax.random.key(seed))
    arrays, rest = eqx.partition(state, eqx.is_inexact_array)
    state = eqx.combine(jax.tree.map(lambda a: a + step, arrays), rest)
    if teacher:
        state = eqx.tree_at(lambda s: s.networks.teacher, state, Net(jax.random.key(99)), is_leaf=lambda x: x is None)
    counters = (jnp.int32(step), jnp.int32(3), jnp.int32(2))
    return eqx.tree_at(lambda s: (s.step, s.skipped, s.streak), state, counters)


def numbers(tree) -> list[np.ndarray]:
    arrays = jax.tree.leaves(eqx.filter(tree, eqx.is_array))
    return [np.array(jax.random.key_data(a) if jnp.issubdtype(a.dtype, jax.dtypes.prng_key) else a) for a in arrays]


def assert_same(a, b) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for one, other in zip(numbers(a), numbers(b), strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def saved(folder: str | pathlib.Path, *states: TrainState, keep: int = 3) -> str | pathlib.Path:
    checkpoints = Checkpoints(folder, keep=keep, config={"a": 1})
    for state in states:
        checkpoints.save(state, {"next_index": int(state.step)})
    checkpoints.close()
    return folder


def restored(folder: str | pathlib.Path, like: TrainState | None = None):
    checkpoints = Checkpoints(folder)
    try:
        return checkpoints.restore(state_at(0, seed=5) if like is None else like)
    finally:
        checkpoints.close()


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Checkpoints of steps 10 and 20; copy before changing."""
    return pathlib.Path(saved(tmp_path_factory.mktemp("two") / "checkpoints", state_at(10), state_at(20)))


@pytest.fixture
def copy(two: pathlib.Path, tmp_path: pathlib.Path) -> pathlib.Path:
    return pathlib.Path(shutil.copytree(two, tmp_path / "checkpoints"))


@pytest.mark.parametrize("teacher", [False, True])
def test_a_state_comes_back_to_the_bit_with_its_position(tmp_path, teacher):
    state = state_at(7, seed=1, teacher=teacher)
    found = restored(saved(tmp_path, state), state_at(0, seed=2, teacher=teacher))
    assert found is not None
    back, position, notes = found
    assert_same(back, state)
    assert position == {"next_index": 7} and notes == []
    assert back.networks.online.rule is jax.nn.relu and jnp.issubdtype(back.key.dtype, jax.dtypes.prng_key)


def test_more_averages_come_back_and_a_checkpoint_without_them_is_refused_and_left_alone(tmp_path):
    state, like = (init_state(Net, TX, jax.random.key(seed), averages=(0.05, 0.1)) for seed in (1, 2))
    found = restored(saved(tmp_path / "with", state), like)
    assert found is not None
    assert_same(found[0], state)
    folder = pathlib.Path(saved(tmp_path / "without", state_at(7)))
    with pytest.raises(CheckpointError, match=r"checkpoint 7 in .* was written without --averages.sigma-rel: leave it out, or"):
        restored(folder, like)
    assert [path.name for path in folder.iterdir()] == ["7"]


def test_checkpoints_of_later_steps_can_be_removed(copy):
    checkpoints = Checkpoints(copy)
    checkpoints.remove_after(10)
    checkpoints.save(state_at(20), {"next_index": 20}, wait=True)
    checkpoints.close()
    assert checkpoints.steps() == [10, 20]


def test_an_empty_folder_holds_no_checkpoint(tmp_path):
    assert restored(tmp_path / "new") is None


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, *(state_at(n) for n in (5, 10, 15, 20)), keep=2)
    assert Checkpoints(tmp_path).steps() == [15, 20]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["15", "20"]


def test_milestones_are_kept_beside_the_newest_and_over_a_new_start(tmp_path):
    for steps in ((4, 6, 8, 10), (11, 12, 13)):
        checkpoints = Checkpoints(tmp_path, keep=1, milestones=4)
        for n in steps:
            checkpoints.save(state_at(n), {"next_index": n})
        checkpoints.close()
    assert Checkpoints(tmp_path).steps() == [4, 8, 12, 13]
    for before, step in ((14, 13), (13, 12), (9, 8), (8, 4)):
        found = Checkpoints(tmp_path).restore(state_at(0, seed=5), before=before)
        assert found is not None and found[1:] == ({"next_index": step}, [])
        assert_same(found[0], state_at(step))
    assert Checkpoints(tmp_path).restore(state_at(0), before=4) is None


def test_a_look_at_an_earlier_step_leaves_a_damaged_checkpoint_where_it_is(copy):
    truncate(copy / "20" / "ema")
    found = Checkpoints(copy).restore(state_at(0), before=21)
    assert found is not None and int(found[0].step) == 10 and "checkpoint 20" in found[2][0]
    assert Checkpoints(copy).steps() == [10, 20]


def test_what_a_killed_run_left_half_written_is_removed_with_the_next_checkpoint(copy):
    torn = copy / f"30{TMP_DIR_SUFFIX}" / "online"
    torn.mkdir(parents=True)
    (torn / "part").write_bytes(b"?")
    saved(copy, state_at(30))
    assert sorted(path.name for path in copy.iterdir()) == ["10", "20", "30"]


def test_the_newest_is_by_number_and_not_by_name(tmp_path):
    found = restored(saved(tmp_path, state_at(9), state_at(10)))
    assert found is not None and int(found[0].step) == 10


def test_a_step_may_be_asked_to_be_saved_twice(tmp_path):
    state = state_at(5)
    saved(tmp_path, state, state)
    found = restored(tmp_path)
    assert found is not None
    assert_same(found[0], state)


def test_what_is_saved_is_the_state_when_save_returned(tmp_path):
    """The buffers are donated to the next step while the checkpoint is still being written."""
    bump = eqx.filter_jit(
        lambda state: jax.tree.map(lambda a: a + 1 if eqx.is_inexact_array(a) else a, state, is_leaf=eqx.is_array),
        donate="all",
    )
    state = init_state(lambda key: Net(key, 8192), TX, jax.random.key(0))
    state = bump(state)
    before = numbers(state)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state, {})
    for _ in range(50):
        state = bump(state)
    checkpoints.close()
    assert not np.array_equal(numbers(state.networks.online)[0], before[1])
    found = restored(tmp_path, init_state(lambda key: Net(key, 8192), TX, jax.random.key(1)))
    assert found is not None
    for one, other in zip(numbers(found[0]), before, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("weights", ["ema", "online"])
def test_one_set_of_weights_is_read_though_every_other_item_is_gone(copy, weights):
    for item in (copy / "20").iterdir():
        if item.is_dir() and item.name != weights:
            shutil.rmtree(item)
    like = eqx.filter_eval_shape(Net, jax.random.key(0))
    network, step = Checkpoints(copy).restore_network(like, weights)
    assert step == 20
    assert_same(network, getattr(state_at(20).networks, weights))
    assert network.rule is jax.nn.relu


def test_weights_of_an_earlier_step_can_be_asked_for(two):
    network, step = Checkpoints(two).restore_network(eqx.filter_eval_shape(Net, jax.random.key(0)), "ema", 10)
    assert step == 10
    assert_same(network, state_at(10).networks.ema)


def test_a_step_that_is_not_there_is_refused_with_those_that_are(two, tmp_path):
    like = eqx.filter_eval_shape(Net, jax.random.key(0))
    with pytest.raises(CheckpointError, match=r"no checkpoint 15 in .*: there are 10, 20"):
        Checkpoints(two).restore_network(like, "ema", 15)
    with pytest.raises(CheckpointError, match=r"no checkpoint in .*: train first"):
        Checkpoints(tmp_path / "none").restore_network(like)


def files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


def truncate(path: pathlib.Path) -> None:
    """A file, or the largest of an item."""
    path = path if path.is_file() else files(path)[-1]
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: pathlib.Path, place: float = 0.5) -> None:
    """One bit of a file, or of the largest of an item."""
    path = path if path.is_file() else files(path)[-1]
    raw = bytearray(path.read_bytes())
    raw[int(len(raw) * place)] ^= 1
    path.write_bytes(bytes(raw))


ITEMS = ("online", "ema", "optimizer", "loop", "data", "config")
DAMAGE = {"removed": shutil.rmtree, "truncated": truncate, "flipped": flip}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("item", ITEMS)
def test_a_damaged_item_is_named_and_the_checkpoint_before_is_used(copy, item, damage):
    DAMAGE[damage](copy / "20" / item)
    found = restored(copy)
    assert found is not None
    state, position, (note,) = found
    assert_same(state, state_at(10))
    assert position == {"next_index": 10}
    assert f"checkpoint 20 in {copy} is damaged" in note and f"file {item}/" in note
    assert ("is missing" if damage == "removed" else "has changed") in note


@contextlib.contextmanager
def as_it_was(path: pathlib.Path) -> Iterator[None]:
    """A file afterwards."""
    raw = path.read_bytes()
    yield
    path.write_bytes(raw)


OF_ORBAX = ("_CHECKPOINT_METADATA", "commit_success.txt")
"""Files beside the items, which Orbax writes after the hashes, and from which nothing of a state is read."""


@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink])
def test_whatever_happens_to_any_file_is_seen_and_named(copy, damage):
    """With no other checkpoint to go on from, so that each is a refusal."""
    shutil.rmtree(copy / "10")
    checkpoints, like = Checkpoints(copy), state_at(0)
    every = [path for path in files(copy / "20") if path.name not in OF_ORBAX or path.parent.name != "20"]
    assert {path.relative_to(copy / "20").parts[0] for path in every} == set(ITEMS) | {"manifest.json"} and len(every) > 40
    for path in every:
        with as_it_was(path):
            damage(path)
            with pytest.raises(CheckpointError, match=f"checkpoint 20 in {copy} is damaged") as caught:
                checkpoints.restore(like)
        if path.name != "manifest.json":
            assert f"file {path.relative_to(copy / '20')} " in str(caught.value)
    found = checkpoints.restore(like)
    assert found is not None
    assert_same(found[0], state_at(20))


def test_a_bit_flipped_anywhere_in_the_hashes_is_seen(copy):
    shutil.rmtree(copy / "10")
    checkpoints, like, path = Checkpoints(copy), state_at(0), copy / "20" / "manifest.json"
    for place in np.linspace(0, 1, 100, endpoint=False):
        with as_it_was(path):
            flip(path, place)
            with pytest.raises(CheckpointError, match=r"checkpoint 20 .* is damaged"):
                checkpoints.restore(like)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip, pathlib.Path.unlink])
@pytest.mark.parametrize("name", OF_ORBAX)
def test_what_orbax_adds_for_itself_is_not_needed(copy, name, damage):
    damage(copy / "20" / name)
    found = restored(copy)
    assert found is not None and found[2] == []
    assert_same(found[0], state_at(20))


FOREIGN = {
    "Finder": "20/ema/.DS_Store 20/.DS_Store .DS_Store",
    "exFAT": "20/optimizer/._manifest.ocdbt 20/._manifest.json ._20",
    "Windows": "20/loop/Thumbs.db 20/desktop.ini Thumbs.db",
    "NFS": "20/ema/.nfs000000000001",
    "a file server": "20/@eaDir/ema 20/ema/d/@eaDir/x",
    "a syncing tool": "20/ema/manifest.ocdbt.sync-conflict 20.part \u00b2",
    "a file like those that are read": "20/ema/d/0123",
}
"""What other programs leave in folders that they look into or copy."""


@pytest.mark.parametrize("program", FOREIGN)
def test_what_other_programs_leave_damages_nothing(copy, program):
    for name in FOREIGN[program].split():
        (copy / name).parent.mkdir(exist_ok=True)
        (copy / name).write_bytes(b"x")
    checkpoints = Checkpoints(copy)
    found = checkpoints.restore(state_at(0))
    assert found is not None and found[2] == []
    assert_same(found[0], state_at(20))
    network, step = checkpoints.restore_network(state_at(0).networks.ema)
    assert step == 20
    assert_same(network, state_at(20).networks.ema)
    checkpoints.save(state_at(40, seed=8), {})
    checkpoints.close()
    assert checkpoints.steps()[-1] == 40


ADDED = {
    "an empty folder": lambda folder: (folder / "30").mkdir(),
    "a file with the name of a step": lambda folder: (folder / "30").write_bytes(b"x"),
}


@pytest.mark.parametrize("what", ADDED)
def test_what_was_added_is_named_and_nothing_later_minds_it(copy, what):
    ADDED[what](copy)
    torn = 30
    checkpoints = Checkpoints(copy)
    found = checkpoints.restore(state_at(0))
    assert found is not None
    state, _, (note,) = found
    assert_same(state, state_at(torn - 10))
    assert f"checkpoint {torn} in {copy} is damaged" in note
    for step in (torn, 40):
        checkpoints.save(state_at(step, seed=8), {})
    checkpoints.close()
    found = restored(copy)
    assert found is not None and found[2] == []
    assert_same(found[0], state_at(40, seed=8))


@pytest.mark.parametrize("damage", [pathlib.Path.unlink, lambda path: path.write_bytes(b""), lambda path: path.write_text("{")])
def test_a_checkpoint_whose_hashes_are_damaged_is_passed_over(copy, damage):
    damage(copy / "20" / "manifest.json")
    found = restored(copy)
    assert found is not None and int(found[0].step) == 10
    assert f"checkpoint 20 in {copy} is damaged" in found[2][0]


def test_a_checkpoint_has_its_hashes_as_soon_as_it_has_its_name(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(state_at(1), {}, wait=True)
    assert (tmp_path / "1" / "manifest.json").exists()
    checkpoints.close()


def test_a_run_that_goes_on_from_an_older_checkpoint_saves_the_damaged_step_again(copy):
    truncate(copy / "20" / "ema")
    checkpoints = Checkpoints(copy)
    assert checkpoints.restore(state_at(0)) is not None
    again = state_at(20, seed=8)
    checkpoints.save(again, {"next_index": 20})
    checkpoints.close()
    found = restored(copy)
    assert found is not None and found[2] == []
    assert_same(found[0], again)


def test_damaged_weights_alone_are_refused_with_a_remedy(copy):
    truncate(copy / "20" / "ema")
    like = eqx.filter_eval_shape(Net, jax.random.key(0))
    with pytest.raises(CheckpointError, match=r"checkpoint 20 in .* is damaged .*file ema/.*--step, of 10$"):
        Checkpoints(copy).restore_network(like, "ema")
    shutil.rmtree(copy / "10")
    with pytest.raises(CheckpointError, match=r"no other is there, train again$"):
        Checkpoints(copy).restore_network(like, "ema")
    assert Checkpoints(copy).restore_network(like, "online")[1] == 20


def test_nothing_is_left_if_every_checkpoint_is_damaged(copy):
    flip(copy / "10" / "online")
    shutil.rmtree(copy / "20" / "loop")
    with pytest.raises(CheckpointError) as caught:
        restored(copy)
    message = str(caught.value)
    assert message.index("checkpoint 20") < message.index("checkpoint 10") < message.index("no checkpoint is left")
    assert "--name" in message
    assert Checkpoints(copy).steps() == [10, 20]


def test_a_checkpoint_of_another_network_is_refused(copy):
    with pytest.raises(CheckpointError, match="no checkpoint is left"):
        restored(copy, init_state(lambda key: Net(key, 32), TX, jax.random.key(0)))
    assert Checkpoints(copy).steps() == [10, 20]


def test_a_state_moves_between_meshes(tmp_path):
    """8 devices -> 1 -> 4, whole on each."""
    state = state_at(1)
    for step, devices in ((1, 8), (2, 1), (3, 4)):
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])
        if step > 1:
            found = restored(tmp_path, sharding.replicate(state_at(0, seed=3), mesh))
            assert found is not None
            state = found[0]
        state = sharding.replicate(eqx.tree_at(lambda s: s.step, state, jnp.int32(step)), mesh)
        assert all(len(a.devices()) == devices for a in jax.tree.leaves(eqx.filter(state, eqx.is_array)))
        saved(tmp_path, state)
    assert_same(state, eqx.tree_at(lambda s: s.step, state_at(1), jnp.int32(3)))


FULL_DISK = """
import pathlib, resource, sys
import jax
sys.path.insert(0, sys.argv[1])
from test_checkpoint import CheckpointError, Checkpoints, state_at

states = state_at(30), state_at(40)
for when in ("waiting", "at the next save", "at the end"):
    checkpoints = Checkpoints(pathlib.Path(sys.argv[2]) / when, keep=2)
    # No file may grow past 4 KiB, as on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        checkpoints.save(states[0], {}, wait=when == "waiting")
        if when == "at the next save":
            checkpoints.save(states[1], {})
        checkpoints.wait()
    except CheckpointError as error:
        print(f"{when}: {error}")
        print(f"{when}: {sorted(path.name for path in checkpoints.folder.iterdir())}")
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    # There is room again: the same step can be saved, and the oldest makes way for it.
    checkpoints.save(states[0], {"next_index": 30})
    checkpoints.close()
"""


def test_a_checkpoint_that_cannot_be_written_is_one_sentence_and_leaves_nothing_but_the_one_before(two, tmp_path):
    cases = ("waiting", "at the next save", "at the end")
    for when in cases:
        shutil.copytree(two, tmp_path / when)
    # In a process of its own: the limit would cut off pytest's own output too, if that goes to a file.
    tests = str(pathlib.Path(__file__).parent)
    result = subprocess.run([sys.executable, "-c", FULL_DISK, tests, str(tmp_path)], capture_output=True, text=True)
    lines = [line.split(": ", 1) for line in result.stdout.splitlines()]
    sentences, left = dict(lines[::2]), dict(lines[1::2])
    assert tuple(sentences) == tuple(left) == cases, result.stderr
    assert set(left.values()) == {"['10', '20']"}
    for when, sentence in sentences.items():
        assert f"could not write a checkpoint to {tmp_path / when}" in sentence
        assert "checkpoint 20 is intact" in sentence and "free space on the disk" in sentence
        assert Checkpoints(tmp_path / when).steps() == [20, 30]
        found = restored(tmp_path / when)
        assert found is not None and found[1:] == ({"next_index": 30}, [])
        assert_same(found[0], state_at(30))


def refuse(*_: object, **__: object) -> None:
    raise PermissionError(13, "Permission denied")


FAILING = {
    "making the folder": ("etils.epath.backend._OsPathBackend", "makedirs"),
    "writing the arrays": ("orbax.checkpoint._src.serialization.ocdbt_utils", "merge_ocdbt_per_process_files"),
    "writing the hashes": ("eqx_shortcut.checkpoint", "_hashes"),
    "giving it its name": ("etils.epath.backend._OsPathBackend", "rename"),
}


@pytest.mark.parametrize("where", FAILING)
def test_a_save_that_fails_leaves_no_thread_that_keeps_the_process_alive(copy, monkeypatch, where):
    """Wherever it fails; the next one is written."""
    owner, name = FAILING[where]
    before, checkpoints = set(threading.enumerate()), Checkpoints(copy)
    with monkeypatch.context() as patch:
        patch.setattr(f"{owner}.{name}", refuse)
        for step in (30, 40):
            with pytest.raises(CheckpointError, match=r"Permission denied.*checkpoint 20 is intact"):
                checkpoints.save(state_at(step), {}, wait=True)
    checkpoints.save(state_at(50), {})
    checkpoints.close()
    assert checkpoints.steps()[-2:] == [20, 50]
    left = [thread for thread in set(threading.enumerate()) - before if not thread.daemon and "asyncio" not in thread.name]
    for thread in left:
        thread.join(timeout=5)
    assert not any(thread.is_alive() for thread in left), left


def uploaded(folder: pathlib.Path, store: Objects, name: str) -> str:
    """The address of a copy of a folder in an object store."""
    for path in files(folder):
        store[f"bucket/{name}/{path.relative_to(folder)}"] = path.read_bytes(), 1
    return f"gs://bucket/{name}"


def test_a_state_comes_back_from_an_object_store(store):
    saved("gs://bucket/kept", state_at(10), state_at(20), keep=1)
    assert Checkpoints("gs://bucket/kept").steps() == [20] and Checkpoints.any("gs://bucket/kept")
    found = restored("gs://bucket/kept")
    assert found is not None and found[1:] == ({"next_index": 20}, [])
    assert_same(found[0], state_at(20))


def test_weights_are_read_from_an_object_store(two, store, key):
    checkpoints = Checkpoints(uploaded(two, store, "two"))
    network, step = checkpoints.restore_network(eqx.filter_eval_shape(Net, key), "online", 10)
    assert step == 10
    assert_same(network, state_at(10).networks.online)
    assert not Checkpoints.any("gs://bucket/none")


def test_a_checkpoint_in_an_object_store_is_one_when_its_mark_is_there(two, store):
    """As after a crash while it was written: it is no checkpoint, and the same step is saved again."""
    folder = uploaded(two, store, "cut")
    del store["bucket/cut/20/commit_success.txt"]
    assert Checkpoints(folder).steps() == [10]
    again = state_at(20, seed=8)
    saved(folder, again)
    found = restored(folder)
    assert found is not None and found[2] == []
    assert_same(found[0], again)


@pytest.mark.slow
def test_a_damaged_checkpoint_in_an_object_store_is_passed_over_and_set_aside(two, store):
    folder = uploaded(two, store, "torn")
    name = max((key for key in store if "/torn/20/ema/" in key), key=lambda key: len(store[key][0]))
    store[name] = store[name][0][:-1], 2
    found = restored(folder)
    assert found is not None and int(found[0].step) == 10
    assert f"checkpoint 20 in {folder} is damaged" in found[2][0] and "has changed" in found[2][0]
    assert {key.split("/")[2].split("-")[0] for key in store if "/torn/" in key} == {"10", "damaged"}
