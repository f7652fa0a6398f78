"""When a checkpoint is due, and a run that goes on where one, or a record, cannot be written."""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import ema, settings, sharding
from eqx_shortcut.checkpoint import CheckpointError, Checkpoints
from eqx_shortcut.data import Digits
from eqx_shortcut.experiment.checks import MAY_CHANGE, check_record
from eqx_shortcut.experiment.config import UNRECORDED, Averages, Checkpointing, Config, Health
from eqx_shortcut.experiment.events import Event, Events
from eqx_shortcut.experiment.records import SpikeWatch
from eqx_shortcut.experiment.run import Data, Run
from eqx_shortcut.experiment.saving import Saver, Tolerance, Tolerant, due, snapshots_of
from eqx_shortcut.objectives import Networks
from eqx_shortcut.snapshots import reconstructed
from eqx_shortcut.train import Diverged, TrainState
from scripts import script

DEFAULT = script("digits").DEFAULT


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (Checkpointing(every=4), [4, 8, 10]),
        (Checkpointing(every=4, milestones=3), [3, 4, 6, 8, 9, 10]),
        (Checkpointing(every=100, minutes=None), [10]),
    ],
)
def test_a_checkpoint_is_due_by_steps_and_after_the_last(when, expected):
    assert [step for step in range(1, 11) if due(when, step, 10, minutes=0.0)] == expected


def test_a_checkpoint_is_due_once_its_minutes_are_over():
    when = Checkpointing(every=1000, minutes=2.5)
    assert [due(when, 1, 1000, minutes=minutes) for minutes in (0, 2.4, 2.5, 9)] == [False, False, True, True]
    assert not due(dataclasses.replace(when, minutes=None), 1, 1000, minutes=1e9)


def state_at(step: int) -> TrainState:
    weights, zero = {"w": jnp.full(3, float(step))}, jnp.int32(0)
    return TrainState(jnp.int32(step), jax.random.key(0), Networks(weights, weights), {"count": zero}, zero, zero)


@dataclasses.dataclass
class Disk(Checkpoints):
    """Checkpoints that cannot be written while it is `full`, which shows when they are settled, or at once."""

    full: bool = False
    late: bool = False
    tried: list = dataclasses.field(default_factory=list)
    there: list = dataclasses.field(default_factory=list)
    pending: int | None = None
    busy: bool = False  # pyright: ignore[reportIncompatibleMethodOverride, reportIncompatibleVariableOverride]

    def save(self, state, position, *, wait=False):
        self.tried.append(int(state.step))
        if self.full and not self.late:
            raise CheckpointError(f"no room for {int(state.step)}")
        self.pending = int(state.step)
        if wait:
            self.wait()

    def wait(self):
        step, self.pending = self.pending, None
        if step is not None and self.full:
            raise CheckpointError(f"no room for {step}")
        self.there += [] if step is None else [step]


def trained(saver: Saver, until: int, each=lambda step: None) -> None:
    for step in range(1, until + 1):
        each(step)
        saver(step, state_at(step), {})


def saver(disk: Disk, when: Checkpointing, until: int, **more) -> Saver:
    return Saver(disk, dict, when, until=until, before=Events(), **more)


@dataclasses.dataclass
class Noted(Event):
    """Notes what is asked of it, and fails to close if it is `broken`."""

    name: str
    notes: list
    broken: bool = False

    def __call__(self, step, state, metrics):
        self.notes.append(f"{self.name} {step}")

    def flush(self):
        self.notes.append(f"{self.name} flushed")

    def close(self):
        self.notes.append(f"{self.name} closed")
        if self.broken:
            raise OSError("no room")


def test_events_come_in_order_and_are_closed_in_the_other_whatever_one_of_them_raises():
    notes: list[str] = []
    events = Events(Noted("a", notes), Noted("b", notes, broken=True), Noted("c", notes))
    events(7, state_at(7), {})
    events.flush()
    with pytest.raises(OSError, match="no room"):
        events.close()
    assert notes == ["a 7", "b 7", "c 7", "a flushed", "b flushed", "c flushed", "c closed", "b closed", "a closed"]


@pytest.mark.parametrize("last", [False, True])
def test_what_comes_before_a_checkpoint_is_flushed_before_it_is_written(last):
    notes: list[str] = []
    disk = Disk(tried=notes)
    save = Saver(disk, dict, Checkpointing(every=2), until=2 if last else 9, before=Noted("records", notes))
    for step in (1, 2):
        save(step, state_at(step), {})
    assert notes == ["records flushed", 2]


