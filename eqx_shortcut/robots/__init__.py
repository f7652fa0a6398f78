"""Policies: actions as data, what a robot sees as condition, and tasks that they are judged by."""

import importlib
from typing import TYPE_CHECKING

from .push_t import PushT
from .reach import Reach

if TYPE_CHECKING:
    from .policy import Policy

__all__ = ["Policy", "PushT", "Reach"]


def __getattr__(name: str):
    if name == "Policy":  # on first use: a command line that lists its options needs the tasks alone
        return importlib.import_module(".policy", __name__).Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
