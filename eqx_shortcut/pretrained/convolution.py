"""Layers of convolutional networks, each of one example in the order height, width, channels."""

import itertools
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ..models.matmul import matmul

Padding = tuple[int, int]


class Conv(eqx.Module):
    """`y[i, j] = sum_ab x[stride i + a, stride j + b] @ kernel[a, b] + bias`, on x with `padding` zeros before and after.

    The kernel's rows and columns are `size`, or a pair; it is initialised uniformly within `1 / sqrt(fan_in)`, the bias with 0.
    """

    kernel: Float[Array, "rows columns inputs outputs"]
    bias: Float[Array, " outputs"] | None
    stride: int = eqx.field(static=True)
    padding: tuple[Padding, Padding] = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int,
        size: int | tuple[int, int] = 3,
        *,
        key: PRNGKeyArray,
        stride: int = 1,
        padding: Padding | None = None,
        bias: bool = True,
    ):
        rows, columns = (size, size) if isinstance(size, int) else size
        limit = 1 / math.sqrt(inputs * rows * columns)
        self.kernel = jax.random.uniform(key, (rows, columns, inputs, outputs), minval=-limit, maxval=limit)
        self.bias = jnp.zeros(outputs) if bias else None
        self.stride = stride
        half = ((rows // 2, rows // 2), (columns // 2, columns // 2))
        self.padding = half if padding is None else (padding, padding)

    def __call__(self, x: Float[Array, "height width inputs"]) -> Float[Array, "rows columns outputs"]:
        unpadded = self.stride == 1 and not any(map(any, self.padding))
        if self.kernel.shape[:2] == (1, 1) and unpadded:
            # XLA's convolution takes twice as long on CPU as the product that this one is.
            y = matmul(x.reshape(-1, x.shape[-1]), self.kernel[0, 0]).reshape(*x.shape[:2], -1)
        else:
            # XLA's takes three to seven times as long on CPU without padding: one row and one column more are cut off after.
            more = int(unpadded)
            y = jax.lax.conv_general_dilated(
                x[None],
                self.kernel,
                (self.stride, self.stride),
                [(low, high + more) for low, high in self.padding],
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )[0]
            y = y[: y.shape[0] - more, : y.shape[1] - more]
        return y if self.bias is None else y + self.bias[None, None]


class Depthwise(eqx.Module):
    """Each channel of x convolved by itself, with as many outputs, under the conventions of `Conv`.

    Computed as a sum of shifted images: XLA's convolution of groups takes ten times as long on CPU.
    """

    kernel: Float[Array, "size size channels"]
    bias: Float[Array, " channels"] | None
    stride: int = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)

    def __init__(self, channels: int, size: int, *, key: PRNGKeyArray, stride: int, padding: Padding, bias: bool = True):
        self.kernel = jax.random.uniform(key, (size, size, channels), minval=-1 / size, maxval=1 / size)
        self.bias = jnp.zeros(channels) if bias else None
        self.stride, self.padding = stride, padding

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "rows columns channels"]:
        x = jnp.pad(x, (self.padding, self.padding, (0, 0)))
        size, step = len(self.kernel), self.stride
        height, width = (side - size + 1 for side in x.shape[:2])
        y = jnp.zeros((1, 1, x.shape[-1])) if self.bias is None else self.bias[None, None]
        for a, b in itertools.product(range(size), repeat=2):
            y = y + x[a : a + height : step, b : b + width : step] * self.kernel[None, None, a, b]
        return y


