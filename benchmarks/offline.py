"""A training step compiled for an H100 on a machine without a GPU: its memory, and the bytes that each of its kernels moves.

    pip install "jax[cuda13]"
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python benchmarks/offline.py B/2 --batch 256
    JAX_SKIP_CUDA_CONSTRAINTS_CHECK=1 python benchmarks/offline.py B/2 --batch 256 --remat none --attention cudnn --unroll 12

What one product or another costs is chosen on the device by trying, which is left out here, so products are counted by their
bytes too and say nothing of their time. The bytes of all other kernels over the speed of a copy foretold the measured time of
the unrolled step of B/2 to 4 % (docs/performance.md).
"""

import argparse
import collections
import dataclasses
import os
import re
import time
from typing import Any

os.environ["XLA_FLAGS"] = " ".join([os.environ.get("XLA_FLAGS", ""), "--xla_gpu_autotune_level=0"])

import equinox as eqx
import jax
import jax._src.cudnn.fused_attention_stablehlo as cudnn
import jax.numpy as jnp
from jax.experimental import topologies

from eqx_shortcut import objectives
from eqx_shortcut.models.dit import DiT, DiTConfig, preset
from eqx_shortcut.objectives import Objective
from eqx_shortcut.optimizer import AdamW
from eqx_shortcut.train import init_state, make_update
from eqx_shortcut.types import Batch

SHAPE, CLASSES = (32, 32, 4), 1000
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152 shared_memory_per_core: 233472
  threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 84942979072 shared_memory_per_block_optin: 232448 cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
BYTES = {"f64": 8, "s64": 8, "u64": 8, "f32": 4, "s32": 4, "u32": 4, "bf16": 2, "f16": 2, "u16": 2, "u8": 1, "s8": 1, "pred": 1}
FREE = (
    "parameter",
    "tuple",
    "get-tuple-element",
    "bitcast",
    "constant",
    "after-all",
    "async-start",
    "async-done",
    "fusion-done",
)


@dataclasses.dataclass(frozen=True)
class Kernel:
    """An instruction that moves memory: how often it runs in a step, and the bytes it reads and writes each time."""

    name: str
    kind: str
    shape: str
    source: str
    calls: int
    size: int

    @property
    def product(self) -> bool:
        """Whether it is a matrix product or attention, whose time is not that of its bytes."""
        return self.kind == "custom-call" or "gemm" in self.name


def program(config: DiTConfig, objective: Objective, batch: int) -> Any:
    """The compiled step for one H100."""
    # JAX asks the device at hand which attention it can do, and there is none.
    cudnn.check_cudnn_version = lambda: 91000
    cudnn.check_compute_capability = lambda capability: True
    cudnn.is_cuda_compute_capability_equal = lambda capability: False
    topology = topologies.get_topology_desc("", "cuda", target_config=H100, topology="1x1x1")
    place = jax.sharding.SingleDeviceSharding(topology.devices[0])
    tx = AdamW().build(1000)
    shapes = eqx.filter_eval_shape(
        lambda key: init_state(lambda k: DiT(config, SHAPE, CLASSES, key=k), tx, key, null=CLASSES), jax.random.key(0)
    )
    arrays, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
    arrays = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), arrays)
    update = make_update(objective, tx, ema_decay=0.999, steps=1000)

    def step(arrays, x, labels):
        new, metrics = update(((x, labels), lambda raw, _: Batch(*raw)), eqx.combine(arrays, static))
        return eqx.filter(new, eqx.is_array), metrics

    x = jax.ShapeDtypeStruct((batch, *SHAPE), jnp.float32, sharding=place)
    labels = jax.ShapeDtypeStruct((batch,), jnp.int32, sharding=place)
    return jax.jit(step, donate_argnums=0).trace(arrays, x, labels).lower().compile()


def kernels(text: str) -> list[Kernel]:
    """The kernels of an optimized program, those in loops as often as they run, the most bytes first."""
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.\-]+) [^\n]*\{\n(.*?)^\}", text, flags=re.M | re.S))
    entry = re.search(r"^ENTRY %?([\w.\-]+)", text, flags=re.M)
    assert entry is not None
    found = _kernels(bodies, entry[1], 1)
    return sorted(found, key=lambda kernel: -kernel.calls * kernel.size)


