"""torch-fidelity, whose metrics ours are compared with where it is installed."""

import importlib
import types

import pytest


def torch_fidelity(module: str) -> types.ModuleType:
    """A module of the package; skips the test where it, torch or a torchvision of the same build is missing."""
    try:
        _declare_detection_operators()
        return importlib.import_module(f"torch_fidelity.{module}")
    # A torchvision of another build than torch fails on an operator that it does not find.
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torch-fidelity cannot be imported ({error}): pip install 'eqx_shortcut[parity]'")


def _declare_detection_operators() -> None:
    """Lets a torchvision built for GPUs be imported beside a torch for CPUs, of whose operators torch-fidelity calls none."""
    torch = importlib.import_module("torch")

    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)


_kept: list[object] = []
"""Operators exist as long as their library does."""
