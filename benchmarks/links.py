"""What the collectives of `scaling.py` take at the published rates of links, beside the step's own compute.

    python benchmarks/links.py experiments/results/scaling.json --figure docs/images/scaling.png    # prints the tables

On paper: rates are those of data sheets, nothing overlaps, and the compute is the model's operations at `USED` of the peak, as
measured on an H100 (docs/performance.md). What a CPU's program sends as float32 and a chip in bfloat16 counts half: gathered
kernels and activations. Gradients are float32.
"""

import argparse
import dataclasses
import functools
import json
import pathlib
import sys
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

USED = 0.4
"""Share of the peak that a step reaches: 39 % of B/2 and 42 % of XL/2 on an H100."""
SHARED = 2048
"""Images of the batch that the figure shares among more and more chips."""


@dataclasses.dataclass(frozen=True)
class Chip:
    """Rates in bytes a second of one chip, each way, and of which chips have fast links among them."""

    name: str
    peak: float
    port: float
    """Through one port to a neighbour, or, where a switch joins all, through all of them."""
    domain: int
    """Chips that have such links among each other."""
    between: float
    """Of one chip's share of the network between domains."""
    torus: bool = False
    """Whether chips lie in a grid of two axes, closed to rings where an axis has 16."""

    def rate(self, chips: int, *, grid: bool) -> float:
        """What a chip receives a second while `chips` of a domain gather: a whole slice (`grid`) or neighbours on one axis."""
        if not self.torus:
            return self.port
        # The end of a line has one port to receive by, a chip in a ring two.
        ring = 2 if chips >= self.domain else 1
        return self.port * (2 * ring if grid and chips > 2 else 1)

    def gather(self, size: float, chips: int) -> float:
        """Seconds in which each of these neighbours has `size` bytes, of which it had its share."""
        return size * (chips - 1) / chips / self.rate(chips, grid=False)

    def reduce(self, size: float, chips: int, *, grid: bool = True) -> float:
        """Seconds of the sum of `size` bytes over these: scattered inside a domain, summed between, gathered inside."""
        inside = min(chips, self.domain)
        domains = chips // inside
        within = 2 * size * (inside - 1) / inside / self.rate(inside, grid=grid)
        return within + 2 * (size / inside) * (domains - 1) / domains / self.between


CHIPS = (
    # docs.cloud.google.com/tpu/docs/v5e and v6e: 400 and 800 GB/s both ways through four ports; 6.4 and 25.6 Tbit/s of the data
    # center's network for a pod of 256. Rings along axes of 16 alone: jax-ml.github.io/scaling-book/tpus.
    Chip("TPU v5e", 197e12, 50e9, 256, 6.4e12 / 8 / 256, torus=True),
    Chip("TPU v6e", 918e12, 100e9, 256, 25.6e12 / 8 / 256, torus=True),
    # Data sheet of the H100 SXM: NVLink, 900 GB/s both ways. docs.nvidia.com/dgx/dgxh100-user-guide: 400 Gbit/s for each GPU.
    Chip("H100", 989e12, 450e9, 8, 50e9),
)


class Sent(NamedTuple):
    """Seconds of a step, by what is sent."""

    gradient: float
    kernels: float
    activations: float

    @property
    def total(self) -> float:
        """All of it, one after another."""
        return sum(self)


Kind = Literal["data", "fsdp", "tensor"]


def kind_of(mesh: dict[str, int]) -> Kind:
    """What a mesh of `scaling.py` shows."""
    return "tensor" if mesh["tensor"] > 1 else "fsdp" if mesh["fsdp"] > 1 else "data"