@pytest.mark.parametrize("late", [False, True])
def test_a_full_disk_is_a_warning_each_time_and_the_next_checkpoint_is_tried_when_it_is_due(late, capsys):
    disk = Disk(late=late)

    def fill(step):
        disk.full = 4 <= step <= 9

    trained(saver(disk, Checkpointing(every=2), 10), 10, fill)
    assert disk.tried == [2, 4, 6, 8, 10] and disk.there == [2, 10]
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(";")[0] for line in lines] == [f"warning: no room for {n}" for n in (4, 6, 8)]


@pytest.mark.parametrize("late", [False, True])
def test_a_full_disk_at_the_last_step_is_an_error(late):
    disk = Disk(full=True, late=late)
    with pytest.raises(CheckpointError, match="no room for 3"):
        trained(saver(disk, Checkpointing(every=2), 3), 3)
    assert disk.tried == [2, 3]


def test_after_a_failure_the_minutes_count_anew():
    """Else a full disk would be tried at every step."""
    disk, now = Disk(full=True), [0.0]

    def pass_time(step):
        now[0] += 60

    with pytest.raises(CheckpointError):
        trained(saver(disk, Checkpointing(every=100, minutes=3), 10, clock=lambda: now[0]), 10, pass_time)
    assert disk.tried == [3, 6, 9, 10]


def test_a_checkpoint_waits_until_the_state_is_sound():
    disk, sound = Disk(), [True]

    def spoil(step):
        sound[0] = step not in (4, 5, 6)

    trained(saver(disk, Checkpointing(every=4), 9, sound=lambda: sound[0]), 9, spoil)
    assert disk.tried == [7, 8, 9]


def test_a_record_that_cannot_be_written_is_one_warning_until_it_can_be_again(capsys):
    tolerance = Tolerance("metrics to RUN")
    for full in (False, True, True, False, True):
        with tolerance():
            if full:
                raise OSError(28, "No space left on device")
    line = "warning: could not write metrics to RUN (No space left on device): free space on the disk; training goes on"
    assert capsys.readouterr().err.splitlines() == [line] * 2


def test_only_what_cannot_be_written_is_tolerated():
    def broken(step, state, metrics):
        raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        Tolerant(broken, "pictures")(1, state_at(1), {})


# With checkpoints on a disk


def run_of(runs: pathlib.Path, **options: Any) -> Run:
    return Run(
        "digits", dataclasses.replace(DEFAULT, runs=runs, **options), Data(*Digits().build(), False), sharding.make_mesh()
    )


def test_a_signal_right_after_a_checkpoint_writes_no_other_and_is_no_error(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    save = Saver(checkpoints, dict, Checkpointing(every=2), until=9, before=Events())
    for step in (1, 2):
        save(step, state_at(step), {})
    save.last(state_at(2))
    checkpoints.close()
    assert checkpoints.steps() == [2]


def test_snapshots_are_written_at_their_steps_and_again_by_a_run_that_goes_on_from_before(tmp_path):
    run = run_of(tmp_path, steps=11, averages=Averages(sigma_rel=(0.1,), every=4))

    def snapshots(start: int, until: int, shift: float) -> None:
        event = snapshots_of(run, start=start)
        for step in range(start + 1, until + 1):
            state = state_at(step)
            average = ema.PowerAverage({"w": state.networks.ema["w"] + shift}, 0.1)
            event(step, dataclasses.replace(state, averages=(average,)), {})
        event.close()

    snapshots(0, 10, shift=0.0)
    snapshots(5, 11, shift=0.5)
    like = {"w": jax.ShapeDtypeStruct((3,), jnp.float32)}
    for step, expected in ((4, 4.0), (8, 8.5), (11, 11.5)):
        assert float(reconstructed(run.folder, like, 0.1, (0.1,), step)[0]["w"][0]) == expected
    assert sorted(int(path.name) for path in (run.folder / "averages").iterdir()) == [4, 8, 11]


def test_a_run_without_averages_writes_no_snapshots(tmp_path):
    event = snapshots_of(run_of(tmp_path), start=0)
    event(DEFAULT.steps, state_at(DEFAULT.steps), {})
    event.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"sigma_rel": (0.05, 0.4)}, "sigma_rel 0.4 is the width of no average"),
        ({"sigma_rel": (0.05, 0.05)}, "--averages.sigma-rel 0.05 0.05: name each width once"),
        ({"every": 0}, "every=0: use 1 or more"),
    ],
)
def test_averages_that_cannot_be_kept_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        Averages(**settings)


