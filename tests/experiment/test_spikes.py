"""Spikes: patience steps in a row out of bounds of the median of sound steps, and nothing less."""

import math

import pytest

from eqx_shortcut.experiment.spikes import LEAST, WINDOW, Spike, Spikes


def first(spikes: Spikes, losses, norms=None) -> Spike | None:
    """The first spike of losses and norms of the gradient, from step 1."""
    pairs = zip(losses, [1.0] * len(losses) if norms is None else norms, strict=True)
    found = (spikes(step, {"loss": loss, "grad_norm": norm}) for step, (loss, norm) in enumerate(pairs, start=1))
    return next((spike for spike in found if spike is not None), None)


@pytest.mark.parametrize("high", [6.1, math.inf, math.nan])
@pytest.mark.parametrize("patience", [1, 3])
def test_a_spike_is_so_many_steps_in_a_row_above_so_many_medians(high, patience):
    spike = first(Spikes(3, patience), [1.0, 2.0, 3.0] * 10 + [high] * 9)
    assert spike is not None and (spike.name, spike.first, spike.last, spike.median) == ("loss", 31, 30 + patience, 2.0)
    assert spike.value == high or math.isnan(high)


def test_the_norm_of_the_gradient_is_watched_too():
    spike = first(Spikes(10, 2), [1.0] * 50, [0.1] * 30 + [1.01] * 20)
    assert spike == Spike("grad_norm", 31, 32, 1.01, 0.1)


def test_what_comes_back_within_its_bounds_in_time_is_none():
    spikes = Spikes(3, 3)
    assert first(spikes, [1.0] * 30 + [9.0, 9.0, 1.0] * 30) is None
    assert first(Spikes(3, 3), [1.0] * 30 + [2.9] * 90) is None


def test_a_slow_rise_and_a_fall_are_none():
    assert first(Spikes(2, 1), [1.01**n for n in range(300)]) is None
    assert first(Spikes(2, 1), [0.9**n for n in range(300)]) is None


def test_a_high_start_is_none_but_numbers_that_are_not_finite_are_one_from_the_first_step():
    assert first(Spikes(2, 1), [100.0] * (LEAST - 1) + [1.0] * WINDOW) is None
    assert first(Spikes(2, 4), [math.nan] * 9) == pytest.approx(("loss", 1, 4, math.nan, math.inf), nan_ok=True)


def test_a_spike_does_not_raise_the_median_that_it_is_compared_with():
    """Broken up so that it is none, for longer than the window, it is one as soon as it lasts."""
    losses = [1.0] * LEAST + [5.0, 5.0, 1.0] * WINDOW + [5.0] * 3
    spike = first(Spikes(4, 3), losses)
    assert spike is not None and spike.first == LEAST + 3 * WINDOW + 1 and spike.median == 1


def test_the_first_step_out_of_bounds_is_known_before_it_is_a_spike():
    spikes = Spikes(2, 3)
    first(spikes, [1.0] * 30 + [5.0, 5.0])
    assert spikes.first == 31
    spikes(33, {"loss": 1.0, "grad_norm": 1.0})
    assert spikes.first is None
