"""What a benchmark tells beside seconds: images a second, and the share of the peak."""

from typing import Any


def measured(benchmark: Any, *, images: int, work: float | None = None, peak: float | None = None) -> None:
    """Notes both of a call on so many images, of `work` operations, where it was timed."""
    if benchmark.stats is None:  # --benchmark-disable
        return
    benchmark.extra_info["images/s"] = images / benchmark.stats["median"]
    if work is not None and peak is not None:
        benchmark.extra_info["of the peak"] = work / benchmark.stats["median"] / peak
