"""Training in several processes: the numbers of one, one voice, one stop, and checkpoints that any number continues."""

import pathlib
import signal
import time

import numpy as np
import pytest

from commands import in_process
from eqx_shortcut import settings
from eqx_shortcut.experiment import log
from jobs import finish, start

TINY = "--network.hidden 16 --network.depth 1 --network.heads 2 --network.remat none --batch 16 --objective.steps 4".split()
OPTIMIZER = "--optimizer.schedule constant --ema-decay 0.9 --log-every 1".split()
PLAIN = "--figures.batches 0 --sample-every 1000000 --quality.steps".split()
DRAWN = "--sample-every 2 --figures.batches 1 --figures.times 2 --quality.count 32 --quality.steps 1 2".split()
RUN = pathlib.Path("digits", "shortcut")


def args(runs: pathlib.Path, steps: int, *more: str) -> list[str]:
    return [*TINY, *OPTIMIZER, "--steps", str(steps), "--checkpoint.every", "2", "--runs", str(runs), *more]


def alone(runs: pathlib.Path, steps: int, *more: str) -> list[dict[str, float]]:
    """The records of a run in this process."""
    code, _, err = in_process("digits", args(runs, steps, *more))
    assert code == 0, err
    return log.read_lines(runs / RUN / "metrics.jsonl")


def assert_close(found: list[dict[str, float]], wanted: list[dict[str, float]]) -> None:
    assert [line.keys() for line in found] == [line.keys() for line in wanted]
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(list(a.values()), list(b.values()), rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path):
    """Each with a part of the weights, of the batch and of the checkpoint, in two turns a step."""
    both = finish(start("digits", args(tmp_path / "two", 2, "--mesh.fsdp", "2", "--accumulate", "2", *PLAIN), (), ()))
    assert [code for code, _, _ in both] == [0, 0], both
    assert "as fsdp 2" in both[0][1]
    assert both[1][1:] == ("", "")
    assert_close(log.read_lines(tmp_path / "two" / RUN / "metrics.jsonl"), alone(tmp_path / "one", 2, *PLAIN))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["--mesh.data 8", "--mesh.fsdp 8", "--mesh.data 2 --mesh.fsdp 4", "--mesh.tensor 2"])
def test_two_processes_of_four_devices_are_one_of_eight(tmp_path, mesh):
    """Losses, gradient norms, held-out errors, and distances of the samples at the end; and as many pictures."""
    both = finish(start("digits", args(tmp_path / "two", 5, *mesh.split(), *DRAWN), (), (), devices=4))
    assert [code for code, _, _ in both] == [0, 0], both
    assert both[1][1:] == ("", "")
    [(code, _, err)] = finish(start("digits", args(tmp_path / "one", 5, *mesh.split(), *DRAWN), (), devices=8))
    assert code == 0, err
    assert_close(*(log.read_lines(tmp_path / name / RUN / "metrics.jsonl") for name in ("two", "one")))
    files = [{path.relative_to(tmp_path / name) for path in (tmp_path / name).rglob("*.png")} for name in ("one", "two")]
    assert files[0] == files[1] and len(files[0]) == 11
    one, two = (settings.read(tmp_path / name / RUN / "evaluation.json")["results"] for name in ("one", "two"))
    for a, b in zip(one, two, strict=True):
        assert a.pop("measures") == pytest.approx(b.pop("measures"), rel=1e-5) and a == b


@pytest.mark.slow
def test_what_two_processes_began_one_continues(tmp_path):
    both = finish(start("digits", args(tmp_path / "two", 2, "--mesh.fsdp", "2", *PLAIN), (), ()))
    assert [code for code, _, _ in both] == [0, 0], both
    assert_close(*(alone(tmp_path / name, 4, *PLAIN) for name in ("two", "one")))


@pytest.mark.slow
def test_what_one_process_began_two_continue(tmp_path):
    alone(tmp_path / "both", 2, *PLAIN)
    both = finish(start("digits", args(tmp_path / "both", 4, "--mesh.fsdp", "4", *PLAIN), (), (), devices=4))
    assert [code for code, _, _ in both] == [0, 0], both
    assert_close(log.read_lines(tmp_path / "both" / RUN / "metrics.jsonl"), alone(tmp_path / "one", 4, *PLAIN))


@pytest.mark.slow
def test_a_damaged_checkpoint_is_passed_over_by_all(tmp_path):
    alone(tmp_path, 4, *PLAIN)
    checkpoints = tmp_path / RUN / "checkpoints"
    victim = next(path for path in (checkpoints / "4" / "online").rglob("*") if path.is_file())
    victim.write_bytes(victim.read_bytes()[:-1])
    both = finish(start("digits", args(tmp_path, 6, "--mesh.fsdp", "2", *PLAIN), (), ()))
    assert [code for code, _, _ in both] == [0, 0], both
    assert "checkpoint 4" in both[0][1] and "continuing after step 2" in both[0][1] and both[1][1] == ""
    assert len(list(checkpoints.glob("damaged-4-*"))) == 1 and (checkpoints / "6").exists()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_all_after_the_same_step(tmp_path, number):
    job = start("digits", args(tmp_path, 1_000_000, "--checkpoint.keep", "100000", *PLAIN), (), ())
    wait_for(tmp_path / RUN / "checkpoints" / "2", job)
    job[1].send_signal(number)
    found = finish(job)
    assert [code for code, _, _ in found] == [143, 143], found
    assert "stopped by SIGTERM after step" in found[0][2] and "Traceback" not in found[0][2] + found[1][2]
    last = max(int(path.name) for path in (tmp_path / RUN / "checkpoints").iterdir())
    assert log.read_lines(tmp_path / RUN / "metrics.jsonl")[-1]["step"] == last
    assert f"after step {last}, checkpoint written" in found[0][2]


@pytest.mark.slow
def test_a_process_that_is_killed_takes_the_others_with_it_and_the_run_continues(tmp_path):
    job = start("digits", args(tmp_path, 1_000_000, *PLAIN), (), ())
    wait_for(tmp_path / RUN / "checkpoints" / "2", job)
    job[1].kill()
    assert all(code != 0 for code, _, _ in finish(job, timeout=150))
    left = max(int(path.name) for path in (tmp_path / RUN / "checkpoints").iterdir() if path.name.isdigit())
    both = finish(start("digits", args(tmp_path, left + 3, *PLAIN), (), ()))
    assert [code for code, _, _ in both] == [0, 0], both
    assert f"continuing after step {left}" in both[0][1]


def wait_for(path: pathlib.Path, job: list) -> None:
    """Until a job has made a folder."""
    end = time.monotonic() + 200
    while not path.exists():
        assert time.monotonic() < end and all(process.poll() is None for process in job)
        time.sleep(0.2)
