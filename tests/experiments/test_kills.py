"""A run that is killed, wherever that meets it, and started again ends as if nothing had happened.

The short version is in test_commands.py, of a run that is stopped in every way.
"""

import shutil
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from commands import final_state
from eqx_shortcut.experiment.log import read_lines
from kills import INSIDE, TINY, Job, Kill
from scripts import ROOT

EVERY = 8


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """What makes a job one of a network and data that the trainer has never heard of (docs/extending.md)."""
    home = tmp_path_factory.mktemp("foreign")
    for name in ("policy.py", "policy_parts.py"):
        shutil.copy(ROOT / "tests" / "birds" / name, home)
    rng = np.random.default_rng(0)
    rows = {"actions": (64, 16, 2), "position": (64, 2), "velocity": (64, 2)}
    data = home / "demonstrations.npz"
    np.savez(data, **{name: rng.normal(size=shape).astype(np.float32) for name, shape in rows.items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(home)  # where its classes are found when the run is opened
        yield {"script": home / "policy.py", "small": ("--data.path", str(data), "--network.width", "8", *TINY)}


def assert_same_run(job: Job, whole: Job) -> None:
    """Every number of the state, position, metrics and the rows of each step are those of the run that nobody disturbed."""
    (numbers, position, notes), (others, *rest) = final_state(job.folder), final_state(whole.folder)
    assert [position, notes] == rest and notes == []
    for a, b in zip(numbers, others, strict=True):
        np.testing.assert_array_equal(a, b)
    assert (job.folder / "metrics.jsonl").read_bytes() == (whole.folder / "metrics.jsonl").read_bytes()
    assert job.rows() == whole.rows()
    assert all(list(rows) == list(range(1, whole.steps + 1)) for rows in whole.rows())


def kills(seed: int, count: int, processes: int) -> list[Kill]:
    """One at each place of INSIDE, the others at random times: as nothing is compiled yet, as it starts, trains and saves.

    First those for which programs are compiled: what one of them leaves of a program, the next one reads.
    """
    rng, longest = np.random.default_rng(seed), {"starting": 8.0, "training": 0.05, "saving": 0.1}
    first = [*map(Kill, ("keeping a program", "compiling")), *(Kill("cold start", rng.uniform(0, 12)) for _ in range(3))]
    if processes > 1:  # whose programs are not kept on CPUs
        first = first[1:]
    rest = [Kill(place) for place in INSIDE if place not in ("keeping a program", "compiling")]
    for place in rng.choice(list(longest), count - len(first) - len(rest)):
        delay, steps, process = rng.uniform(0, longest[place]), rng.integers(1, 3 * EVERY), rng.integers(processes)
        rest.append(Kill(str(place), float(delay), int(steps), int(process)))
    return [*first, *(rest[i] for i in rng.permutation(len(rest)))]


def test_a_foreign_network_is_killed_and_continued_as_if_undisturbed(tmp_path, foreign):
    whole, job = (Job(tmp_path / name, tmp_path / "cache", 18, EVERY, **foreign) for name in ("whole", "killed"))
    whole.finish()
    job.killed(Kill("all but the name"))
    job.finish()
    assert_same_run(job, whole)


def test_two_processes_train_a_foreign_network_as_one_does(tmp_path, foreign):
    """Sharing its weights, in two turns a step."""
    two = Job(tmp_path / "two", tmp_path / "cache", 3, 3, 2, more=("--mesh.fsdp", "2", "--accumulate", "2"), **foreign)
    one = Job(tmp_path / "one", tmp_path / "cache", 3, 3, **foreign)
    lines = []
    for job in (two, one):
        job.finish()
        lines.append([list(line.values()) for line in read_lines(job.folder / "metrics.jsonl")])
    assert len(lines[0]) == 3
    np.testing.assert_allclose(*lines, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("own", "processes"), [(False, 1), (False, 2), (True, 1), (True, 2)])
def test_forty_kills_change_nothing(tmp_path, foreign, own, processes):
    cache, more = tmp_path / "cache", foreign if own else {}
    whole, job = (Job(tmp_path / name, cache, 480, EVERY, processes, **more) for name in ("whole", "killed"))
    whole.finish()
    for kill in kills(0, 40, processes):
        job.killed(kill)
    job.finish()
    assert_same_run(job, whole)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_of_eight_devices_goes_on_in_other_processes_and_another_mesh(tmp_path, processes):
    """FSDP over all, then data parallel with tensor parallelism: the losses of FSDP throughout."""
    constant, losses = ("--optimizer.schedule", "constant"), []
    fsdp, mixed = (*constant, "--mesh.fsdp", "8"), (*constant, "--mesh.data", "4", "--mesh.tensor", "2")
    for name, count, mesh in (("whole", 1, fsdp), ("moved", processes, mixed)):
        Job(tmp_path / name, tmp_path / "cache", 4, 4, devices=8, more=fsdp).finish()
        job = Job(tmp_path / name, tmp_path / "cache", 8, 4, count, 8 // count, mesh)
        job.finish()
        losses.append([line["loss"] for line in read_lines(job.folder / "metrics.jsonl")])
    assert len(losses[0]) == 8
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-5)
