"""The page of tables of what `gpu.py` has measured, as Markdown: `python benchmarks/gpu_table.py benchmarks/results/CHIP`."""

import argparse
import json
import pathlib
from typing import Any

Found = dict[str, Any]


def page(folder: pathlib.Path) -> str:
    """All tables of a folder of measurements: a line of where they were made, then what was measured."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    done = {name: row for name, row in found.items() if "error" not in row}
    some = next(iter(done.values()))
    driver, *_ = (some["driver, power limit, clock"] or "unknown").split(",")
    versions = ", ".join(
        f"{name} {some['versions'][name]}" for name in ("python", "jax", "nvidia-cudnn-cu13") if name in some["versions"]
    )
    head = f"{some['chip']}, driver {driver}, {versions}, {some['date']}."
    return "\n\n".join(
        part for part in [head, _ceilings(done), _training(done), _attention(done), _sampling(done), _agreement(done)] if part
    )


def _ceilings(done: dict[str, Found]) -> str:
    row = done["ceilings"]
    return (
        f"One bfloat16 product of 8192 x 8192 x 8192 runs at {row['matmul_tflops']:.0f} TFLOP/s, a copy moves "
        f"{row['copy_tb_s']:.2f} TB/s, read and written both counted."
    )


def _training(done: dict[str, Found]) -> str:
    product = done["ceilings"]["matmul_tflops"]
    rows = [_step(name, row, product) for name, row in done.items() if "seconds_a_step_quartiles" in row]
    return _table(
        (
            "measurement",
            "batch",
            "remat, attention, unroll",
            "ms a step",
            "images/s",
            "MFU",
            "of the product",
            "GiB",
            "compile, s",
        ),
        rows,
    )


def _step(name: str, row: Found, product: float) -> tuple[str, ...]:
    options = f"{row['remat']}, {row['attention']}, {row['unroll']}" if "remat" in row else "its own"
    memory = row["temporaries_gib"] + row.get("arguments_gib", 0)
    return (
        f"`{name}`",
        str(row["batch"]),
        options,
        f"{1e3 * row['seconds_a_step_quartiles'][1]:.1f}",
        f"{row['images_a_second']:,.0f}",
        "unknown" if row["mfu"] is None else f"{row['mfu']:.1%}",
        f"{row['model_tflops'] / product:.1%}",
        f"{memory:.1f}",
        f"{row['compile_s']:.0f}",
    )


def _attention(done: dict[str, Found]) -> str:
    row = done.get("attention", {})
    passes = [name.removesuffix(" ms") for name in row if name.endswith(" ms")]
    rows = [(name, f"{row[f'{name} ms']:.2f}", f"{row[f'{name}, relative error']:.0e}") for name in passes]
    return _table(("attention, batch 256", "ms", "error beside float32"), rows) if rows else ""


def _sampling(done: dict[str, Found]) -> str:
    rows = [
        (f"`{name}`", str(row["batch"]), *(f"{row[f'{n} steps, images a second']:,.0f}" for n in (1, 4, 128)))
        for name, row in done.items()
        if "1 steps, images a second" in row
    ]
    return _table(("sampling", "batch", "1 step, images/s", "4 steps", "128 steps"), rows)


def _agreement(done: dict[str, Found]) -> str:
    rows = [
        (
            f"`{row['objective']}`",
            f"{row['loss, relative difference']:.0e}",
            f"{row['gradient, relative difference']:.0e}",
            f"{row['bfloat16, first loss']:.3f} > {row['bfloat16, last loss']:.3f}",
            str(row["bfloat16, skipped"]),
        )
        for name, row in done.items()
        if name.startswith("objective-")
    ]
    head = ("objective", "loss beside a CPU's, float32", "gradient", "loss of 200 steps in bfloat16", "steps not finite")
    return _table(head, rows) if rows else ""


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=pathlib.Path)
    print(page(parser.parse_args().folder))
