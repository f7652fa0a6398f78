"""The trainer of a run: from its settings to its folder of checkpoints, records, pictures and numbers."""

from .config import Averages, Checkpointing, Config, Figures, Health, Mesh, Processes, Quality, WandB
from .main import Experiment

__all__ = ["Averages", "Checkpointing", "Config", "Experiment", "Figures", "Health", "Mesh", "Processes", "Quality", "WandB"]
