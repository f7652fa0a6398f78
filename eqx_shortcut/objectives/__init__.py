"""Objectives: a loss bound to the trainer's networks, and the view of a network that samplers call."""

from ._alpha_flow import AlphaFlow as AlphaFlow
from ._alpha_flow import InductiveMomentMatching as InductiveMomentMatching
from ._alpha_flow import SoFlow as SoFlow
from ._alpha_flow import SplitMeanFlow as SplitMeanFlow
from ._base import AtEnds as AtEnds
from ._base import AtStep as AtStep
from ._base import Loss as Loss
from ._base import Networks as Networks
from ._base import Objective as Objective
from ._base import Term as Term
from ._base import ToData as ToData
from ._base import named as named
from ._base import unsteady as unsteady
from ._consistency import ConsistencyDistillation as ConsistencyDistillation
from ._consistency import ConsistencyTraining as ConsistencyTraining
from ._consistency import ContinuousConsistency as ContinuousConsistency
from ._consistency import MidTraining as MidTraining
from ._flow_map import Eulerian as Eulerian
from ._flow_map import Lagrangian as Lagrangian
from ._flow_map import ProgressiveMap as ProgressiveMap
from ._flow_map import TerminalVelocity as TerminalVelocity
from ._flow_matching import Diffusion as Diffusion
from ._flow_matching import FlowMatching as FlowMatching
from ._flow_matching import LiveReflow as LiveReflow
from ._mean_flow import ESC as ESC
from ._mean_flow import ImprovedMeanFlow as ImprovedMeanFlow
from ._mean_flow import MeanFlow as MeanFlow
from ._reward import Reward as Reward
from ._sets import Drifting as Drifting
from ._sets import Frechet as Frechet
from ._sets import SinkhornFlow as SinkhornFlow
from ._shortcut import ProgressiveDistillation as ProgressiveDistillation
from ._shortcut import Shortcut as Shortcut

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
        InductiveMomentMatching,
        SinkhornFlow,
        Drifting,
        Frechet,
        Reward,
    )
}
"""All objectives by their names on the command line, in its order."""