def _kernels(bodies: dict[str, str], name: str, calls: int) -> list[Kernel]:
    types: dict[str, str] = {}
    found = []
    for line in bodies[name].splitlines():
        match = re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([\w\-]+)\((.*)$", line)
        if match is None:
            continue
        own, shape, kind, rest = match.groups()
        types[own] = shape
        if kind == "while":
            body = re.search(r"body=%?([\w.\-]+)", rest)
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', rest)
            assert body is not None
            found += _kernels(bodies, body[1], calls * (int(trips[1]) if trips else 1))
        elif kind == "call" and (called := re.search(r"to_apply=%?([\w.\-]+)", rest)):
            found += _kernels(bodies, called[1], calls)
        elif kind not in FREE:
            source = re.search(r'op_name="([^"]*)"', rest)
            operands = [types.get(operand, "") for operand in re.findall(r"%([\w.\-]+)", rest.split(")")[0])]
            found.append(Kernel(own, kind, shape, source[1] if source else "", calls, _moved(kind, shape, operands, calls)))
    return found


def _moved(kind: str, shape: str, operands: list[str], calls: int) -> int:
    if kind == "fusion-start":  # one slice of a stack, put in its place
        return 2 * min(filter(None, map(_size, operands)), default=0)
    # Each pass of a loop reads its own slice of what is stacked over its passes.
    stacks = [calls if calls > 1 and re.match(rf"\w+\[{calls},", operand) else 1 for operand in operands]
    return _size(shape) + sum(_size(operand) // stack for operand, stack in zip(operands, stacks, strict=True))


def _size(shape: str) -> int:
    total = 0
    for dtype, sides in re.findall(rf"\b({'|'.join(BYTES)})\[([\d,]*)\]", shape):
        count = 1
        for side in filter(None, sides.split(",")):
            count *= int(side)
        total += count * BYTES[dtype]
    return total


def report(found: list[Kernel], rows: int) -> str:
    """Bytes of products and of the rest, and the largest groups of kernels that differ in number alone."""
    groups: dict[tuple[str, str], list[float]] = collections.defaultdict(lambda: [0.0, 0])
    for kernel in found:
        group = groups[re.sub(r"[.\d]+$", "", kernel.name), kernel.shape[:60]]
        group[0] += kernel.calls * kernel.size / 1e9
        group[1] += kernel.calls
    products, rest = (sum(k.calls * k.size for k in found if k.product == product) / 1e9 for product in (True, False))
    lines = [
        f"{products:.1f} GB of products and attention, {rest:.1f} GB of all other kernels a step",
        "| GB | calls | kernel | answer |",
        "|---|---|---|---|",
    ]
    largest = sorted(groups.items(), key=lambda item: -item[1][0])[:rows]
    return "\n".join([*lines, *(f"| {size:.2f} | {calls} | {name} | {shape} |" for (name, shape), (size, calls) in largest)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("size", help="B/2, XL/2, ...")
    parser.add_argument("--objective", default="Shortcut", help="a class of eqx_shortcut.objectives")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--rows", type=int, default=30)
    for option in ("remat", "attention", "step"):
        parser.add_argument(f"--{option}", help="instead of the default of DiTConfig")
    parser.add_argument("--unroll", type=int, default=1)
    given = parser.parse_args()
    options = {name: value for name in ("remat", "attention", "step") if (value := getattr(given, name)) is not None}
    config = dataclasses.replace(preset(given.size), precision="bfloat16", unroll=given.unroll, **options)
    start = time.perf_counter()
    step = program(config, getattr(objectives, given.objective)(), given.batch)
    memory = step.memory_analysis()
    print(f"compiled in {time.perf_counter() - start:.0f} s; {memory.temp_size_in_bytes / 2**30:.1f} GiB of temporaries")
    print(report(kernels(step.as_text()), given.rows))


if __name__ == "__main__":
    main()
