"""Libraries on torch, imported beside a torch for CPUs."""

import importlib
import types

_kept: list[object] = []
"""Operators exist as long as their library does."""


def load(module: str) -> types.ModuleType:
    """A module that imports torchvision, whose published build is for GPUs: its operators, which no test calls, are declared.

    Raises ImportError if the module or torch is not installed.
    """
    torch = importlib.import_module("torch")
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
    return importlib.import_module(module)