class Linear(eqx.Module):
    """A grouped `x @ kernel`: each of `groups` equal runs of channels has its own run of the kernel's columns."""

    kernel: Float[Array, "inputs outputs"]
    groups: int = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, *, key: PRNGKeyArray, groups: int = 1):
        limit = 1 / math.sqrt(inputs // groups)
        self.kernel = jax.random.uniform(key, (inputs // groups, outputs), minval=-limit, maxval=limit)
        self.groups = groups

    def __call__(self, x: Float[Array, "height width inputs"]) -> Float[Array, "height width outputs"]:
        kernel = self.kernel.reshape(self.kernel.shape[0], self.groups, -1)
        y = jnp.einsum("hwgi,igo->hwgo", x.reshape(*x.shape[:2], self.groups, -1), kernel)
        return y.reshape(*x.shape[:2], -1)


class GroupNorm(eqx.Module):
    """`(x - mean) / sqrt(variance + epsilon) * scale + bias` with the moments of each group of channels over all pixels.

    Source: Wu and He (2018). Raises ValueError if the groups do not divide the channels.
    """

    scale: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    groups: int = eqx.field(static=True)
    epsilon: float = eqx.field(static=True)

    def __init__(self, groups: int, channels: int, *, epsilon: float):
        if channels % groups:
            raise ValueError(f"{channels} channels are not divisible by {groups} groups: choose groups that divide them")
        self.scale, self.bias = jnp.ones(channels), jnp.zeros(channels)
        self.groups, self.epsilon = groups, epsilon

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        grouped = x.reshape(*x.shape[:2], self.groups, -1)
        # The mean is taken off first: mean(x^2) - mean^2 would lose the digits that a far mean takes up.
        centred = grouped - jnp.mean(grouped, axis=(0, 1, 3), keepdims=True)
        variance = jnp.mean(jnp.square(centred), axis=(0, 1, 3), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        return y * self.scale[None, None] + self.bias[None, None]


class RMSNorm(eqx.Module):
    """`x / sqrt(mean(x^2) + epsilon) * scale + bias` with the mean over the channels of each pixel."""

    scale: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    epsilon: float = eqx.field(static=True)

    def __init__(self, channels: int, *, epsilon: float):
        self.scale, self.bias, self.epsilon = jnp.ones(channels), jnp.zeros(channels), epsilon

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        unit = x * jax.lax.rsqrt(jnp.mean(jnp.square(x), axis=-1, keepdims=True) + self.epsilon)
        return unit * self.scale[None, None] + self.bias[None, None]


class BatchNorm(eqx.Module):
    """`(x - running_mean) / sqrt(running_var + epsilon) * scale + bias` in each channel, with the moments of its training."""

    scale: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    running_mean: Float[Array, " channels"]
    running_var: Float[Array, " channels"]
    epsilon: float = eqx.field(static=True)

    def __init__(self, channels: int, *, epsilon: float):
        self.scale, self.bias, self.epsilon = jnp.ones(channels), jnp.zeros(channels), epsilon
        self.running_mean, self.running_var = jnp.zeros(channels), jnp.ones(channels)

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        factor = self.scale * jax.lax.rsqrt(self.running_var + self.epsilon)
        return (x - self.running_mean[None, None]) * factor[None, None] + self.bias[None, None]


def upsample(x: Float[Array, "height width channels"]) -> Float[Array, "rows columns channels"]:
    """Every pixel becomes a square of 2 x 2 equal ones."""
    height, width, channels = x.shape
    squares = jnp.broadcast_to(x[:, None, :, None], (height, 2, width, 2, channels))
    return squares.reshape(2 * height, 2 * width, channels)


def fold(x: Float[Array, "height width inputs"]) -> Float[Array, "rows columns outputs"]:
    """Squares of 2 x 2 pixels become four neighbouring channels, row by row."""
    height, width, channels = x.shape
    squares = x.reshape(height // 2, 2, width // 2, 2, channels)
    return squares.transpose(0, 2, 4, 1, 3).reshape(height // 2, width // 2, 4 * channels)


def unfold(x: Float[Array, "height width inputs"]) -> Float[Array, "rows columns outputs"]:
    """Four neighbouring channels become a square of 2 x 2 pixels: the inverse of `fold`."""
    height, width, channels = x.shape
    squares = x.reshape(height, width, channels // 4, 2, 2)
    return squares.transpose(0, 3, 1, 4, 2).reshape(2 * height, 2 * width, channels // 4)
