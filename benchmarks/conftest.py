"""Benchmarks answer one question a file: `python -m pytest benchmarks --benchmark-enable --benchmark-only`, with `-m slow` the
large ones. `--benchmark-json FILE` keeps the numbers, `--benchmark-compare=FILE` shows them beside those of another time."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from eqx_shortcut import flops
from eqx_shortcut.types import Batch


def pytest_configure(config: pytest.Config) -> None:
    """Says which benchmark runs, since each takes seconds, and shows the columns that matter."""
    if config.getoption("benchmark_enable"):
        config.option.verbose = max(config.option.verbose, 1)
        config.option.benchmark_columns = config.option.benchmark_columns or ["median", "iqr", "rounds"]


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """A line of throughput and share of the peak for each benchmark that tells one."""
    session = getattr(config, "_benchmarksession", None)
    told = [bench for bench in session.benchmarks if bench.extra_info] if session is not None else []
    if not told:
        return
    names = list(dict.fromkeys(name for bench in told for name in bench.extra_info))
    rows = [[f"{bench.group}: {bench.name}", *(_cell(name, bench.extra_info) for name in names)] for bench in told]
    widths = [max(map(len, column)) for column in zip(["", *names], *rows, strict=True)]
    terminalreporter.section("rates, of the median")
    for first, *cells in [["", *names], *rows]:
        padded = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
        terminalreporter.line("  ".join([first.ljust(widths[0]), *padded]))


def _cell(name: str, told: dict[str, Any]) -> str:
    value = told.get(name)
    if not isinstance(value, float):
        return "" if value is None else str(value)
    return f"{value:.1%}" if name == "of the peak" else f"{value:,.{0 if value > 100 else 1}f}"


@pytest.fixture
def key() -> jax.Array:
    """A key; split it for each use."""
    return jax.random.key(0)


@pytest.fixture(scope="session")
def peak() -> float:
    """Operations a second: of the chip by the table, or of a float32 product of 2,048 x 2,048 where it is not listed."""
    known = flops.peak(jax.devices()[0])
    if known is not None:
        return known
    square = jnp.ones((2048, 2048))
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(square, square))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(product(square, square))
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


SIZES = [pytest.param((64, 8, 1), id="digits-64"), pytest.param((16, 32, 4), id="latents-16", marks=pytest.mark.slow)]


@pytest.fixture(params=SIZES)
def batch(request: pytest.FixtureRequest, key: jax.Array) -> Batch:
    """Random images (count, side, channels) with labels."""
    count, side, channels = request.param
    return Batch(jax.random.normal(key, (count, side, side, channels)), jnp.arange(count) % 10)
