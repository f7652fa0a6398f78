"""Measurements of one GPU: a list of named measurements, each written to a file of its own as soon as it is done.

    python benchmarks/gpu.py                                  # all; what benchmarks/results/CHIP has is not done again
    python benchmarks/gpu.py --only ceilings b2-shortcut-256  # some
    python benchmarks/gpu.py --limit 500                      # ends by itself before 500 seconds have passed
    python benchmarks/gpu.py --timed                          # all but the checks of objectives, which need no idle machine
    python benchmarks/gpu.py --tiny --out FOLDER              # a rehearsal of minutes, also on CPU

A training step is a run's own: latents are sampled from stored moments and mirrored, then loss, gradient, AdamW and average.
MFU is the model's operations, three forwards of each row and those of the targets, over the chip's dense bfloat16 peak by its
data sheet, and over the rate of one large matrix product measured here. Compiling is reported apart. `gpu_table.py` makes the
page of tables, `gpu.sh` runs the list on a machine without a network.
"""

import argparse
import contextlib
import dataclasses
import functools
import gc
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from eqx_shortcut import flops, samplers
from eqx_shortcut.data import Latents, batches, prepare, read_latents
from eqx_shortcut.data.latents import MANIFEST, Shard
from eqx_shortcut.models import NetworkField
from eqx_shortcut.models.attention import attend
from eqx_shortcut.models.dit import DiTConfig, preset
from eqx_shortcut.models.fused import fused_attend
from eqx_shortcut.objectives import OBJECTIVES, FlowMatching, MeanFlow, Objective, Shortcut
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import init_state, make_update

SHAPE, CLASSES, COUNT = (32, 32, 4), 1000, 4096
TX = AdamW().build(1000)
Found = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Lab:
    """Shared by all measurements: the sizes of a rehearsal or of the real thing, the cache of latents, a checkout."""

    tiny: bool
    folder: pathlib.Path
    original: pathlib.Path | None = None

    def config(self, size: str, **options: Any) -> DiTConfig:
        """The network of that name, the tiny one in a rehearsal."""
        small = DiTConfig(hidden=32, depth=2, heads=2, patch=8) if self.tiny else preset(size)
        if self.tiny and jax.default_backend() == "cpu":
            options = options | {"attention": "xla"}
        return dataclasses.replace(small, **options)

    def batch(self, batch: int) -> int:
        """The batch, 64 rows in a rehearsal."""
        return 64 if self.tiny else batch

    @functools.cached_property
    def latents(self) -> Latents:
        """Random moments of `COUNT` latents and of their mirror images, as a cache on disk."""
        (self.folder / "train").mkdir()
        rng = np.random.default_rng(0)
        moments = rng.normal(size=(COUNT, 2, 2, *SHAPE)).astype(np.float16)
        Shard(self.folder / "train", 0).write(moments, rng.integers(0, CLASSES, COUNT).astype(np.int32))
        manifest = {
            "moments": moments.shape[1:],
            "shard": COUNT,
            "classes": CLASSES,
            "autoencoder": {"scale": 0.18215, "shift": 0.0},
            "parts": {"train": {"count": COUNT, "shards": [""]}},
        }
        (self.folder / MANIFEST).write_text(json.dumps(manifest))
        return read_latents(self.folder, "train")

    def loader(self, batch: int) -> Any:
        """Batches of latents on the device."""
        return batches(self.latents, batch, seed=0, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0]))


@dataclasses.dataclass(frozen=True)
class Training:
    """Throughput of a training step; `halve` tries half of the batch where one does not fit."""

    size: str
    objective: Objective
    batch: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    halve: bool = False
    profile: bool = False

    def __call__(self, lab: Lab) -> Found:
        batch = lab.batch(self.batch)
        while True:
            try:
                return self._measured(lab, batch)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or not self.halve or batch == 1:
                    raise
            gc.collect()
            batch //= 2

    def _measured(self, lab: Lab, batch: int) -> Found:
        config = lab.config(self.size, **self.options)
        loader = lab.loader(batch)
        with contextlib.closing(loader):
            arrays, static = state(config, self.objective)
            work = operations(config, self.objective, batch)
            program, costs = compiled(self.objective, lab.latents, arrays, static, next(loader))
            arrays, blocks = seconds(program, arrays, loader, steps=3 if lab.tiny else 30)
            kernels = profiled(program, arrays, next(loader), lab.folder) if self.profile else {}
        names = {"size": self.size, "objective": type(self.objective).__name__, "remat": config.remat}
        names |= {"attention": config.attention, "unroll": config.unroll, "dtype": np.dtype(config.dtype()).name}
        return names | {"batch": batch} | costs | rates(blocks, batch, work) | kernels


