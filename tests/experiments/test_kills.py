"""A run that is killed, wherever that meets it, and started again ends as if nothing had happened.

The short version is in test_commands.py, of a run that is stopped in every way.
"""

import numpy as np
import pytest

from commands import final_state
from eqx_shortcut.experiment.log import read_lines
from kills import INSIDE, Job, Kill

EVERY = 8


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


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("processes", [1, 2])
def test_forty_kills_change_nothing(tmp_path, processes):
    cache = tmp_path / "cache"
    whole, job = (Job(tmp_path / name, cache, 480, EVERY, processes) for name in ("whole", "killed"))
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
