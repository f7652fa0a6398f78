"""The commands as people run them: interrupted and continued, contradicted, refused, and sampled from."""

import json
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
import PIL.Image
import pytest

import kills
import quick
from commands import final_state, in_process, numbers, snapshot, state_like
from eqx_shortcut import settings
from eqx_shortcut.checkpoint import Checkpoints
from eqx_shortcut.experiment.log import read_lines
from scripts import EXPERIMENTS, program

STEPS, EVERY = 60, 10
DIGITS = EXPERIMENTS / "digits.py"
TINY = (
    "--network.hidden 16 --network.depth 1 --network.heads 2 --batch 16 --objective.steps 4 --objective.bootstrap-every 2 "
    f"--steps {STEPS} --checkpoint.every {EVERY} --sample-every 1000 --log-every 1 --quality.count 64 --quality.steps 1 2 "
    "--figures.batches 0"
).split()


def tiny(args: str) -> list[str]:
    """The tiny settings with some changed."""
    blocks = [block.split() for block in f" {' '.join(TINY)}".split(" --")[1:]]
    changed = {name: values for name, *values in [*blocks, *(block.split() for block in f" {args}".split(" --")[1:])]}
    return [part for name, values in changed.items() for part in (f"--{name}", *values)]


def without_rows(line: list[str]) -> list[str]:
    """A command line without --objective.bootstrap-every and its value, which flow matching does not know."""
    at = line.index("--objective.bootstrap-every")
    return line[:at] + line[at + 2 :]


def command(script: str, *args: str) -> list[str]:
    return [sys.executable, *program(script), *args]


def environment() -> dict[str, str]:
    """One device, quick compilation, and every compiled program kept for the processes that follow."""
    return os.environ | {"XLA_FLAGS": quick.FLAGS, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}


def call(cwd: pathlib.Path, *line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, cwd=cwd, env=environment(), capture_output=True, text=True, timeout=240)


def digits(cwd: pathlib.Path, *args: str) -> subprocess.CompletedProcess[str]:
    return call(cwd, *command("digits", *TINY, *args))