def test_a_spike_ends_a_run_with_its_state_beside_it_and_says_what_to_do(tmp_path):
    run = run_of(tmp_path, health=Health(spike=4, patience=3))
    checkpoints = run.checkpoints()
    checkpoints.save(state_at(20), {}, wait=True)
    watch = SpikeWatch(run, checkpoints, lambda: {"next_index": 34})
    with pytest.raises(Diverged) as caught:
        for step in range(1, 100):
            assert watch.sound() == (step < 33)
            high = jnp.float32(9.0 if step >= 31 else 1.0)
            watch(step, state_at(step), {"loss": high, "grad_norm": high})
    assert str(caught.value) == (
        "loss was 9, more than 4 times its median 1, and out of bounds since step 31 (seen at step 33); checkpoint 20 is the "
        f"newest from before, the state after step 34 is in {run.folder / 'spike'}: the same command with --replay 31 shows "
        "the layers of that step, with --health.spike None it goes on through it"
    )
    assert settings.read(run.folder / "spike" / "config.json") == run.record
    evidence = Checkpoints(run.folder / "spike" / "checkpoints").restore(state_at(0))
    assert evidence is not None and evidence[1] == {"next_index": 34} and float(evidence[0].networks.online["w"][0]) == 34
    assert checkpoints.steps() == [20]


@pytest.mark.parametrize("earlier", [34, 90])
def test_the_state_at_a_spike_takes_the_place_of_that_at_an_earlier_one(tmp_path, earlier):
    """At the same step, as the same command comes to it again, or at a later one."""
    run = run_of(tmp_path, health=Health(spike=4, patience=3))
    there = Checkpoints(run.folder / "spike" / "checkpoints")
    there.save(state_at(earlier), {}, wait=True)
    there.close()
    assert SpikeWatch(run, run.checkpoints(), dict)._evidence(state_at(34)).startswith("the state after step 34 is in ")
    assert Checkpoints(run.folder / "spike" / "checkpoints").steps() == [34]


def test_spikes_are_not_looked_for_unless_asked(tmp_path):
    watch = SpikeWatch(run_of(tmp_path), Checkpoints(tmp_path), dict)
    for step in range(1, 60):
        watch(step, state_at(step), {"loss": jnp.float32(np.nan), "grad_norm": jnp.float32(1e30)})
    assert watch.sound()


# Settings


def test_a_run_of_an_earlier_version_with_its_own_names_continues(tmp_path):
    record = {key: value for key, value in settings.dump(DEFAULT).items() if key not in UNRECORDED}
    old = {key: value for key, value in record.items() if key not in ("checkpoint", "health")}
    (tmp_path / "config.json").write_text(settings.json.dumps(old | {"checkpoint_every": 500, "keep": 3}))
    check_record(tmp_path / "config.json", record)
    with pytest.raises(ValueError, match="batch is 1, there it is 64"):
        check_record(tmp_path / "config.json", record | {"batch": 1})
    assert {"checkpoint", "health"} <= set(MAY_CHANGE) and "replay" not in record
    assert settings.parse(settings.dump(DEFAULT)) == DEFAULT and isinstance(DEFAULT, Config)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (Checkpointing, {"every": 0}, "every=0: use 1 or more"),
        (Checkpointing, {"keep": 0}, "keep=0: use 1 or more"),
        (Checkpointing, {"milestones": 0}, "milestones=0: use 1 or more, or None"),
        (Checkpointing, {"minutes": 0.0}, "minutes=0.0: use more than 0, or None"),
        (Health, {"norms": 0}, "norms=0: use 1 or more, or None"),
        (Health, {"patience": 0}, "patience=0: use 1 or more"),
        (Health, {"spike": 1.0}, "spike=1.0: use more than 1, or None"),
    ],
)
def test_settings_that_make_no_sense_are_refused(kind, change, words):
    with pytest.raises(ValueError, match=f"^{words}$"):
        kind(**change)
