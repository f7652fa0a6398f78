"""Pure losses: `(field, batch, key, *, ...) -> (loss, metrics)`. Nothing here knows a config, a mesh or a file."""

from ._consistency import (
    consistency_distillation,
    consistency_distillation_target,
    consistency_draws,
    consistency_training,
    consistency_training_target,
)
from ._diffusion import diffusion, diffusion_target
from ._flow_matching import flow_draws, flow_matching, flow_target
from ._live_reflow import live_reflow, live_reflow_draws, live_reflow_target
from ._progressive import level_draws, progressive_distillation, progressive_target
from ._regression import reduce, regress
from ._shortcut import bootstrap_target, check_strata, shortcut, shortcut_draws

__all__ = [
    "bootstrap_target",
    "check_strata",
    "consistency_distillation",
    "consistency_distillation_target",
    "consistency_draws",
    "consistency_training",
    "consistency_training_target",
    "diffusion",
    "diffusion_target",
    "flow_draws",
    "flow_matching",
    "flow_target",
    "level_draws",
    "live_reflow",
    "live_reflow_draws",
    "live_reflow_target",
    "progressive_distillation",
    "progressive_target",
    "reduce",
    "regress",
    "shortcut",
    "shortcut_draws",
]