class Traffic(NamedTuple):
    """Bytes that one device of bfloat16 sends in a step of 32 images a device."""

    gradient: float
    kernels: float
    activations: float

    def sent(self, chip: Chip, kind: Kind, devices: int, images: float = 32) -> Sent:
        """Seconds for all of it on so many chips; activations alone grow with the images of each."""
        if kind == "tensor":
            pairs = dataclasses.replace(chip, domain=chip.domain // 2)
            activations = chip.reduce(self.activations * images / 32, 2, grid=False)
            return Sent(pairs.reduce(self.gradient, devices // 2), 0.0, activations)
        kernels = chip.gather(self.kernels, 8) if kind == "fsdp" else 0.0
        return Sent(chip.reduce(self.gradient, devices), kernels, 0.0)


def traffic(rows: list[dict[str, Any]], network: str, kind: Kind) -> Traffic:
    """From the compiled program for 64 devices, in which gradients alone cross hosts; a device sends as much on 8 or 1,024."""
    found = [row for row in rows if (row["network"], row["objective"], row["devices"]) == (network, "shortcut", 64)]
    (row,) = (row for row in found if kind_of(row["mesh"]) == kind)
    none = {"bytes": 0, "bytes_between_hosts": 0}
    summed, gathered = (row["collectives"].get(name, none) for name in ("all-reduce", "all-gather"))
    gradient = summed["bytes_between_hosts"]
    return Traffic(gradient, gathered["bytes"] / 2, (summed["bytes"] - gradient) / 2)


@functools.cache
def operations(network: str) -> float:
    """Of a shortcut step of `imagenet.py`, for one image."""
    import equinox as eqx
    import jax

    from eqx_shortcut import flops
    from eqx_shortcut.models.dit import preset
    from eqx_shortcut.train import init_state

    sys.path.append(str(pathlib.Path(__file__).parents[1] / "experiments"))
    import imagenet  # pyright: ignore[reportMissingImports]

    _, config = imagenet.PRESETS[network]
    tx, shape = config.optimizer.build(1), (32, 32, 4)
    build = functools.partial(_build, preset(f"{network.upper()}/2"), shape)
    state = eqx.filter_eval_shape(lambda key: init_state(build, tx, key, null=1000), jax.random.key(0))
    found = []
    eqx.filter_eval_shape(lambda networks: found.append(flops.of_step(config.objective, networks, 256, shape)), state.networks)
    return found[0] / 256


def _build(config, shape, key):
    return config.build(shape, 1000, key=key)


def compute(chip: Chip, network: str, images: float = 32) -> float:
    """Seconds of a step's own operations on one chip."""
    return operations(network) * images / (USED * chip.peak)


def ends(sent: Traffic, chip: Chip, network: str, kind: Kind) -> float:
    """Images a chip at which both take as long, on 1,024 chips: with fewer, the links are waited for. Infinite if with any."""
    at = sent.sent(chip, kind, 1024)
    left = compute(chip, network) - at.activations
    return 32 * (at.gradient + at.kernels) / left if left > 0 else float("inf")


NETWORKS = ("b", "xl")
KINDS: tuple[Kind, ...] = ("data", "fsdp", "tensor")
MESHES: dict[Kind, str] = {"data": "data", "fsdp": "fsdp 8", "tensor": "tensor 2"}


def table(rows: list[dict[str, Any]]) -> str:
    """Milliseconds of the collectives of a step of 32 images a chip, their share of the compute, and where it ends."""
    head = ["network", "mesh", "chip", "compute, ms", *(f"{n:,}" for n in (8, 64, 1024)), "over compute", "images a chip"]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *_lines(rows)])


def _lines(rows: list[dict[str, Any]]) -> Iterator[list[str]]:
    for network in NETWORKS:
        for kind in KINDS:
            sent = traffic(rows, network, kind)
            for chip in CHIPS:
                own = compute(chip, network)
                times = [sent.sent(chip, kind, devices).total for devices in (8, 64, 1024)]
                cells = [f"{network.upper()}/2", MESHES[kind], chip.name, f"{1e3 * own:.0f}"]
                yield [
                    *cells,
                    *(f"{1e3 * t:.1f}" for t in times),
                    f"{times[-1] / own:.2f}",
                    _count(ends(sent, chip, network, kind)),
                ]


def _count(images: float) -> str:
    return f"{images:.1f}" if images < float("inf") else "never"


def draw(rows: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Collectives over compute of a batch of `SHARED` images on 8 to 1,024 chips: above 1 the links are waited for."""
    from matplotlib.figure import Figure

    from eqx_shortcut import figures

    figure = Figure(figsize=(9, 3.8), layout="constrained", dpi=110)
    devices = [2**k for k in range(3, 11)]
    for axes, network in zip(figure.subplots(1, 2, sharey=True), NETWORKS, strict=True):
        for kind, style in zip(KINDS, ("-", "--", ":"), strict=True):
            for chip, color in zip(CHIPS, figures.COLOURS, strict=False):
                sent = traffic(rows, network, kind)
                ratios = [sent.sent(chip, kind, n, SHARED / n).total / compute(chip, network, SHARED / n) for n in devices]
                axes.plot(devices, ratios, style, color=color, label=f"{chip.name}, {MESHES[kind]}")
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set(xscale="log", yscale="log", xticks=devices, xticklabels=[f"{n:,}" for n in devices])
        axes.minorticks_off()
        axes.set(xlabel=f"chips that share {SHARED:,} images", title=f"DiT-{network.upper()}/2")
    figure.axes[0].set_ylabel("collectives over compute")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figures.write_figure(path, figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path, help="of benchmarks/scaling.py")
    parser.add_argument("--figure", type=pathlib.Path)
    given = parser.parse_args()
    rows = json.loads(given.file.read_text())["rows"]
    print(table(rows))
    if given.figure:
        draw(rows, given.figure)


if __name__ == "__main__":
    main()
