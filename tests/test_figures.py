"""Pictures: every pixel where it belongs, and no half picture."""

import pathlib

import numpy as np
import PIL.Image
import pytest

from eqx_shortcut.figures import dot_plot, grid, loss_plot, quality_plot, smoothed, to_bytes

RNG = np.random.default_rng(0)


def test_to_bytes_maps_minus_1_and_1_to_0_and_255_rounded_and_clipped():
    x = np.array([-5, -1, -1 + 1.2 / 255, 0, 1, 1.7, np.inf, -np.inf], np.float32).reshape(-1, 1, 1, 1)
    np.testing.assert_array_equal(to_bytes(x).ravel(), [0, 0, 1, 128, 255, 255, 255, 0])


def test_to_bytes_inverts_scaling_of_bytes():
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
    np.testing.assert_array_equal(to_bytes(levels.astype(np.float32) / 127.5 - 1), levels)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("height", "width", "side", "zoom"), [(4, 6, 12, 3), (5, 5, 14, 2), (8, 8, 4, 1)])
def test_a_grid_holds_each_image_enlarged_at_its_row_and_column(tmp_path, channels, height, width, side, zoom):
    images = RNG.uniform(-1.2, 1.2, (2, 3, height, width, channels))
    grid(images, tmp_path / "grid.png", side=side)
    page = np.asarray(PIL.Image.open(tmp_path / "grid.png"))
    tall, wide = height * zoom + 4, width * zoom + 4
    assert page.shape == (2 * tall, 3 * wide, 3)
    seen = np.full(page.shape, 255, np.uint8)
    for row in range(2):
        for column in range(3):
            for y in range(height * zoom):
                for x in range(width * zoom):
                    seen[row * tall + y, column * wide + x] = to_bytes(images[row, column])[y // zoom, x // zoom]
    np.testing.assert_array_equal(page, seen)


def test_labels_stand_left_of_the_images_and_change_none_of_them(tmp_path):
    images = RNG.uniform(-1, 1, (2, 3, 8, 8, 1))
    grid(images, tmp_path / "plain.png")
    grid(images, tmp_path / "named.png", labels=["1 step", "128 steps"])
    plain, named = (np.asarray(PIL.Image.open(tmp_path / name)) for name in ("plain.png", "named.png"))
    margin = named.shape[1] - plain.shape[1]
    assert margin == 8 + 7 * len("128 steps") and named.shape[0] == plain.shape[0]
    np.testing.assert_array_equal(named[:, margin:], plain)
    half = len(named) // 2
    assert all((part[:, :margin] < 128).any() for part in (named[:half], named[half:]))


def test_a_picture_that_cannot_be_finished_leaves_the_old_one(tmp_path, monkeypatch):
    grid(np.zeros((1, 1, 4, 4, 1)), tmp_path / "grid.png")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    before = (tmp_path / "grid.png").read_bytes()

    def half(self, data):
        with self.open("wb") as file:
            file.write(data[: len(data) // 2])
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "write_bytes", half)
    with pytest.raises(OSError, match="disk full"):
        grid(np.ones((1, 1, 4, 4, 1)), tmp_path / "grid.png")
    assert (tmp_path / "grid.png").read_bytes() == before


@pytest.mark.parametrize("n", [1, 2, 39, 40, 41, 400])
def test_smoothing_keeps_a_constant(n):
    np.testing.assert_allclose(smoothed(np.full(n, 3.5)), 3.5, rtol=1e-12)


def test_smoothing_is_the_mean_around_each_value():
    values = RNG.standard_normal(200)
    expected = [values[max(0, i - 5) : i + 6].mean() for i in range(200)]
    np.testing.assert_allclose(smoothed(values), expected, rtol=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_smoothing_passes_over_values_that_are_not_finite(bad):
    values = np.full(100, 3.5)
    values[40] = bad
    np.testing.assert_allclose(smoothed(values), 3.5, rtol=1e-12)


def test_smoothing_nothing_but_nan_is_nan():
    assert np.isnan(smoothed(np.full(3, np.nan))).all()


def test_plots_are_pictures(tmp_path):
    quality_plot({"a": {1: 3.0, 4: 2.0}, "b": {1: 5.0}}, tmp_path / "quality.png", measure="distance", floor=0.5)
    dot_plot({"a": {1: [3.0], 4: [2.0, 1.0]}, "b": {1: [5.0]}}, tmp_path / "dots.png", measure="distance", floor=[0.5])
    pixels = np.asarray(PIL.Image.open(tmp_path / "dots.png").convert("RGB"))
    # A line a name.
    assert pixels.shape[1] == 840 and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    records = [
        {"step": n, "loss": 1 / n, "loss_flow": 2 / n} | ({"loss_bootstrap": 1.0} if n % 2 else {}) for n in range(1, 50)
    ]
    loss_plot([*records, {"step": 50, "loss": float("nan")}], tmp_path / "loss.png")
    for name in ("quality.png", "loss.png"):
        pixels = np.asarray(PIL.Image.open(tmp_path / name).convert("RGB"))
        assert pixels.shape == (480, 720, 3) and len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10


def test_a_record_without_losses_is_still_plotted(tmp_path):
    loss_plot([], tmp_path / "loss.png")
    with PIL.Image.open(tmp_path / "loss.png") as picture:
        assert picture.size == (720, 480)
