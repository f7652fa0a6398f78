"""Diffusion (Ho et al. 2020): the noise in a point of a variance-preserving path."""

from jaxtyping import PRNGKeyArray

from .. import paths
from ..guidance import Guidance
from ..rows import expand
from ..types import Batch, Draws, Field, Loss, Reduction, Regression, Weigh
from ._flow_matching import flow_draws
from ._regression import regress, weighed


def diffusion(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    steps: int = 128,
    guidance: Guidance | None = None,
    weigh: tuple[Weigh, ...] = (),
    reduction: Reduction = "mean",
) -> Loss:
    """`mean |field(a x + s noise, t, 1/steps, cond) - noise|^2` with `a, s = paths.variance_preserving(t)`.

    Here `field` predicts noise and not a velocity: sample it through `samplers.ddim_field`, which makes it one. `t` is uniform
    on `{0, ..., steps - 1}/steps`; `guidance` hides conditions. Ho et al. (2020), eq. 14; the baseline of Frans et al. (2024),
    table 1.
    """
    rows = diffusion_target(flow_draws(batch, key, steps=steps, guidance=guidance))
    return weighed(regress(field, rows), rows, weigh, reduction)


def diffusion_target(draws: Draws) -> Regression:
    """The regression on the noise at the path's point at `t`."""
    a, s = (expand(part, draws.x) for part in paths.variance_preserving(draws.t))
    return Regression(a * draws.x + s * draws.noise, draws.t, draws.d, draws.cond, draws.noise)
