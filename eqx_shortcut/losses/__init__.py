"""Pure losses: `(field, batch, key, *, ...) -> (loss, metrics)`. Nothing here knows a config, a mesh or a file."""

from ._alpha_flow import alpha_flow, alpha_flow_target, so_flow
from ._consistency import (
    consistency_distillation,
    consistency_distillation_target,
    consistency_draws,
    consistency_training,
    consistency_training_target,
)
from ._continuous_consistency import continuous_consistency, continuous_consistency_target, whole_way_draws
from ._diffusion import diffusion, diffusion_target
from ._flow_map import (
    eulerian,
    eulerian_error,
    lagrangian,
    lagrangian_error,
    progressive_map,
    split_mean_flow,
    terminal_velocity,
)
from ._flow_matching import flow_draws, flow_matching, flow_target
from ._intervals import Intervals, posterior_draws, velocity_target
from ._live_reflow import live_reflow, live_reflow_draws, live_reflow_target
from ._mean_flow import improved_mean_flow, mean_flow, mean_flow_target
from ._mid_training import mid_training, mid_training_target
from ._progressive import level_draws, progressive_distillation, progressive_target
from ._regression import regress, row_error
from ._shortcut import bootstrap_target, check_strata, shortcut, shortcut_draws

__all__ = [
    "Intervals",
    "alpha_flow",
    "alpha_flow_target",
    "bootstrap_target",
    "check_strata",
    "consistency_distillation",
    "consistency_distillation_target",
    "consistency_draws",
    "consistency_training",
    "consistency_training_target",
    "continuous_consistency",
    "continuous_consistency_target",
    "diffusion",
    "diffusion_target",
    "eulerian",
    "eulerian_error",
    "flow_draws",
    "flow_matching",
    "flow_target",
    "improved_mean_flow",
    "lagrangian",
    "lagrangian_error",
    "level_draws",
    "live_reflow",
    "live_reflow_draws",
    "live_reflow_target",
    "mean_flow",
    "mean_flow_target",
    "mid_training",
    "mid_training_target",
    "posterior_draws",
    "progressive_distillation",
    "progressive_map",
    "progressive_target",
    "regress",
    "row_error",
    "shortcut",
    "shortcut_draws",
    "so_flow",
    "split_mean_flow",
    "terminal_velocity",
    "velocity_target",
    "whole_way_draws",
]
