"""torch-fidelity, whose metrics ours are compared with where it is installed."""

import types

import pytest

from torch_build import load


def torch_fidelity(module: str) -> types.ModuleType:
    """A module of the package; skips the test where it or torch is missing."""
    try:
        return load(f"torch_fidelity.{module}")
    except ImportError as error:
        pytest.skip(f"torch-fidelity cannot be imported ({error}): pip install 'eqx_shortcut[parity]'")
