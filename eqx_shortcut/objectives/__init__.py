"""What is trained: a loss bound to the trainer's networks, and the view of a network that samplers call."""

from ._alpha_flow import AlphaFlow, SoFlow, SplitMeanFlow
from ._base import AtEnds, AtStep, Loss, Networks, Objective, Term, ToData, unsteady
from ._consistency import ConsistencyDistillation, ConsistencyTraining, ContinuousConsistency
from ._diffusion import Diffusion
from ._flow_map import Eulerian, Lagrangian, ProgressiveMap, TerminalVelocity
from ._flow_matching import FlowMatching
from ._live_reflow import LiveReflow
from ._mean_flow import ESC, ImprovedMeanFlow, MeanFlow
from ._progressive import ProgressiveDistillation
from ._shortcut import Shortcut

__all__ = [
    "ESC",
    "AlphaFlow",
    "AtEnds",
    "AtStep",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "ContinuousConsistency",
    "Diffusion",
    "Eulerian",
    "FlowMatching",
    "ImprovedMeanFlow",
    "Lagrangian",
    "LiveReflow",
    "Loss",
    "MeanFlow",
    "Networks",
    "Objective",
    "ProgressiveDistillation",
    "ProgressiveMap",
    "Shortcut",
    "SoFlow",
    "SplitMeanFlow",
    "Term",
    "TerminalVelocity",
    "ToData",
    "unsteady",
]
