"""benchmarks/gpu.sh from start to end on tiny networks, killed in the middle and begun again.

In the environment of the machine that it is for: REHEARSAL_PYTHON names its interpreter (by default this one), REHEARSAL_WHEELS
the folder of wheels of what that lacks (none), REHEARSAL_ORIGINAL a checkout of kvfrans/shortcut-models.
"""

import io
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from scripts import script

gpu = script("gpu")
GPU_SH = pathlib.Path(__file__).parents[1] / "benchmarks" / "gpu.sh"
SMALL = "--network.hidden 32 --network.depth 2 --network.heads 2 --network.patch 8 --batch 32"
FEW = "--quality.count 16 --quality.steps 1 --figures.batches 1 --sample-every 4"


def pictures(folder: pathlib.Path) -> pathlib.Path:
    """A few random images as Hugging Face has CIFAR-10."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for part, count in (("train", 64), ("test", 32)):
        files = [io.BytesIO() for _ in range(count)]
        for file in files:
            Image.fromarray(rng.integers(0, 256, (32, 32, 3), np.uint8)).save(file, "PNG")
        images = [{"bytes": file.getvalue(), "path": None} for file in files]
        pq.write_table(pa.table({"img": images, "label": [i % 10 for i in range(count)]}), folder / f"{part}-0.parquet")
    return folder


@pytest.fixture
def command(tmp_path: pathlib.Path) -> list[str]:
    wheels = os.environ.get("REHEARSAL_WHEELS", str(tmp_path))
    original = os.environ.get("REHEARSAL_ORIGINAL")
    line = ["bash", str(GPU_SH), wheels, str(tmp_path / "out"), "3000", "--tiny"]
    return line if original is None else [*line, "--original", original]


@pytest.fixture
def environment(tmp_path: pathlib.Path) -> dict[str, str]:
    told = {"PYTHON": os.environ.get("REHEARSAL_PYTHON", sys.executable), "CIFAR10": str(pictures(tmp_path / "cifar10"))}
    told |= {"CIFAR10_STEPS": "4", "CIFAR10_MORE": f"{SMALL} {FEW}", "JAX_PLATFORMS": "cpu"}
    return os.environ | told | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}


def measured(out: pathlib.Path) -> dict[str, dict[str, Any]]:
    return {path.stem: json.loads(path.read_text()) for path in out.glob("*.json")}


@pytest.mark.slow
@pytest.mark.timeout(7000)
def test_the_whole_list_is_measured_but_for_what_a_kill_took(tmp_path, command, environment):
    out = tmp_path / "out"
    first = subprocess.Popen(command, env=environment, start_new_session=True)
    while len(measured(out)) < 5:
        assert first.poll() is None
        time.sleep(0.5)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    subprocess.run(command, env=environment, check=True, timeout=3100)
    found = measured(out)
    lost = {name for name, row in found.items() if row.get("error") == "did not finish"}
    failed = {name: row["error"] for name, row in found.items() if "error" in row and name not in lost}
    assert set(found) == set(gpu.MEASUREMENTS) and len(lost) <= 1
    assert set(failed) <= ({"b2-original-256"} if "--original" not in command else set()), failed
    table = json.loads((out / "cifar10" / "table.json").read_text())
    assert set(table["runs"]) == {"flow-matching-0", "shortcut-0", "mean-flow-0", "improved-mean-flow-0"}
