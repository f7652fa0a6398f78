"""Pure losses: `(field, batch, key, *, ...) -> (loss, metrics)`. Nothing here knows a config, a mesh or a file."""

from ._flow_matching import flow_draws, flow_matching, flow_target
from ._regression import reduce, regress
from ._shortcut import bootstrap_target, check_strata, shortcut, shortcut_draws

__all__ = [
    "bootstrap_target",
    "check_strata",
    "flow_draws",
    "flow_matching",
    "flow_target",
    "reduce",
    "regress",
    "shortcut",
    "shortcut_draws",
]