def rates(blocks: list[float], batch: int, work: float) -> Found:
    """Seconds a step, images a second and the share of the peak."""
    low, middle, high = (float(x) for x in np.percentile(blocks, [25, 50, 75]))
    peak = flops.peak(jax.devices()[0])
    return {
        "seconds_a_step_quartiles": [low, middle, high],
        "images_a_second": batch / middle,
        "model_tflop_a_step": work / 1e12,
        "model_tflops": work / middle / 1e12,
        "mfu": None if peak is None else work / middle / peak,
    }


def state(config: DiTConfig, objective: Objective) -> tuple[PyTree, PyTree]:
    """Arrays and the rest of a state to train from: weights at random, at once, since initialising takes long to compile."""
    shapes = eqx.filter_eval_shape(
        lambda key: init_state(lambda k: config.build(SHAPE, CLASSES, key=k), TX, key, null=CLASSES), jax.random.key(0)
    )
    arrays, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    filled = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), eqx.tree_at(lambda s: s.key, arrays, None))
    key = jax.random.key(0, impl="unsafe_rbg")
    draw = jax.jit(lambda leaf: 0.02 * jax.random.normal(key, leaf.shape))
    weights = jax.tree.map(draw, (filled.networks.online, filled.networks.ema))
    filled = eqx.tree_at(lambda s: (s.networks.online, s.networks.ema), filled, weights)
    return eqx.tree_at(lambda s: s.key, filled, jax.random.key(0), is_leaf=lambda leaf: leaf is None), static


def operations(config: DiTConfig, objective: Objective, batch: int) -> int:
    """The model's operations of a step; cuDNN's attention has no tangent to count, and as many operations as XLA's."""
    counted = dataclasses.replace(config, attention="xla")
    shapes = eqx.filter_eval_shape(
        lambda key: init_state(lambda k: counted.build(SHAPE, CLASSES, key=k), TX, key, null=CLASSES), jax.random.key(0)
    )
    found = []
    eqx.filter_eval_shape(lambda networks: found.append(flops.of_step(objective, networks, batch, SHAPE)), shapes.networks)
    return found[0]


def compiled(objective: Objective, data: Latents, arrays: PyTree, static: PyTree, raw: PyTree) -> tuple[Any, Found]:
    """The step as a program that consumes its state, with the seconds that it took to make and the memory it needs."""
    update = make_update(objective, TX, ema_decay=0.999, steps=1000)
    ready = prepare(data, mirror=True)

    def step(arrays, raw):
        new, metrics = update((raw, ready), eqx.combine(arrays, static))
        return eqx.filter(new, eqx.is_array), metrics

    start = time.perf_counter()
    lowered = jax.jit(step, donate_argnums=0).lower(arrays, raw)
    middle = time.perf_counter()
    program = lowered.compile()
    memory = program.memory_analysis()
    assert memory is not None
    return program, {
        "lower_s": middle - start,
        "compile_s": time.perf_counter() - middle,
        "temporaries_gib": memory.temp_size_in_bytes / 2**30,
        "arguments_gib": memory.argument_size_in_bytes / 2**30,
    }


