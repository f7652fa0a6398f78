"""Distributions in the plane: moments, supports, independence of rows."""

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.datasets import make_moons

from eqx_shortcut.data import points
from eqx_shortcut.evaluate import half_circle, sliced_wasserstein

ALL = (points.moons, points.checkerboard, points.spirals, points.eight_gaussians)
N = 20_000


@pytest.mark.parametrize("draw", ALL)
def test_points_are_centred_of_unit_size_and_independent(draw: Callable, key):
    x = np.asarray(draw(key, N), np.float64)
    # Five standard errors: no fourth moment of the sets exceeds that of normal numbers.
    assert np.abs(x.mean(axis=0)).max() < 5 / np.sqrt(N)
    assert (x**2).sum(axis=1).mean() == pytest.approx(2, abs=10 / np.sqrt(N))
    assert np.abs((x[1:] * x[:-1]).mean(axis=0)).max() < 5 / np.sqrt(N)
    np.testing.assert_array_equal(draw(key, N), x.astype(np.float32))


def test_the_checkerboard_is_uniform_on_its_dark_squares(key):
    x = np.asarray(points.checkerboard(key, N), np.float64) / np.sqrt(3 / 4) + 2
    column, row = np.floor(x).astype(int).clip(0, 3).T
    assert np.all((column + row) % 2 == 0) and x.min() >= -1e-6 and x.max() <= 4 + 1e-6
    counts = np.bincount(4 * row + column, minlength=16)
    dark = np.add.outer(np.arange(4), np.arange(4)).ravel() % 2 == 0
    np.testing.assert_allclose(counts[dark] / N, 1 / 8, atol=5 * np.sqrt(7 / 64 / N))


def test_eight_gaussians_are_normal_around_the_corners_of_an_octagon(key):
    width = 0.1
    x = np.asarray(points.eight_gaussians(key, N, width=width), np.float64)
    corner = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8
    np.testing.assert_allclose(np.bincount(corner) / N, 1 / 8, atol=5 * np.sqrt(7 / 64 / N))
    centre = np.sqrt(2 - 2 * width**2) * np.exp(1j * np.pi / 4 * corner)
    left = x - np.stack([centre.real, centre.imag], axis=1)
    np.testing.assert_allclose(left.std(axis=0), width, rtol=0.05)


def test_spirals_wind_as_their_radius_grows_and_are_as_dense_at_all_radii(key):
    x = np.asarray(points.spirals(key, N, width=0.0), np.float64)
    radius = np.hypot(*x.T)
    # The angle of a point is 3 pi of half its radius, or half a turn from it.
    ahead = np.angle(np.exp(2j * (np.arctan2(x[:, 1], x[:, 0]) - 3 * np.pi * radius / 2)))
    np.testing.assert_allclose(ahead[radius > 0.05], 0, atol=1e-4)
    np.testing.assert_allclose(np.quantile(radius, [0.25, 0.5, 1]), [1, np.sqrt(2), 2], atol=0.03)


def test_moons_are_those_of_scikit_learn(key):
    ours = np.asarray(points.moons(key, N, width=0.0), np.float64)
    theirs = (np.asarray(make_moons(N, random_state=0)[0]) - [0.5, 0.25]) * np.sqrt(2 / (21 / 16 - 1 / np.pi))
    assert sliced_wasserstein(ours, theirs, half_circle(16)) < 0.04
