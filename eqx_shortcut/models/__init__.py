"""Networks of one example; the caller maps them over the batch."""

from .dit import DiT, DiTConfig
from .field import NetworkField
from .mlp import MLP, MLPConfig
from .network import NetworkConfig, check_network
from .prediction import DataPrediction, velocity_toward

__all__ = [
    "MLP",
    "DataPrediction",
    "DiT",
    "DiTConfig",
    "MLPConfig",
    "NetworkConfig",
    "NetworkField",
    "check_network",
    "velocity_toward",
]
