"""Networks of one example; the caller maps them over the batch."""

from .dit import DiT, DiTConfig
from .field import NetworkField
from .mlp import MLP, MLPConfig
from .network import NetworkConfig, check_network

__all__ = ["MLP", "DiT", "DiTConfig", "MLPConfig", "NetworkConfig", "NetworkField", "check_network"]