def seconds(program: Any, arrays: PyTree, loader: Iterator[Any], steps: int) -> tuple[PyTree, list[float]]:
    """The state after the steps, and seconds a step by block of a tenth of them, within which nothing waits for the device."""
    blocks, block = [], max(1, steps // 10)
    for _ in range(3):
        arrays, metrics = program(arrays, next(loader))
    jax.block_until_ready(metrics)
    for _ in range(0, steps, block):
        start = time.perf_counter()
        for _ in range(block):
            arrays, metrics = program(arrays, next(loader))
        jax.block_until_ready(metrics)
        blocks.append((time.perf_counter() - start) / block)
    if not np.isfinite(float(metrics["loss"])):
        raise FloatingPointError(f"loss={metrics['loss']} after {steps} steps: the measured step computes no numbers")
    return arrays, blocks


def profiled(program: Any, arrays: PyTree, raw: PyTree, folder: pathlib.Path, steps: int = 3) -> Found:
    """Milliseconds a step by kernel, the longest first, as the device's own trace has them."""
    folder = pathlib.Path(tempfile.mkdtemp(dir=folder))
    with jax.profiler.trace(str(folder)):
        for _ in range(steps):
            arrays, metrics = program(arrays, raw)
        jax.block_until_ready(metrics)
    total: dict[str, float] = defaultdict(float)
    calls: dict[str, int] = defaultdict(int)
    for path in folder.rglob("*.xplane.pb"):
        for plane in jax.profiler.ProfileData.from_file(str(path)).planes:
            if "GPU" not in plane.name:
                continue
            for line in plane.lines:
                if "Stream" in line.name:
                    for event in line.events:
                        total[event.name] += event.duration_ns / 1e6 / steps
                        calls[event.name] += 1
    if not total:
        return {"trace": "holds no kernels of a GPU"}
    longest = sorted(total, key=lambda name: -total[name])
    rows = [[name[:160], round(total[name], 3), calls[name] / steps] for name in longest[:60]]
    return {"kernels_ms_and_calls_a_step": rows, "kernels_ms": sum(total.values())}


def timed(call: Callable[[], Any], rounds: int = 10, calls: int = 1) -> float:
    """Median seconds of a call, the first two rounds not counted; within a round nothing waits for the device."""
    seconds = []
    for _ in range(rounds + 2):
        start = time.perf_counter()
        for _ in range(calls):
            last = call()
        jax.block_until_ready(last)
        seconds.append((time.perf_counter() - start) / calls)
    return float(np.median(seconds[2:]))


def ceilings(lab: Lab) -> Found:
    """The rate of one large bfloat16 product, and of a copy, bytes read and written both counted."""
    side, megabytes = (256, 1) if lab.tiny else (8192, 2048)
    k_a, k_b = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (side, side), jnp.bfloat16) for key in (k_a, k_b))
    product = jax.jit(jnp.matmul)
    large = jax.random.normal(k_a, (megabytes * 2**18,))
    copy, draw = jax.jit(lambda x: x + 1), jax.jit(lambda key: jax.random.normal(key, large.shape))
    return {
        "matmul_tflops": 2 * side**3 / timed(lambda: product(a, b), calls=20) / 1e12,
        "copy_tb_s": 2 * large.nbytes / timed(lambda: copy(large), calls=5) / 1e12,
        "normals_drawn_g_s": large.size / timed(lambda: draw(k_b), calls=5) / 1e9,
        "small_call_us": 1e6 * timed(lambda: product(a[:128, :128], b[:128, :128])),
    }


