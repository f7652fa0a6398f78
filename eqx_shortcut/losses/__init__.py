"""Pure losses: `(field, batch, key, *, ...) -> (loss, metrics)`. Nothing here knows a config, a mesh or a file.

An option is the same wherever a loss has it:

- `target`: an average of `field`, or `field` itself, by whose answers `field` learns; no gradient passes it.
- `teacher`: a trained field; `field` learns by its velocity in place of a line's, or as the loss says. No gradient passes.
- `intervals`: times and step sizes, one row in `bootstrap_every` having a step and the others `d = 0` (see Intervals).
- `guidance`: hides conditions by chance, and guides targets by the answers of `target`, or of `field` (see guidance.Guidance);
  refused where a loss has none to guide.
- `clip`: the limit of points and targets, to `[-clip, clip]` in units of `x`; a cut biases what lies beyond. None: no limit.
- `floor`: the share of noise left at `t = 1` (see paths.linear).
- `jvp`: what takes tangents, `jax.jvp` or `tangents.finite_difference()`.
- `weigh`: functions `(loss, rows) -> loss`, applied in turn to the error of each row (see weights).
- `reduction`: None returns one value a row in place of their mean.

Metrics: `loss`, `velocity` (root mean square of the targets), `error` (before it is weighed) and, of rows with a step,
`loss_bootstrap` and `velocity_bootstrap`, with `loss_flow` of the others.
"""

from ._alpha_flow import alpha_flow as alpha_flow
from ._alpha_flow import alpha_flow_target as alpha_flow_target
from ._alpha_flow import inductive_moment_matching as inductive_moment_matching
from ._alpha_flow import moment_error as moment_error
from ._alpha_flow import moment_times as moment_times
from ._alpha_flow import so_flow as so_flow
from ._consistency import consistency_distillation as consistency_distillation
from ._consistency import consistency_distillation_target as consistency_distillation_target
from ._consistency import consistency_draws as consistency_draws
from ._consistency import consistency_training as consistency_training
from ._consistency import consistency_training_target as consistency_training_target
from ._consistency import continuous_consistency as continuous_consistency
from ._consistency import continuous_consistency_target as continuous_consistency_target
from ._consistency import whole_way_draws as whole_way_draws
from ._flow_map import eulerian as eulerian
from ._flow_map import eulerian_error as eulerian_error
from ._flow_map import lagrangian as lagrangian
from ._flow_map import lagrangian_error as lagrangian_error
from ._flow_map import progressive_map as progressive_map
from ._flow_map import split_mean_flow as split_mean_flow
from ._flow_map import terminal_velocity as terminal_velocity
from ._flow_matching import diffusion as diffusion
from ._flow_matching import diffusion_target as diffusion_target
from ._flow_matching import flow_draws as flow_draws
from ._flow_matching import flow_matching as flow_matching
from ._flow_matching import flow_target as flow_target
from ._flow_matching import live_reflow as live_reflow
from ._flow_matching import live_reflow_draws as live_reflow_draws
from ._flow_matching import live_reflow_target as live_reflow_target
from ._frechet import Memory as Memory
from ._frechet import Stream as Stream
from ._frechet import Streams as Streams
from ._frechet import frechet as frechet
from ._frechet import frechet_distance as frechet_distance
from ._intervals import Intervals as Intervals
from ._intervals import posterior_draws as posterior_draws
from ._intervals import velocity_target as velocity_target
from ._mean_flow import improved_mean_flow as improved_mean_flow
from ._mean_flow import mean_flow as mean_flow
from ._mean_flow import mean_flow_target as mean_flow_target
from ._mid_training import mid_training as mid_training
from ._mid_training import mid_training_target as mid_training_target
from ._regression import regress as regress
from ._regression import row_error as row_error
from ._reward import Score as Score
from ._reward import map_velocity as map_velocity
from ._reward import reward as reward
from ._reward import reward_error as reward_error
from ._reward import reward_share as reward_share
from ._sets import Features as Features
from ._sets import distances as distances
from ._sets import drifting as drifting
from ._sets import drifting_velocity as drifting_velocity
from ._sets import entropic_map as entropic_map
from ._sets import flattened as flattened
from ._sets import one_step as one_step
from ._sets import sinkhorn_flow as sinkhorn_flow
from ._sets import sinkhorn_velocity as sinkhorn_velocity
from ._shortcut import bootstrap_target as bootstrap_target
from ._shortcut import check_strata as check_strata
from ._shortcut import level_draws as level_draws
from ._shortcut import progressive_distillation as progressive_distillation
from ._shortcut import progressive_target as progressive_target
from ._shortcut import shortcut as shortcut
from ._shortcut import shortcut_draws as shortcut_draws
