"""Flow matching under the pseudo-Huber distance, which outliers pull less than they pull a square."""

import jax.numpy as jnp

from eqx_shortcut import losses, steps


def huber_flow(field, batch, key, *, steps_of_grid=128, c=0.03, guidance=None):
    """`mean (sqrt(|field(x_t, t, d) - v|^2 + c^2) - c)` with the mean square over a row inside, and `d = 1/steps_of_grid`."""
    draws = losses.flow_draws(batch, key, steps=steps_of_grid, guidance=guidance)  # everything random
    rows = losses.flow_target(draws)  # where the field is evaluated, and its target
    error = steps.predict(field, rows.x, rows.t, rows.d, rows.cond) - rows.u
    square = jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim)))
    loss = jnp.mean(jnp.sqrt(square + c**2) - c)
    return loss, {"loss": loss, "loss_flow": jnp.mean(square)}
