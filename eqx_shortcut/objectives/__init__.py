"""Objectives: a loss bound to the trainer's networks, and the view of a network that samplers call."""

from ._alpha_flow import AlphaFlow, SoFlow, SplitMeanFlow
from ._base import AtEnds, AtStep, Loss, Networks, Objective, Term, ToData, named, unsteady
from ._consistency import ConsistencyDistillation, ConsistencyTraining, ContinuousConsistency, MidTraining
from ._flow_map import Eulerian, Lagrangian, ProgressiveMap, TerminalVelocity
from ._flow_matching import Diffusion, FlowMatching
from ._live_reflow import LiveReflow
from ._mean_flow import ESC, ImprovedMeanFlow, MeanFlow
from ._progressive import ProgressiveDistillation
from ._reward import Reward
from ._sets import Drifting, Frechet, SinkhornFlow
from ._shortcut import Shortcut

OBJECTIVES: dict[str, type[Objective]] = {
    named(kind): kind
    for kind in (
        Shortcut,
        FlowMatching,
        ProgressiveDistillation,
        ConsistencyDistillation,
        ConsistencyTraining,
        LiveReflow,
        Diffusion,
        MeanFlow,
        ImprovedMeanFlow,
        ESC,
        AlphaFlow,
        SplitMeanFlow,
        SoFlow,
        Lagrangian,
        TerminalVelocity,
        Eulerian,
        ProgressiveMap,
        ContinuousConsistency,
        MidTraining,
        SinkhornFlow,
        Drifting,
        Frechet,
        Reward,
    )
}
"""All objectives by their names on the command line, in its order."""

__all__ = [
    "ESC",
    "OBJECTIVES",
    "AlphaFlow",
    "AtEnds",
    "AtStep",
    "ConsistencyDistillation",
    "ConsistencyTraining",
    "ContinuousConsistency",
    "Diffusion",
    "Drifting",
    "Eulerian",
    "FlowMatching",
    "Frechet",
    "ImprovedMeanFlow",
    "Lagrangian",
    "LiveReflow",
    "Loss",
    "MeanFlow",
    "MidTraining",
    "Networks",
    "Objective",
    "ProgressiveDistillation",
    "ProgressiveMap",
    "Reward",
    "Shortcut",
    "SinkhornFlow",
    "SoFlow",
    "SplitMeanFlow",
    "Term",
    "TerminalVelocity",
    "ToData",
    "named",
    "unsteady",
]
