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


pytestmark = pytest.mark.benchmark(group="until a command answers")


@pytest.mark.parametrize(
    "arguments", [(str(EXPERIMENTS / "celeba.py"),), ("-m", "eqx_shortcut", "sample")], ids=["celeba", "sample"]
)
def test_help(benchmark, arguments: tuple[str, ...]) -> None:
    benchmark.pedantic(python, (*arguments, "--help"), rounds=3, warmup_rounds=1)


def test_import(benchmark) -> None:
    benchmark.pedantic(python, ("-c", "import eqx_shortcut"), rounds=3, warmup_rounds=1)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where runs and compiled programs are kept, empty before the first run."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("cache", ["cold", "warm"])
def test_first_step(benchmark, cache: str, folder: pathlib.Path) -> None:
    line = "--steps 1 --quality.steps --figures.batches 0 --sample-every 9 --checkpoint.every 9".split()
    kept = {"JAX_COMPILATION_CACHE_DIR": str(folder / "xla")}

    def run(name: str) -> None:
        python(str(EXPERIMENTS / "digits.py"), *line, "--runs", str(folder), "--name", name, **kept)

    if cache == "warm" and not (folder / "xla").exists():
        run("before")
    benchmark.pedantic(run, (cache,), rounds=1)
