"""Checkpoints and parameters of kvfrans/shortcut-models (Flax), read without running any of its code.

checkpoint = reference.read("checkpoint.pkl")
config, channels, classes = reference.architecture(checkpoint.parameters)
network = reference.from_parameters(checkpoint.average, config, (32, 32, channels), classes)
"""

from ._checkpoint import Checkpoint, read, train_state
from ._parameters import Parameters, ReferenceCheckpointError, architecture, from_parameters, nested, to_parameters

__all__ = [
    "Checkpoint",
    "Parameters",
    "ReferenceCheckpointError",
    "architecture",
    "from_parameters",
    "nested",
    "read",
    "to_parameters",
    "train_state",
]