def stopped(cwd: pathlib.Path, name: str, after: int, number: signal.Signals) -> subprocess.CompletedProcess[str]:
    """The run, sent the signal once it has recorded so many steps."""
    folder, line = cwd / "runs" / "digits" / name, command("digits", *TINY, "--name", name)
    with subprocess.Popen(line, cwd=cwd, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 200
        while len(read_lines(folder / "metrics.jsonl")) < after and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        run.send_signal(number)
        out, err = run.communicate(timeout=60)
    return subprocess.CompletedProcess(line, run.returncode, out, err)


def assert_same_end(one: pathlib.Path, other: pathlib.Path) -> None:
    """Parameters, average, optimizer, key, counters, position, metrics and table are equal to the bit."""
    (found, position, notes), (others, position_other, notes_other) = final_state(one), final_state(other)
    assert notes == notes_other == [] and position == position_other
    for a, b in zip(found, others, strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def sentence(result: subprocess.CompletedProcess[str]) -> str:
    """The last line on stderr, which there is no traceback above."""
    assert "Traceback" not in result.stderr, result.stderr
    return result.stderr.strip().splitlines()[-1]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("commands")


@pytest.fixture(scope="module")
def whole(base: pathlib.Path) -> tuple[pathlib.Path, str]:
    """An undisturbed run and what it printed; do not change it."""
    result = digits(base, "--name", "whole")
    assert result.returncode == 0, result.stderr
    return base / "runs" / "digits" / "whole", result.stdout


@pytest.fixture
def copy(whole: tuple[pathlib.Path, str], request: pytest.FixtureRequest) -> Iterator[pathlib.Path]:
    """A copy of the undisturbed run beside it, for changing."""
    folder = whole[0].with_name(f"copy-{abs(hash(request.node.name))}")
    shutil.copytree(whole[0], folder)
    yield folder
    shutil.rmtree(folder)


def test_a_run_leaves_its_record_its_pictures_and_a_table(whole):
    folder, out = whole
    assert [line["step"] for line in read_lines(folder / "metrics.jsonl")] == list(range(1, STEPS + 1))
    names = {path.name for path in folder.iterdir()}
    assert names == {"checkpoints", "samples", "config.json", "metrics.jsonl", "evaluation.json", "evaluation.md"} | {
        *("quality.png", "loss.png")
    }
    quality = json.loads((folder / "evaluation.json").read_text())
    assert [row["steps"] for row in quality["results"]] == [1, 2]
    # At most as many real images as samples.
    assert {(row["training step"], row["count"], row["protocol"]["held-out images"]) for row in quality["results"]} == {
        (STEPS, 64, 64)
    }
    for measures in [*(row["measures"] for row in quality["results"]), *quality["floors"].values()]:
        assert f"{measures['frechet']:.4g}" in out and 0 <= measures["accuracy"] <= 1
    assert [path.name for path in (folder / "samples").iterdir()] == [f"step_{STEPS:07d}.png"]
    for name in ("quality.png", "loss.png", f"samples/step_{STEPS:07d}.png"):
        with PIL.Image.open(folder / name) as picture:
            assert picture.width > 300
    assert sorted(int(path.name) for path in (folder / "checkpoints").iterdir()) == [40, 50, 60]


def stop(base: pathlib.Path, name: str, number: signal.Signals, after: int, code: int) -> None:
    """Stops a run by a signal it can hear: it says so in one sentence, and keeps what it has."""
    folder, result = base / "runs" / "digits" / name, stopped(base, name, after, number)
    assert result.returncode == code, result.stderr
    last = sentence(result)
    reached = int(last.split("after step ")[1].split(",")[0])
    assert last == f"stopped by {number.name} after step {reached}, checkpoint written: the same command continues"
    assert after <= reached < STEPS and (folder / "checkpoints" / str(reached)).exists()
    assert read_lines(folder / "metrics.jsonl")[-1]["step"] == reached


def go_on(base: pathlib.Path, name: str, whole: pathlib.Path) -> None:
    """Continues a run to its end, which is that of the undisturbed one."""
    result = digits(base, "--name", name)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout.split("continuing after step ")[1].split()[0]) < STEPS
    assert_same_end(base / "runs" / "digits" / name, whole)


def test_a_run_that_is_stopped_and_continued_ends_as_if_undisturbed(base, whole):
    stop(base, "terminated", signal.SIGTERM, 7, 143)
    go_on(base, "terminated", whole[0])


def test_a_second_start_of_a_run_is_told_who_trains_it_and_leaves_it_alone(tmp_path):
    line, folder = command("digits", *tiny("--name twice --steps 1000000")), tmp_path / "runs" / "digits" / "twice"
    with subprocess.Popen(line, cwd=tmp_path, env=environment(), stderr=subprocess.DEVNULL) as run:
        deadline = time.monotonic() + 200
        while not read_lines(folder / "metrics.jsonl") and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        second = call(tmp_path, *line)
        alive = run.poll() is None
        run.terminate()
        assert run.wait(timeout=60) == 143 and alive
    assert second.returncode == 1, second.stderr
    assert f"twice is being trained by process {run.pid} on " in sentence(second)
    assert sentence(second).endswith("to take over, delete runs/digits/twice/lock.json, which ends it, and repeat")
    assert not (folder / "lock.json").exists() and Checkpoints.any(folder / "checkpoints")


@pytest.mark.slow
def test_a_run_stopped_in_every_way_and_continued_ends_as_if_undisturbed(base, whole):
    name = "stopped"
    stop(base, name, signal.SIGINT, 7, 130)
    stop(base, name, signal.SIGTERM, 23, 143)
    # Killed between the hashes and the name of a checkpoint, and as it trains; elsewhere by test_kills.py.
    result = call(base, *kills.command(DIGITS, [*TINY, "--name", name], base / "rows.txt", kills.INSIDE["all but the name"]))
    assert result.returncode == -signal.SIGKILL and "continuing after step" in result.stdout, result.stderr
    result = stopped(base, name, 44, signal.SIGKILL)
    assert result.returncode == -signal.SIGKILL and "continuing after step" in result.stdout
    go_on(base, name, whole[0])


def test_the_same_command_on_a_finished_run_prints_the_table_again_without_training(base, whole):
    folder, out = whole
    before = snapshot(folder / "checkpoints") | snapshot(folder / "samples") | {"m": (folder / "metrics.jsonl").read_bytes()}
    quality = (folder / "evaluation.json").read_bytes()
    result = digits(base, "--name", "whole")
    assert result.returncode == 0, result.stderr
    _, read, *table = out.splitlines()
    assert "1,400 training and 397 held-out images; 10 classes" in read and table == result.stdout.splitlines()[1:]
    assert f"continuing after step {STEPS}" in result.stdout.splitlines()[0]
    assert before == snapshot(folder / "checkpoints") | snapshot(folder / "samples") | {
        "m": (folder / "metrics.jsonl").read_bytes()
    }
    assert quality == (folder / "evaluation.json").read_bytes()


def test_a_run_whose_newest_checkpoint_is_damaged_goes_on_from_the_one_before_and_says_so(base, whole, copy):
    victim = max((copy / "checkpoints" / "60" / "ema").rglob("*"), key=lambda path: path.stat().st_size * path.is_file())
    data = victim.read_bytes()
    victim.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    result = digits(base, "--name", copy.name)
    assert result.returncode == 0, result.stderr
    note, continuing, *_ = result.stdout.splitlines()
    assert "checkpoint 60 in" in note and "file ema/" in note and note.endswith("continuing from the one before")
    assert continuing.endswith("continuing after step 50")
    assert_same_end(copy, whole[0])


def truncated(raw: bytes) -> bytes | None:
    return raw[: len(raw) // 2]


def flipped(raw: bytes) -> bytes | None:
    at = len(raw) // 2
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def removed(raw: bytes) -> bytes | None:
    return None


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncated, flipped, removed])
def test_damage_to_any_file_of_the_newest_checkpoint_is_named_and_the_one_before_used(base, whole, copy, damage):
    """After the last of them, its hashes, by the command itself, which goes on to the end of an undisturbed run."""
    like, folder = state_like(copy), copy / "checkpoints"
    files = [path for path in sorted((folder / "60").rglob("*")) if path.is_file() and len(path.relative_to(folder).parts) > 2]
    files.append(folder / "60" / "manifest.json")
    assert len(files) > 40
    shutil.copytree(folder / "60", base / "aside", dirs_exist_ok=True)
    shutil.rmtree(folder / "60")
    expected = final_state(copy)[0]

    def damage_one(path: pathlib.Path) -> None:
        shutil.copytree(base / "aside", folder / "60")
        raw = damage(path.read_bytes())
        path.unlink() if raw is None else path.write_bytes(raw)

    for path in files:
        damage_one(path)
        found = Checkpoints(folder).restore(like)
        assert found is not None and int(found[0].step) == 50 and found[1] == {"next_index": 50}
        (note,) = found[2]
        assert "checkpoint 60 in" in note and ("manifest" in path.name or f"file {path.relative_to(folder / '60')} " in note)
        for a, b in zip(numbers(found[0]), expected, strict=True):
            np.testing.assert_array_equal(a, b)
    damage_one(files[-1])
    result = digits(base, "--name", copy.name)
    assert result.returncode == 0, result.stderr
    assert "checkpoint 60 in" in result.stdout and "continuing after step 50" in result.stdout
    assert_same_end(copy, whole[0])


