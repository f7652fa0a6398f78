"""Networks of one example; the caller maps them over the batch."""

from .dit import DiT, DiTConfig
from .field import NetworkField

__all__ = ["DiT", "DiTConfig", "NetworkField"]
