"""How long until a command answers: `--help`, the import of the library, and the first training step of digits?

The first step is taken with a cold and with a warm cache of compiled programs, and goes on to its pictures and checkpoint.
"""

import os
import pathlib
import subprocess
import sys

import pytest

EXPERIMENTS = pathlib.Path(__file__).parents[1] / "experiments"


def python(*arguments: str, **environment: str) -> None:
    path = os.pathsep.join([str(EXPERIMENTS.parent), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | environment | {"PYTHONPATH": path}
    subprocess.run([sys.executable, *arguments], check=True, capture_output=True, env=environment)


@pytest.mark.parametrize("script", ["digits", "celeba", "sample", "evaluate"])
def test_help(benchmark, script: str) -> None:
    benchmark.pedantic(python, (str(EXPERIMENTS / f"{script}.py"), "--help"), rounds=5, warmup_rounds=1)


def test_import(benchmark) -> None:
    benchmark.pedantic(python, ("-c", "import eqx_shortcut"), rounds=5, warmup_rounds=1)


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_first_step(benchmark, cache: str, tmp_path: pathlib.Path) -> None:
    line = "--steps 1 --quality.steps --figures.batches 0 --sample-every 9 --checkpoint.every 9".split()
    kept = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "xla")}

    def run(name: str) -> None:
        python(str(EXPERIMENTS / "digits.py"), *line, "--runs", str(tmp_path), "--name", name, **kept)

    if cache == "warm":
        run("before")
    benchmark.pedantic(run, (cache,), rounds=1)
