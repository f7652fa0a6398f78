"""Diffusion (Ho et al. 2020): the noise in a point of a variance-preserving path."""

import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import paths
from ..rows import rows as per_row
from ..types import Batch, Cond, Draws, Field, Metrics, Regression
from ._flow_matching import flow_draws
from ._regression import Reduction, Weight, reduce, regress, rms


def diffusion(
    field: Field,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    steps: int = 128,
    null: Cond = None,
    dropout: float = 0.0,
    weight: Weight | None = None,
    reduction: Reduction = "mean",
) -> tuple[Float[Array, ""] | Float[Array, " batch"], Metrics]:
    """`mean |field(a x + s noise, t, 1/steps, cond) - noise|^2` with `a, s = paths.variance_preserving(t)`.

    Here `field` predicts noise and not a velocity: sample it through `samplers.ddim_field`, which makes it one. `t` is uniform
    on `{0, ..., steps - 1}/steps`; `dropout` replaces a row's condition by `null`, the condition without its batch axis. Ho et
    al. (2020), eq. 14; the baseline of Frans et al. (2024), table 1.
    """
    rows = diffusion_target(flow_draws(batch, key, steps=steps, null=null, dropout=dropout))
    loss = reduce(regress(field, rows), rows, weight, reduction)
    return loss, {"loss": jnp.mean(loss), "velocity": rms(rows.u)}


def diffusion_target(draws: Draws) -> Regression:
    """The regression on the noise at the path's point at `t`."""
    a, s = (per_row(part, draws.x) for part in paths.variance_preserving(draws.t))
    return Regression(a * draws.x + s * draws.noise, draws.t, draws.d, draws.cond, draws.noise)
