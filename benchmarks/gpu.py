"""Throughput of training on one device: shortcut and flow matching, the largest batch that fits, latents from a cache.

    python benchmarks/gpu.py                      # B/2 and XL/2, on a GPU or TPU; writes benchmarks/results/CHIP.json
    python benchmarks/gpu.py --tiny --out FILE    # a rehearsal of a minute, also on CPU

A step is a training run's own: latents are sampled from stored moments and mirrored, then loss, gradient, AdamW and average.
MFU counts three forwards of the batch and the forwards of the bootstrap rows, against the chip's dense bfloat16 peak.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import pathlib
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from eqx_shortcut import flops
from eqx_shortcut.data import Latents, batches, prepare, read_latents
from eqx_shortcut.data.latents import MANIFEST, Shard
from eqx_shortcut.models.dit import DiTConfig, preset
from eqx_shortcut.objectives import FlowMatching, Objective, Shortcut
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import Step, TrainState, init_state, make_step

SHAPE, CLASSES, COUNT = (32, 32, 4), 1000, 4096
OBJECTIVES: dict[str, Objective] = {"shortcut": Shortcut(), "flow-matching": FlowMatching()}
TX = AdamW().build(1000)


def cache(folder: pathlib.Path) -> Latents:
    """Random moments of `COUNT` latents and of their mirror images, as a cache on disk."""
    (folder / "train").mkdir()
    rng = np.random.default_rng(0)
    moments = rng.normal(size=(COUNT, 2, 2, *SHAPE)).astype(np.float16)
    Shard(folder / "train", 0).write(moments, rng.integers(0, CLASSES, COUNT).astype(np.int32))
    manifest = {
        "moments": moments.shape[1:],
        "shard": COUNT,
        "classes": CLASSES,
        "autoencoder": {"scale": 0.18215, "shift": 0.0},
        "parts": {"train": {"count": COUNT, "shards": [""]}},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest))
    return read_latents(folder, "train")


def begun(config: DiTConfig, objective: Objective, data: Latents) -> tuple[Step, TrainState]:
    """A training step and the state before the first one."""
    step = make_step(objective, TX, prepare=prepare(data, mirror=True), ema_decay=0.999, steps=1000)
    return step, init_state(lambda key: config.build(SHAPE, CLASSES, key=key), TX, jax.random.key(0), null=CLASSES)


def seconds(step: Step, state: TrainState, loader: Iterator[Any], steps: int) -> list[float]:
    """Of a step, by block of a tenth of `steps`, within which nothing waits for the device; three steps more come first."""
    blocks, block = [], max(1, steps // 10)
    for _ in range(3):
        state, metrics = step(state, next(loader))
    jax.block_until_ready(metrics)
    for _ in tqdm(range(0, steps, block), unit="block", leave=False):
        start = time.perf_counter()
        for _ in range(block):
            state, metrics = step(state, next(loader))
        jax.block_until_ready(metrics)
        blocks.append((time.perf_counter() - start) / block)
    return blocks


def measured(config: DiTConfig, objective: Objective, data: Latents, batch: int, steps: int) -> dict[str, Any]:
    """Throughput at this batch. Raises jax.errors.JaxRuntimeError if it does not fit."""
    loader = batches(data, batch, seed=0, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))
    step, state = begun(config, objective, data)
    work = flops.of_step(objective, state.networks, batch, SHAPE)
    blocks = seconds(step, state, loader, steps)
    loader.close()
    low, middle, high = (float(x) for x in np.percentile(blocks, [25, 50, 75]))
    peak = flops.peak(jax.devices()[0])
    return {
        "batch": batch,
        "seconds_a_step_quartiles": [low, middle, high],
        "images_a_second": batch / middle,
        "model_tflops": work / middle / 1e12,
        "mfu": None if peak is None else work / middle / peak,
        "memory": jax.devices()[0].memory_stats(),
    }


def largest(config: DiTConfig, objective: Objective, data: Latents, first: int, steps: int) -> dict[str, Any]:
    """The measurement at the largest power of two, `first` or below, that fits the device."""
    batch = first
    while True:
        try:
            return measured(config, objective, data, batch, steps)
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                raise
            jax.clear_caches()
            batch //= 2


def surroundings() -> dict[str, Any]:
    """Chip, driver, versions and command."""
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = None
    names = ("eqx_shortcut", "jax", "jaxlib", "equinox", "optax")
    versions = {name: importlib.metadata.version(name) for name in names if _installed(name)}
    chip = jax.devices()[0].device_kind
    return {"chip": chip, "driver": driver, "versions": versions, "command": " ".join(sys.argv)}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny network and three steps, to rehearse")
    parser.add_argument("--sizes", nargs="+", default=["B/2", "XL/2"])
    parser.add_argument("--batch", type=int, default=1024, help="the first batch to try, a power of two")
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--remat", help="instead of the default of DiTConfig")
    parser.add_argument("--out", type=pathlib.Path, help="by default benchmarks/results/CHIP.json")
    given = parser.parse_args()
    sizes, batch, steps = (["tiny"], 64, 3) if given.tiny else (given.sizes, given.batch, given.steps)
    options = {} if given.remat is None else {"remat": given.remat}
    found, rows = surroundings(), []
    with tempfile.TemporaryDirectory() as folder:
        data = cache(pathlib.Path(folder))
        for size in sizes:
            for name, objective in OBJECTIVES.items():
                config = dataclasses.replace(preset(size), **options)
                row = {"size": size, "objective": name, "remat": config.remat, "dtype": np.dtype(config.dtype()).name}
                rows.append(row | largest(config, objective, data, batch, steps))
                print(json.dumps(rows[-1]), flush=True)
    out = given.out or pathlib.Path(__file__).parent / "results" / f"{re.sub(r'[^A-Za-z0-9]+', '-', found['chip'])}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(found | {"results": rows}, indent=1) + "\n")
    print(out)


if __name__ == "__main__":
    main()
