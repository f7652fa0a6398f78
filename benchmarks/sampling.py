"""Sampling in N steps as one compiled call beside a Python loop of N compiled steps: by turns, in one process.

    python benchmarks/sampling.py                                   # tiny, 128 steps: digits and latents, 1 to 64 images
    python benchmarks/sampling.py --sizes S/2 --sides 32 --batches 8 --steps 4 --rounds 5

Both evaluate the same network from the same noise, and their samples must agree. The loop's step is jitted whole, its state
donated, and does not wait for the device. Prints a table of the loop's time over the call's, one ratio a round.
"""

import argparse
import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from eqx_shortcut import samplers, steps
from eqx_shortcut.models import NetworkField
from eqx_shortcut.models.dit import preset
from turns import Turn, alternate

CLASSES = 10


def compare(size: str, side: int, batch: int, count: int, rounds: int) -> tuple[float, list[float]]:
    """Median seconds of the call, and the quartiles of the loop's time over it."""
    shape = (side, side, 4 if side == 32 else 1)
    network = dataclasses.replace(preset(size), precision="float32").build(shape, CLASSES, key=jax.random.key(0))
    # An untrained network answers 0.
    network = eqx.tree_at(lambda n: n.final.out.bias, network, replace_fn=lambda bias: bias + 0.1)
    network = eqx.tree_at(lambda n: n.final.out.kernel, network, replace_fn=lambda kernel: kernel + 0.01)
    noise, labels = jax.random.normal(jax.random.key(1), (batch, *shape)), jnp.arange(batch) % CLASSES

    @eqx.filter_jit
    def call(network, x):
        return samplers.euler(NetworkField(network), x, labels, steps=count)

    @eqx.filter_jit(donate="all-except-first")
    def one(network, x, t):
        d = jnp.full(batch, 1 / count)
        return steps.step(NetworkField(network), x, jnp.full(batch, t), d, labels)

    def loop(network: Any, x: jax.Array) -> jax.Array:
        for i in range(count):
            x = one(network, x, np.float32(i / count))
        return x

    def turn(run: Any) -> Turn:
        return Turn(lambda state: (None, run(network, jnp.copy(noise))), None)

    np.testing.assert_allclose(call(network, noise), loop(network, jnp.copy(noise)), atol=1e-4)
    times = alternate(rounds, turn(call), turn(loop))
    return float(np.median(times[:, 0])), np.percentile(times[:, 1] / times[:, 0], [25, 50, 75]).tolist()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["tiny"])
    parser.add_argument("--sides", nargs="+", type=int, default=[8, 32], help="of the images: at 32 they have four channels")
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16, 64])
    parser.add_argument("--steps", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    given = parser.parse_args()
    print("| size | tokens | images | seconds of the call | loop over call: quartiles |\n|---|---|---|---|---|")
    for size in given.sizes:
        for side in given.sides:
            for batch in given.batches:
                seconds, ratios = compare(size, side, batch, given.steps, given.rounds)
                shown = ", ".join(f"{ratio:.2f}" for ratio in ratios)
                print(f"| {size} | {(side // 2) ** 2} | {batch} | {seconds:.3f} | {shown} |", flush=True)


if __name__ == "__main__":
    main()
