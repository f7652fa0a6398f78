"""birds.py, a user's script with a network of its own, from an installed wheel outside of the clone."""

import os
import pathlib
import shutil
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import PIL.Image
import pytest

import quick

ROOT = pathlib.Path(__file__).parents[1]
OPTIONS = (
    "--network.width 4 --data.size 8 --data.held-out 0.2 --batch 8 --objective.steps 4 --objective.bootstrap-every 4 "
    "--checkpoint.every 2 --sample-every 1000 --log-every 1 --figures.batches 0 --quality.steps"
).split()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> pathlib.Path:
    """The package's wheel."""
    folder = tmp_path_factory.mktemp("wheel")
    line = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(folder), str(ROOT)]
    done = subprocess.run(line, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no wheel can be built here: {done.stderr.strip().splitlines()[-1:]}")
    return next(folder.glob("*.whl"))


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    """A user's folder: script, network, photos of two kinds of birds."""
    for name in ("birds.py", "birds_network.py"):
        shutil.copy(ROOT / "tests" / "birds" / name, tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (40, 10, 9, 3), np.uint8)
    for i, image in enumerate(pixels):
        path = tmp_path / "photos" / ("robin", "wren")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(image).save(path)
    return tmp_path


def finished(folder: pathlib.Path) -> list[int]:
    """Steps of the checkpoints that have their name, which one that is being written has not."""
    names = [path.parent.name for path in (folder / "checkpoints").glob("*/manifest.json")]
    return [int(name) for name in names if name.isdigit()]


def trained_killed_continued_and_sampled(place: pathlib.Path, python: str, env: dict[str, str]) -> None:
    """What its docstring promises, in the user's folder."""

    def call(*line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run([python, *line], cwd=place, env=env, capture_output=True, text=True, timeout=240)

    said = call("birds.py", "--help")
    assert said.returncode == 0 and "--network.width" in said.stdout and "data:parquet" in said.stdout, said.stderr
    folder = place / "runs" / "birds" / "shortcut"
    line = [python, "birds.py", *OPTIONS, "--steps", "100000"]
    with subprocess.Popen(line, cwd=place, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 200
        while not finished(folder) and run.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert run.poll() is None, run.communicate()[1]
        run.send_signal(signal.SIGKILL)
    reached = max(finished(folder))
    done = call("birds.py", *OPTIONS, "--steps", str(reached + 2))
    assert done.returncode == 0 and "continuing after step" in done.stdout, done.stderr
    sampled = ["sample", str(folder), "--steps", "1", "--count", "2", "--out", str(place / "grid.png")]
    done = call("-m", "eqx_shortcut", *sampled)
    assert done.returncode == 0 and f"training step {reached + 2}" in done.stdout, done.stderr
    with PIL.Image.open(place / "grid.png") as picture:
        assert picture.mode == "RGB"
    judged = ["evaluate", str(folder), "--features", "pixels", "--steps", "1", "--count", "8"]
    done = call("-m", "eqx_shortcut", *judged)
    assert done.returncode == 0 and "| 1 " in done.stdout, done.stderr
    (place / "birds_network.py").unlink()
    done = call("-m", "eqx_shortcut", *sampled)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert "birds_network:UNetConfig, which cannot be imported here" in done.stderr and "PYTHONPATH" in done.stderr


def test_from_the_wheel_alone(wheel, place, tmp_path):
    target = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as packed:  # as pip would, but for bytecode; the slow test below has it installed by pip
        packed.extractall(target)
    assert not [path for path in target.iterdir() if path.name in ("tests", "experiments", "benchmarks")]
    env = {"XLA_FLAGS": quick.FLAGS, "PYTHONPATH": str(target)}
    trained_killed_continued_and_sampled(place, sys.executable, os.environ | env)


@pytest.mark.slow
def test_from_the_wheel_in_an_environment_of_its_own(wheel, place, tmp_path):
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "env")], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    subprocess.run([python, "-m", "pip", "install", "-q", str(wheel)], check=True, capture_output=True)
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XLA_FLAGS")}
    trained_killed_continued_and_sampled(place, python, env)