@pytest.mark.slow
def test_a_full_disk_is_a_warning_and_at_the_end_an_error_and_once_there_is_room_the_run_extends(base, copy):
    """Extended by twenty steps under a limit of 44 KiB a file, which pictures stay below, then again without."""
    longer = ["--name", copy.name, "--steps", str(STEPS + 20)]
    result = call(base, "sh", "-c", 'ulimit -f 88 && exec "$@"', "sh", *command("digits", *TINY, *longer))
    assert result.returncode == 1
    # Orbax's threads may write of their own end around the sentence.
    lines = result.stderr.replace("\r", "\n").splitlines()
    (warning,) = [line for line in lines if line.startswith("warning: ")]
    assert f"checkpoint {STEPS} is intact" in warning and warning.endswith("the next checkpoint is tried when it is due")
    (last,) = [line for line in lines if line.startswith("error: ")]
    assert last.startswith(f"error: could not write a checkpoint to {copy}/checkpoints")
    assert f"checkpoint {STEPS} is intact" in last and "free space on the disk" in last
    assert final_state(copy)[1:] == ({"next_index": STEPS}, [])
    result = digits(base, *longer)
    assert result.returncode == 0, result.stderr
    assert f"continuing after step {STEPS}" in result.stdout
    assert [line["step"] for line in read_lines(copy / "metrics.jsonl")] == list(range(1, STEPS + 21))
    assert final_state(copy)[1:] == ({"next_index": STEPS + 20}, [])


def test_pictures_are_drawn_from_the_average_alone(base, copy):
    for checkpoint in (copy / "checkpoints").iterdir():
        for item in checkpoint.iterdir():
            if item.is_dir() and item.name != "ema":
                shutil.rmtree(item)
    out = base / "grid.png"
    result = call(base, *command("sample", str(copy), "--steps", "1", "4", "--count", "5", "--columns", "3", "--out", str(out)))
    assert result.returncode == 0, result.stderr
    assert "1 step: 5 samples, guidance 1.0" in result.stdout and f"weights ema of training step {STEPS}" in result.stdout
    with PIL.Image.open(out) as picture:
        assert picture.size == (8 + 7 * len("4 steps") + 3 * 68, 4 * 68)


