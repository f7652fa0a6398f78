"""Intervals and Guidance refuse what contradicts itself, in a sentence with the value and the remedy."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut import Batch, losses
from eqx_shortcut.guidance import Guidance, Scales, drop_condition, guided_velocity
from eqx_shortcut.losses import Intervals

BATCH = Batch(jnp.ones((12, 2)), jnp.arange(12) % 3)
KEY = jax.random.key(0)


def field(x, t, d, cond):
    return x + cond[:, None]


@pytest.mark.parametrize("every", [-1, 0, 1])
def test_steps_leave_rows_for_the_velocity(every):
    with pytest.raises(ValueError, match=rf"bootstrap_every={every} leaves no row for flow matching: use 2 or more"):
        Intervals(bootstrap_every=every).draw(BATCH, KEY)


def test_steps_divide_the_batch():
    with pytest.raises(ValueError, match=r"batch 12 is not a multiple of bootstrap_every=5: use a batch of 10 or 15, or"):
        Intervals(bootstrap_every=5).draw(BATCH, KEY)


def test_posterior_means_are_not_taken_over_stored_pairs():
    """Of noise that depends on the data the mean over all lines would be another."""
    pairs = dataclasses.replace(BATCH, noise=jnp.zeros((12, 2)))
    with pytest.raises(ValueError, match=r"posterior_every=2 takes the noise to be independent of the data.*leave it None"):
        Intervals(posterior_every=2).draw(pairs, KEY)
    np.testing.assert_array_equal(Intervals().draw(pairs, KEY).noise, pairs.noise)


@pytest.mark.parametrize("drop_steps", [True, False])
def test_dropout_needs_the_condition_that_stands_for_none(drop_steps):
    with pytest.raises(ValueError, match=r"dropout=[0-9.]+ needs `null`, the condition without its batch axis"):
        Intervals().draw(BATCH, KEY, Guidance(dropout=0.25), drop_steps=drop_steps)


@pytest.mark.parametrize(
    "guidance", [Guidance(scale=Scales()), Guidance(mix=0.5), Guidance(interval=(0.0, 0.5))], ids=["scales", "mix", "interval"]
)
def test_a_teacher_is_guided_by_one_number_at_all_times(guidance):
    with pytest.raises(
        ValueError, match=r"this loss guides a field by one number at all times, leave mix at 0 and interval at"
    ):
        guidance.of(field)


@pytest.mark.parametrize(
    "loss",
    [
        losses.flow_matching,
        losses.diffusion,
        losses.continuous_consistency,
        partial(losses.inductive_moment_matching, target=field, particles=3),
    ],
)
@pytest.mark.parametrize("guidance", [Guidance(9, scale=2.0), Guidance(9, mix=0.5)], ids=["scale", "mix"])
def test_guidance_of_targets_is_refused_where_none_is_guided(loss, guidance):
    with pytest.raises(ValueError, match=r"guide targets, and this loss has no target to guide: leave them at 1 and 0"):
        loss(field, BATCH, KEY, guidance=guidance)


def test_drawn_scales_are_told_before_they_guide_a_velocity():
    t = jnp.zeros(12)
    with pytest.raises(ValueError, match=r"scale=Scales\(low=1.0, high=8.0.*: name a number"):
        guided_velocity(field, BATCH.x, t, BATCH.x, BATCH.cond, Guidance(9, scale=Scales()))


def test_guidance_of_a_velocity_needs_the_condition_that_stands_for_none():
    with pytest.raises(ValueError, match="guidance needs `null`, the condition without its batch axis"):
        guided_velocity(field, BATCH.x, jnp.zeros(12), BATCH.x, BATCH.cond, Guidance(scale=2.0))


def test_without_conditions_or_dropout_nothing_is_needed():
    assert drop_condition(KEY, None, Guidance(dropout=0.5), 12) is None
    assert drop_condition(KEY, BATCH.cond, Guidance(), 12) is BATCH.cond
    assert drop_condition(KEY, BATCH.cond, None, 12) is BATCH.cond
