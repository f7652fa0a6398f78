import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from eqx_shortcut.pretrained.convolution import BatchNorm, Conv, Depthwise, GroupNorm, Linear, RMSNorm, fold, unfold, upsample


def by_hand(conv: Conv, x: jax.Array) -> np.ndarray:
    kernel = np.asarray(conv.kernel, np.float64)
    padded = np.pad(np.asarray(x, np.float64), [*conv.padding, (0, 0)])
    (height, width), step = kernel.shape[:2], conv.stride
    rows, columns = ((side - size) // step + 1 for side, size in zip(padded.shape, (height, width), strict=False))
    out = np.zeros((rows, columns, kernel.shape[3]))
    for i in range(rows):
        for j in range(columns):
            window = padded[i * step : i * step + height, j * step : j * step + width]
            out[i, j] = np.tensordot(window, kernel, 3)
    return out if conv.bias is None else out + np.asarray(conv.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("size", "stride", "padding"),
    [(3, 1, None), (1, 1, None), (3, 2, None), (3, 2, (0, 1)), (3, 1, (0, 0)), ((1, 5), 1, None), ((1, 5), 1, (0, 0))],
)
def test_convolution_by_hand(key, size, stride, padding, bias):
    conv = jax.tree.map(lambda a: a + 0.1, Conv(3, 4, size, key=key, stride=stride, padding=padding, bias=bias))
    x = jax.random.normal(key, (6, 8, 3))
    np.testing.assert_allclose(conv(x), by_hand(conv, x), atol=1e-5)


def test_groups_of_channels_have_products_of_their_own(key):
    linear = Linear(6, 4, groups=2, key=key)
    x, kernel = np.asarray(jax.random.normal(key, (2, 3, 6))), np.asarray(linear.kernel)
    expected = np.concatenate([x[..., :3] @ kernel[:, :2], x[..., 3:] @ kernel[:, 2:]], axis=-1)
    np.testing.assert_allclose(linear(jnp.asarray(x)), expected, atol=1e-6)


@pytest.mark.parametrize(("size", "stride", "padding"), [(3, 1, (1, 1)), (5, 2, (1, 2))])
def test_a_depthwise_convolution_is_one_of_each_channel(key, size, stride, padding):
    depthwise = jax.tree.map(lambda a: a + 0.1, Depthwise(2, size, key=key, stride=stride, padding=padding))
    x = jax.random.normal(key, (6, 8, 2))
    alone = Conv(1, 1, size, key=key, stride=stride, padding=padding)
    parameters = [(depthwise.kernel[..., i, None, None], depthwise.bias[i : i + 1]) for i in range(2)]
    channels = [
        by_hand(eqx.tree_at(lambda conv: (conv.kernel, conv.bias), alone, pair), x[..., i : i + 1])
        for i, pair in enumerate(parameters)
    ]
    expected = np.concatenate(channels, axis=-1)
    np.testing.assert_allclose(eqx.filter_jit(depthwise)(x), expected, atol=1e-5)
    without = Depthwise(2, size, key=key, stride=stride, padding=padding, bias=False)
    plain = eqx.tree_at(lambda layer: layer.kernel, without, depthwise.kernel)
    np.testing.assert_allclose(eqx.filter_jit(plain)(x), expected - np.asarray(depthwise.bias), atol=1e-5)


def test_convolution_starts_within_the_inverse_root_of_its_inputs(key):
    conv = Conv(64, 32, key=key)
    limit = 1 / np.sqrt(64 * 9)
    assert float(jnp.abs(conv.kernel).max()) <= limit and not np.any(conv.bias)
    np.testing.assert_allclose(jnp.std(conv.kernel), limit / np.sqrt(3), rtol=0.02)


def test_a_mapped_convolution_is_that_of_each_example(key):
    conv = Conv(3, 4, key=key, stride=2)
    x = jax.random.normal(key, (5, 6, 8, 3))
    np.testing.assert_allclose(jax.vmap(conv)(x), np.stack([conv(each) for each in x]), atol=1e-6)


@pytest.mark.parametrize("far", [0.0, 1000.0])
def test_group_norm_standardises_each_group(key, far):
    norm = GroupNorm(2, 8, epsilon=1e-6)
    y = np.asarray(norm(far + 3 * jax.random.normal(key, (5, 7, 8))), np.float64).reshape(35, 2, 4)
    np.testing.assert_allclose(y.mean(axis=(0, 2)), 0, atol=1e-4)
    np.testing.assert_allclose(y.var(axis=(0, 2)), 1, atol=1e-4)


def test_group_norm_scales_and_shifts_each_channel(key):
    norm = GroupNorm(1, 2, epsilon=0.0)
    x = jax.random.normal(key, (4, 4, 2))
    moved = jax.tree.unflatten(jax.tree.structure(norm), [jnp.array([2.0, 3.0]), jnp.array([1.0, -1.0])])
    np.testing.assert_allclose(moved(x), np.asarray(norm(x)) * [2, 3] + [1, -1], atol=1e-5)


def test_groups_must_divide_the_channels():
    with pytest.raises(ValueError, match="6 channels are not divisible by 4 groups: choose groups that divide them"):
        GroupNorm(4, 6, epsilon=1e-6)


def test_upsampling_repeats_pixels(key):
    x = np.asarray(jax.random.normal(key, (2, 3, 4)))
    np.testing.assert_array_equal(upsample(jnp.asarray(x)), x.repeat(2, axis=0).repeat(2, axis=1))


def test_rms_norm_has_unit_squares_in_each_pixel(key):
    norm = RMSNorm(3, epsilon=0.0)
    x = 5 + jax.random.normal(key, (4, 5, 3))
    np.testing.assert_allclose(np.mean(np.square(norm(x)), axis=-1), 1, rtol=1e-5)
    moved = jax.tree.unflatten(jax.tree.structure(norm), [jnp.array([2.0, 3.0, 4.0]), jnp.array([1.0, -1.0, 0.0])])
    np.testing.assert_allclose(moved(x), np.asarray(norm(x)) * [2, 3, 4] + [1, -1, 0], atol=1e-5)
    np.testing.assert_allclose(RMSNorm(3, epsilon=1.0)(0 * x + 1), 1 / np.sqrt(2), rtol=1e-6)


def test_batch_norm_takes_its_own_moments(key):
    norm = BatchNorm(2, epsilon=0.5)
    moments = [jnp.array(pair) for pair in ((2.0, 3.0), (1.0, -1.0), (0.3, 0.4), (3.5, 8.5))]
    x = jax.random.normal(key, (4, 5, 2))
    expected = (np.asarray(x) - [0.3, 0.4]) / [2, 3] * [2, 3] + [1, -1]
    np.testing.assert_allclose(jax.tree.unflatten(jax.tree.structure(norm), moments)(x), expected, atol=1e-5)


def test_folding_gathers_squares_and_unfolding_spreads_them(key):
    x = np.asarray(jax.random.normal(key, (4, 6, 3)))
    folded = np.asarray(fold(jnp.asarray(x)))
    assert folded.shape == (2, 3, 12)
    np.testing.assert_array_equal(folded[1, 2].reshape(3, 2, 2), x[2:4, 4:6].transpose(2, 0, 1))
    np.testing.assert_array_equal(unfold(jnp.asarray(folded)), x)