REFUSED = {
    "no flow rows": ("digits", "--objective.bootstrap-every 1", "error: --objective.bootstrap-every 1: use 2 or more"),
    "too few rows": ("digits", "--objective.steps 1024", "use a batch of at least 20"),
    "odd steps": ("digits", "--objective.steps 6", "--objective.steps 6 is not a power of two"),
    "heads": ("digits", "--network.heads 3", "--network.hidden 16 is not divisible by heads=3"),
    "patch": ("digits", "--network.patch 3", "an image of 8 x 8 is not divisible by patch=3"),
    "no training": ("digits", "--steps 0", "error: --steps 0: use 1 or more"),
    "negative seed": ("digits", "--seed -1", "error: --seed -1: use 0 or more"),
    "decay": ("digits", "--ema-decay 1.5", "error: --ema-decay 1.5: use 0 to below 1"),
    "no sampler": ("digits", "--quality.steps 0", "error: --quality.steps 0: use 1 or more"),
    "one sample": ("digits", "--quality.count 1", "error: --quality.count 1: use 2 or more"),
    "no samples at once": ("digits", "--quality.batch 0", "error: --quality.batch 0: use 1 or more"),
    "few rows": ("digits", "--objective.dt-bias --objective.steps 32", "8 bootstrap rows for the 5 step sizes"),
    "misspelt": ("digits", "--network.hiden 16", "--network.hidden"),
    "no Fashion-MNIST": ("fashion_mnist", "--data.path nowhere", "no file nowhere/train-images-idx3-ubyte.gz"),
    "no CIFAR-10": ("cifar10", "--data.path nowhere", "no file train-*.parquet in"),
    "no run": ("sample", "nowhere", "nowhere is not a run folder: it holds no config.json"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_input_is_refused_in_one_sentence_before_anything_is_written(case, tmp_path, monkeypatch):
    script, args, words = REFUSED[case]
    monkeypatch.chdir(tmp_path)
    line = args.split() if script == "sample" else tiny(args)
    code, _, err = in_process(script, line)
    assert code in (1, 2)
    assert words in " ".join(err.replace("│", " ").split()) and "Traceback" not in err
    assert list(tmp_path.iterdir()) == []


def test_runs_that_cannot_be_written_are_refused_in_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    code, _, err = in_process("digits", [*TINY, "--runs", str(tmp_path / "file")])
    assert code == 1 and err.strip().startswith("error: ") and str(tmp_path / "file") in err


def test_settings_that_contradict_the_run_are_refused_field_by_field(whole):
    folder, _ = whole
    before = snapshot(folder)
    line, named = [*TINY, "--runs", str(folder.parents[1]), "--name", "whole"], f"--runs {folder.parents[1]} --name whole"
    changed = tiny(f"{named} --batch 32 --optimizer.lr 0.5 --network.depth 2 --checkpoint.keep 2 --steps 70")
    code, _, err = in_process("digits", changed)
    assert code == 1
    for words in ("batch is 32, there it is 16", "optimizer.lr is 0.5, there it is 0.002", "network.depth is 2, there it is 1"):
        assert words in err
    assert f"{folder} holds another run" in err and "--name" in err
    assert "checkpoint" not in err and "steps" not in err
    code, _, err = in_process("digits", ["objective:flow-matching", *without_rows(line)])
    assert code == 1 and "objective.kind is 'eqx_shortcut.objectives:FlowMatching'" in err
    assert before == snapshot(folder)


def test_a_run_folder_of_another_experiment_is_refused(whole, tmp_path):
    folder = tmp_path / "digits" / "other"
    folder.mkdir(parents=True)
    record = settings.read(whole[0] / "config.json") | {"experiment": "cifar10"}
    (folder / "config.json").write_text(json.dumps(record))
    before = snapshot(tmp_path)
    code, _, err = in_process("digits", [*TINY, "--runs", str(tmp_path), "--name", "other"])
    assert code == 1 and "experiment is 'digits', there it is 'cifar10'" in err
    assert before == snapshot(tmp_path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--labels", "3", "12"], "label 12 is not in 0 to 9 (or 10 for none)"),
        (["--step", "7"], "no checkpoint 7 in"),
        (["--out", "nowhere/grid.png"], "nowhere"),
    ],
)
def test_a_sample_that_cannot_be_drawn_is_refused_in_one_sentence(whole, args, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, err = in_process("sample", [str(whole[0]), *args])
    assert code == 1 and err.startswith("error: ") and words in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("digits", ["--network.hidden", "--objective.bootstrap-every", "--quality.count", "--seed", "objective:flow-matching"]),
        ("fashion_mnist", ["--data.path", "quick:", "--network.hidden"]),
        ("cifar10", ["--data.path", "quick:", "--network.hidden"]),
        ("sample", ["--guidance", "--labels", "--class", "--out"]),
    ],
)
def test_help_lists_the_settings(script, words):
    code, out, _ = in_process(script, ["--help"])
    assert code == 0 and all(word in out for word in words)
