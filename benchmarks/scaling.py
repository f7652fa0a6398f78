"""Memory and traffic of a training step of the paper's networks on many devices, compiled without any of them.

python benchmarks/scaling.py                                   # B/2 and XL/2 on 8, 64 and 1,024 devices
python benchmarks/scaling.py b --devices 8 --objectives shortcut

Compiles the step of `imagenet.py` from shapes alone, for the CPU as so many devices, and prints a table: bytes on one device of
the state and of what the step needs besides, and what each step sends. The compiler is the CPU's: what it needs besides the
state is an indication only, and what other devices send as bfloat16 it sends as float32.
"""

import dataclasses
import importlib
import json
import os
import pathlib
import sys
from collections.abc import Iterator
from typing import Annotated, Any, Literal

import tyro

from eqx_shortcut.cli import check_out, command

sys.path.append(str(pathlib.Path(__file__).parents[1] / "experiments"))


@dataclasses.dataclass(frozen=True)
class Config:
    """Memory and traffic of a step, by number of devices and mesh."""

    networks: Annotated[tuple[Literal["b", "xl"], ...], tyro.conf.Positional] = ("b", "xl")
    """Presets of imagenet.py."""
    objectives: tuple[Literal["shortcut", "flow-matching"], ...] = ("shortcut", "flow-matching")
    """What is trained."""
    devices: tuple[int, ...] = (8, 64, 1024)
    """Numbers of devices."""
    host: int = 8
    """Devices in a host: as many share the weights by FSDP."""
    tensor: int = 2
    """Devices that share heads and MLPs where tensor parallelism is shown."""
    batch: int = 32
    """Images a device and step."""
    remat: Literal["none", "elementwise", "mlp", "block"] = "elementwise"
    """What the backward pass computes again instead of keeping it."""
    out: pathlib.Path = pathlib.Path("scaling.json")
    """File to write; rows that it holds already, of the same settings, are not computed again."""

    def __post_init__(self):
        for field in ("host", "tensor", "batch"):
            if getattr(self, field) < 1:
                raise ValueError(f"--{field} {getattr(self, field)}: use 1 or more")
        for count in self.devices:
            if count % self.host or count % self.tensor:
                raise ValueError(
                    f"--devices {count}: use multiples of --host {self.host} and of --tensor {self.tensor}, which meshes share"
                )


def main(config: Config) -> None:
    """Compiles each step, writes what it found after each, prints the table."""
    check_out(config.out, ".json")
    # Read when JAX first asks for devices, which nothing has done yet.
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={max(config.devices)}"
    os.environ["JAX_PLATFORMS"] = "cpu"
    from tqdm import tqdm

    rows = json.loads(config.out.read_text())["rows"] if config.out.exists() else []
    for wanted in tqdm(list(cases(config)), unit="program"):
        if not any(wanted.items() <= row.items() for row in rows):
            rows.append(wanted | measure(wanted))
            config.out.write_text(json.dumps({**about(), "rows": rows}, indent=1))
    wanted = list(cases(config))
    print(table([row for case in wanted for row in rows if case.items() <= row.items()]))
    print(f"{config.out}: {len(wanted)} programs")


def cases(config: Config) -> Iterator[dict[str, Any]]:
    """The steps to compile: data parallel, FSDP inside a host, and tensor parallel, with data parallel over the rest."""
    for network in config.networks:
        for objective in config.objectives:
            for count in config.devices:
                for fsdp, tensor in ((1, 1), (config.host, 1), (1, config.tensor)):
                    yield {
                        "network": network,
                        "objective": objective,
                        "devices": count,
                        "mesh": {"data": count // (fsdp * tensor), "fsdp": fsdp, "tensor": tensor},
                        "batch": config.batch * count,
                        "remat": config.remat,
                        "host": config.host,
                    }


def measure(case: dict[str, Any]) -> dict[str, Any]:
    """Bytes on one device, and collectives by kind, of one step of imagenet.py."""
    from eqx_shortcut.objectives import FlowMatching

    _, preset = importlib.import_module("imagenet").PRESETS[case["network"]]
    settings = dataclasses.replace(
        preset,
        batch=case["batch"],
        objective=preset.objective if case["objective"] == "shortcut" else FlowMatching(),
        network=dataclasses.replace(preset.network, precision="bfloat16", remat=case["remat"]),
    )
    return compiled(settings, case["mesh"], case["host"])


def compiled(settings: Any, mesh_sizes: dict[str, int], host: int) -> dict[str, Any]:
    """The same of any settings, on the first devices that there are."""
    import jax

    import collectives
    from eqx_shortcut import sharding
    from eqx_shortcut.experiment.checks import check
    from eqx_shortcut.experiment.plan import abstract_state, bytes_a_device, example, laid_out, trace
    from eqx_shortcut.experiment.run import Data, Run

    size = mesh_sizes["data"] * mesh_sizes["fsdp"] * mesh_sizes["tensor"]
    mesh = sharding.make_mesh(**mesh_sizes, devices=jax.devices()[:size])
    sharding.check_batch(settings.batch, mesh, settings.accumulate)
    check(settings)
    rows, _ = example(settings.data)
    state = laid_out(abstract_state(settings, rows), mesh)
    with jax.set_mesh(mesh):
        # The program is not run, so machine code need not be fast.
        program = (
            trace(Run("", settings, Data(rows, rows, True), mesh), state).lower().compile({"xla_backend_optimization_level": 0})
        )
    sent: dict[str, dict[str, int]] = {}
    for one in collectives.read(program.as_text() or ""):
        kind = sent.setdefault(one.kind, {"count": 0, "bytes": 0, "bytes_between_hosts": 0})
        kind["count"] += one.times
        kind["bytes"] += one.times * one.size
        kind["bytes_between_hosts"] += one.times * one.size * one.crosses(host)
    return {
        "bytes_a_device": {**bytes_a_device(state), "temporaries": program.memory_analysis().temp_size_in_bytes},
        "collectives": sent,
    }


def about() -> dict[str, str]:
    """How the file was made."""
    import datetime
    import platform
    import shlex

    import jax

    return {
        "command": shlex.join(["python", "benchmarks/scaling.py", *sys.argv[1:]]),
        "versions": f"Python {platform.python_version()}, jax {jax.__version__}, compiled for CPU",
        "date": datetime.date.today().isoformat(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    """Rows in Markdown: the mesh as data x fsdp x tensor, GiB on one device, collectives a step and their MB."""
    lines = [
        "| network | objective | devices | mesh | weights | average | moments | temporaries | sent, MB | between hosts |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        mesh, held, kinds = row["mesh"], row["bytes_a_device"], row["collectives"]
        cells = [f"{row['network'].upper()}/2", row["objective"], f"{row['devices']:,}"]
        cells += [f"{mesh['data']:,} x {mesh['fsdp']} x {mesh['tensor']}"]
        cells += [f"{held[part] / 2**30:.2f}" for part in ("weights", "average", "moments", "temporaries")]
        cells += ["; ".join(f"{sent['count']} {kind} {sent['bytes'] / 1e6:,.0f}" for kind, sent in kinds.items())]
        cells += [f"{sum(sent['bytes_between_hosts'] for sent in kinds.values()) / 1e6:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    command(main, Config, __doc__)
