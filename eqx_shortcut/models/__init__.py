"""Networks of one example; the caller maps them over the batch."""

from .dit import DiT as DiT
from .dit import DiTConfig as DiTConfig
from .field import NetworkField as NetworkField
from .mlp import MLP as MLP
from .mlp import MLPConfig as MLPConfig
from .network import NetworkConfig as NetworkConfig
from .network import check_network as check_network
from .prediction import DataPrediction as DataPrediction
from .prediction import velocity_toward as velocity_toward