def heads_first(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
    """cuDNN's attention in the order of axes of `attend`."""
    return fused_attend(*(a.transpose(1, 0, 2) for a in (q, k, v))).transpose(1, 0, 2)


def attention(lab: Lab) -> Found:
    """Milliseconds of XLA's and of cuDNN's attention for B/2 and XL/2 at batch 256, and their errors against float32."""
    shapes = {"tiny": (2, 2, 16, 16)} if lab.tiny else {"B/2": (256, 12, 256, 64), "XL/2": (256, 16, 256, 72)}
    kinds = {"xla": attend} | ({} if jax.default_backend() == "cpu" else {"cudnn": heads_first})
    return {
        f"{size} {name}": value
        for size, shape in shapes.items()
        for kind, one in kinds.items()
        for name, value in _attention(kind, jax.vmap(one), shape).items()
    }


def _attention(kind: str, attention: Any, shape: tuple[int, ...]) -> dict[str, float]:
    qkv = [jax.random.normal(key, shape, jnp.bfloat16) for key in jax.random.split(jax.random.key(0), 3)]
    qkv[0] = qkv[0] / shape[-1] ** 0.5
    few = [a[:4] for a in qkv]
    with jax.default_matmul_precision("highest"):
        exact = [call(*(a.astype(jnp.float32) for a in few)) for call in _passes(jax.vmap(attend)).values()]
    found = {}
    for (name, call), answer in zip(_passes(attention).items(), exact, strict=True):
        found[f"{kind} {name} ms"] = 1e3 * timed(functools.partial(jax.jit(call), *qkv), calls=10)
        pairs = zip(jax.tree.leaves(call(*few)), jax.tree.leaves(answer), strict=True)
        apart = max(float(jnp.linalg.norm(a.astype(jnp.float32) - b) / jnp.linalg.norm(b)) for a, b in pairs)
        found[f"{kind} {name}, relative error"] = apart
    return found


def _passes(attention: Any) -> dict[str, Callable[..., Any]]:
    """Attention itself, its gradient, and its value with a tangent."""
    return {
        "forward": attention,
        "forward and backward": jax.grad(lambda *qkv: (attention(*qkv).astype(jnp.float32) ** 2).sum(), argnums=(0, 1, 2)),
        "forward and tangent": lambda *qkv: jax.jvp(attention, qkv, qkv[::-1]),
    }


@dataclasses.dataclass(frozen=True)
class Sampling:
    """Seconds and images a second of the sampler, one program for every number of steps."""

    size: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __call__(self, lab: Lab) -> Found:
        config, batch = lab.config(self.size, **self.options), lab.batch(64)
        network = state(config, FlowMatching())
        network = eqx.combine(network[0].networks.online, network[1].networks.online)
        noise, labels = jax.random.normal(jax.random.key(1), (batch, *SHAPE)), jnp.arange(batch)

        @eqx.filter_jit
        def sample(network, noise, steps):
            return samplers.euler(NetworkField(network), noise, labels, steps=steps)

        found: Found = {"size": self.size, "batch": batch, "attention": config.attention}
        start = time.perf_counter()
        jax.block_until_ready(sample(network, noise, jnp.int32(1)))
        found["compile_s"] = time.perf_counter() - start
        for steps in (1, 4, 128):
            taken = timed(functools.partial(sample, network, noise, jnp.int32(steps)), rounds=3 if steps == 128 else 10)
            found |= {f"{steps} steps, seconds": taken, f"{steps} steps, images a second": batch / taken}
        return found


def loading(lab: Lab) -> Found:
    """Latents a second that reach the device, nothing else done."""
    found: Found = {}
    for batch in {lab.batch(256), lab.batch(1024)}:
        loader, count = lab.loader(batch), 4 if lab.tiny else 20
        with contextlib.closing(loader):
            jax.block_until_ready([next(loader) for _ in range(3)])
            start = time.perf_counter()
            for _ in range(count):
                last = next(loader)
            jax.block_until_ready(last)
            found[f"latents a second at batch {batch}"] = batch * count / (time.perf_counter() - start)
    return found


def inception(lab: Lab) -> Found:
    """Images a second through Inception-V3, from 256 x 256, weights at random."""
    from eqx_shortcut.evaluate.networks import NetworkFeatures
    from eqx_shortcut.evaluate.preprocess import TF
    from eqx_shortcut.pretrained.inception import Inception

    batch, side = (2, 32) if lab.tiny else (128, 256)
    features = NetworkFeatures("inception", {}, eqx.filter_jit(Inception)(key=jax.random.key(0)), TF, batch)
    images = np.random.default_rng(0).uniform(-1, 1, (batch, side, side, 3)).astype(np.float32)
    return {"batch": batch, "images a second": batch / timed(lambda: features(images), rounds=3)}


def autoencoder(lab: Lab) -> Found:
    """Images of 256 x 256 a second that the Stable-Diffusion VAE decodes and encodes, weights at random."""
    from eqx_shortcut.pretrained.sdvae import SDVAEConfig

    batch, side = (1, 8) if lab.tiny else (32, 32)
    network = eqx.filter_jit(SDVAEConfig().build)(key=jax.random.key(0))
    latents = jax.random.normal(jax.random.key(1), (batch, side, side, 4))
    decode = eqx.filter_jit(lambda network, z: jax.vmap(network.decode)(z))
    images = decode(network, latents)
    encode = eqx.filter_jit(lambda network, x: jax.vmap(network.encode)(x))
    found: Found = {"batch": batch, "decoded a second": batch / timed(lambda: decode(network, latents), rounds=3)}
    return found | {"encoded a second": batch / timed(lambda: encode(network, images), rounds=3)}


@dataclasses.dataclass(frozen=True)
class Original:
    """The B/2 step of kvfrans/shortcut-models in bfloat16, its own code, on a batch that is on the device already."""

    batch: int

    def __call__(self, lab: Lab) -> Found:
        if lab.original is None:
            raise FileNotFoundError("no checkout of kvfrans/shortcut-models: name one with --original")
        import compare

        config, batch = lab.config("B/2"), lab.batch(self.batch)
        while True:
            try:
                other = compare.original(lab.original, config, batch, 128, jnp.bfloat16)  # pyright: ignore[reportAttributeAccessIssue]
                return self._measured(other, config, batch, lab.tiny)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or batch == 1:
                    raise
            gc.collect()
            batch //= 2

    def _measured(self, other: Any, config: DiTConfig, batch: int, tiny: bool) -> Found:
        x, labels = jax.random.normal(jax.random.key(0), (batch, *SHAPE)), jnp.arange(batch) % CLASSES
        start = time.perf_counter()
        with contextlib.redirect_stdout(None):
            program = other.update.lower(other.state, None, x, labels).compile()
        costs = {"compile_s": time.perf_counter() - start}
        costs["temporaries_gib"] = program.memory_analysis().temp_size_in_bytes / 2**30
        current, blocks = other.state, []
        for i in range(5 if tiny else 23):
            start = time.perf_counter()
            current, metrics = program(current, None, x, labels)
            jax.block_until_ready(metrics)
            blocks += [time.perf_counter() - start] if i >= 3 else []
        return {"batch": batch} | costs | rates(blocks, batch, operations(config, Shortcut(), batch))


@dataclasses.dataclass(frozen=True)
class Agreement:
    """An objective in float32 beside the values that a CPU had (parity.py), and 200 steps of it in bfloat16."""

    name: str

    def __call__(self, lab: Lab) -> Found:
        import parity

        objective, half = parity.objective(self.name), dataclasses.replace(parity.CONFIG, precision="bfloat16")
        found = parity.differences(parity.values(objective), json.loads(parity.FILE.read_text())[self.name])
        run = parity.trained(objective, half, 4 if lab.tiny else parity.STEPS)
        return {"objective": self.name} | found | {f"bfloat16, {quantity}": value for quantity, value in run.items()}


NONE, BLOCK, CUDNN, LINEAR = {"remat": "none"}, {"remat": "block"}, {"attention": "cudnn"}, {"step": "linear"}
FAST = CUDNN | NONE
FAST_B2, FAST_XL2 = FAST | {"unroll": 12}, FAST | {"unroll": 28}
TIMED: dict[str, Callable[[Lab], Found]] = {
    "ceilings": ceilings,
    "b2-shortcut-256-fast": Training("B/2", Shortcut(), 256, FAST_B2, profile=True),
    "b2-mean-flow-256-cudnn": Training("B/2", MeanFlow(), 256, LINEAR | FAST_B2, profile=True),
    "xl2-shortcut-256-fast": Training("XL/2", Shortcut(), 256, FAST_XL2, halve=True, profile=True),
    "b2-original-256": Original(256),
    "attention": attention,
    "loading": loading,
    "b2-flow-matching-256-fast": Training("B/2", FlowMatching(), 256, FAST_B2),
    "inception": inception,
    "autoencoder": autoencoder,
    "b2-mean-flow-256-fast": Training("B/2", MeanFlow(), 256, LINEAR | NONE | {"unroll": 12}),
    "b2-sampling-cudnn": Sampling("B/2", CUDNN),
    "xl2-sampling-cudnn": Sampling("XL/2", CUDNN),
    "b2-shortcut-1024-fast": Training("B/2", Shortcut(), 1024, FAST_B2, halve=True),
    "b2-shortcut-256": Training("B/2", Shortcut(), 256, profile=True),
    "b2-mean-flow-256-block": Training("B/2", MeanFlow(), 256, LINEAR | CUDNN | BLOCK),
    "b2-flow-matching-256-block": Training("B/2", FlowMatching(), 256, CUDNN | BLOCK),
    "b2-shortcut-256-cudnn": Training("B/2", Shortcut(), 256, CUDNN),
    "b2-shortcut-256-cudnn-unrolled": Training("B/2", Shortcut(), 256, CUDNN | {"unroll": 12}),
    "xl2-shortcut-256-cudnn": Training("XL/2", Shortcut(), 256, CUDNN, profile=True),
    "xl2-shortcut-256": Training("XL/2", Shortcut(), 256, halve=True),
    "xl2-shortcut-128-fast": Training("XL/2", Shortcut(), 128, FAST_XL2),
    "b2-shortcut-512-fast": Training("B/2", Shortcut(), 512, FAST_B2, halve=True),
    "b2-sampling": Sampling("B/2"),
    "xl2-sampling": Sampling("XL/2"),
    "b2-mean-flow-256": Training("B/2", MeanFlow(), 256, LINEAR),
    "b2-flow-matching-256": Training("B/2", FlowMatching(), 256),
    "b2-flow-matching-256-none": Training("B/2", FlowMatching(), 256, NONE),
    "xl2-shortcut-512-cudnn-block": Training("XL/2", Shortcut(), 512, CUDNN | BLOCK, halve=True),
}
CHECKS: dict[str, Callable[[Lab], Found]] = {f"objective-{name}": Agreement(name) for name in OBJECTIVES}
MEASUREMENTS = TIMED | CHECKS


def surroundings() -> Found:
    """Chip, driver, versions, command and date."""
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.sm", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = None
    names = ("jax", "jaxlib", "jax-cuda13-plugin", "nvidia-cudnn-cu13", "nvidia-cublas", "equinox", "optax")
    versions = {name: importlib.metadata.version(name) for name in names if _installed(name)}
    return {
        "chip": jax.devices()[0].device_kind,
        "driver, power limit, clock": driver,
        "versions": versions | {"python": sys.version.split()[0]},
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "command": " ".join(["benchmarks/gpu.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def recorded(file: pathlib.Path, found: Found) -> None:
    """Writes the file whole or not at all."""
    part = file.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1) + "\n")
    part.replace(file)


def run(names: list[str], lab: Lab, out: pathlib.Path, end: float, known: pathlib.Path | None = None) -> None:
    """Each measurement in turn that has no file in `out` or `known`, the next one while more than half a minute is left."""
    around = surroundings()
    for name in names:
        file = out / f"{name}.json"
        if file.exists() or (known is not None and (known / file.name).exists()):
            continue
        if time.monotonic() > end - 30:
            print(f"{name}: no time left", flush=True)
            return
        # Left behind where a measurement takes the process down: the next process goes on with the one after it.
        recorded(file, {"name": name, "error": "did not finish"})
        start = time.monotonic()
        try:
            result = MEASUREMENTS[name](lab)
        except Exception as error:  # of one measurement; the others are made all the same
            result = {"error": f"{type(error).__name__}: {str(error)[:2000]}"}
        took = {"took_s": round(time.monotonic() - start, 1)}
        recorded(file, {"name": name} | result | took | around)
        shown = {key: value for key, value in result.items() if not key.startswith("kernels_ms_and")}
        print(name, json.dumps(shown | took), flush=True)
        gc.collect()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tiny", action="store_true", help="a tiny network and three steps, to rehearse")
    parser.add_argument("--only", nargs="+", choices=MEASUREMENTS, default=list(MEASUREMENTS), metavar="NAME")
    parser.add_argument("--timed", action="store_const", dest="only", const=list(TIMED), help="all but the objectives' checks")
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds after which the process has ended")
    parser.add_argument(
        "--original", type=lambda path: pathlib.Path(path).resolve(), help="a checkout, to measure its step too"
    )
    parser.add_argument("--out", type=pathlib.Path, help="by default benchmarks/results/CHIP")
    parser.add_argument("--again", action="store_true", help="with --out: also what benchmarks/results/CHIP has")
    given = parser.parse_args()
    end = time.monotonic() + given.limit
    if given.limit < float("inf"):
        # What compiles or runs on the device cannot be interrupted: what is done is on disk, so the process may just end.
        timer = threading.Timer(given.limit - 5, os._exit, (0,))
        timer.daemon = True
        timer.start()
    chip = re.sub(r"[^A-Za-z0-9]+", "-", jax.devices()[0].device_kind)
    known = pathlib.Path(__file__).parent / "results" / chip
    out = given.out or known
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        run(given.only, Lab(given.tiny, pathlib.Path(folder), given.original), out, end, None if given.again else known)
    print(out)


if __name__ == "__main__":
    main()
