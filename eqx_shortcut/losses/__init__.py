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
from ._frechet import Memory, Stream, Streams, frechet, frechet_distance
from ._intervals import Intervals, posterior_draws, velocity_target
from ._live_reflow import live_reflow, live_reflow_draws, live_reflow_target
from ._mean_flow import improved_mean_flow, mean_flow, mean_flow_target
from ._mid_training import mid_training, mid_training_target
from ._progressive import level_draws, progressive_distillation, progressive_target
from ._regression import regress, row_error
from ._reward import Score, map_velocity, reward, reward_error, reward_share
from ._sets import (
    Features,
    distances,
    drifting,
    drifting_velocity,
    entropic_map,
    flattened,
    one_step,
    sinkhorn_flow,
    sinkhorn_velocity,
)
from ._shortcut import bootstrap_target, check_strata, shortcut, shortcut_draws

__all__ = [
    "Features",
    "Intervals",
    "Memory",
    "Score",
    "Stream",
    "Streams",
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
    "distances",
    "drifting",
    "drifting_velocity",
    "entropic_map",
    "eulerian",
    "eulerian_error",
    "flattened",
    "flow_draws",
    "flow_matching",
    "flow_target",
    "frechet",
    "frechet_distance",
    "improved_mean_flow",
    "lagrangian",
    "lagrangian_error",
    "level_draws",
    "live_reflow",
    "live_reflow_draws",
    "live_reflow_target",
    "map_velocity",
    "mean_flow",
    "mean_flow_target",
    "mid_training",
    "mid_training_target",
    "one_step",
    "posterior_draws",
    "progressive_distillation",
    "progressive_map",
    "progressive_target",
    "regress",
    "reward",
    "reward_error",
    "reward_share",
    "row_error",
    "shortcut",
    "shortcut_draws",
    "sinkhorn_flow",
    "sinkhorn_velocity",
    "so_flow",
    "split_mean_flow",
    "terminal_velocity",
    "velocity_target",
    "whole_way_draws",
]
