"""Layers of the diffusion transformer, each of one example."""

import math
from collections.abc import Callable, Sequence

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from jaxtyping import Array, Float, PRNGKeyArray

from ..types import Number
from .matmul import matmul
from .sharded import gathered

Init = Callable[[PRNGKeyArray, tuple[int, ...]], Float[Array, "..."]]


def zeros(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Zeros, for layers that must answer nothing at first."""
    return jnp.zeros(shape)


def normal(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """`N(0, 0.02^2)`, the initialisation of embeddings."""
    return 0.02 * jax.random.normal(key, shape)


def xavier(fan_out: int) -> Init:
    """Uniform with variance `2 / (fan_in + fan_out)`; `fan_in` is the first axis (Glorot and Bengio 2010)."""

    def init(key, shape):
        limit = math.sqrt(6 / (shape[0] + fan_out))
        return jax.random.uniform(key, shape, minval=-limit, maxval=limit)

    return init


class Dense(eqx.Module):
    """`x @ kernel + bias`, computed in the dtype asked for; the output axes may be several.

    `split` is the axis of the kernel that tensor parallelism divides, if any (see `gathered`).
    """

    kernel: Float[Array, "inputs *outputs"]
    bias: Float[Array, "*outputs"]
    split: int | None = eqx.field(static=True)

    def __init__(
        self,
        inputs: int,
        outputs: int | Sequence[int],
        *,
        key: PRNGKeyArray,
        init: Init | None = None,
        split: int | None = None,
    ):
        shape = (outputs,) if isinstance(outputs, int) else tuple(outputs)
        self.kernel = (init or xavier(math.prod(shape)))(key, (inputs, *shape))
        self.bias = jnp.zeros(shape)
        self.split = split

    def __call__(self, x: Float[Array, "*rows inputs"], dtype: DTypeLike) -> Float[Array, "..."]:
        return _biased(self.product(x, dtype), self.bias)

    def product(self, x: Float[Array, "*rows inputs"], dtype: DTypeLike) -> Float[Array, "..."]:
        """`x @ kernel`."""
        return _product(x, self.kernel, self.split, dtype)

    def biased(self, y: Float[Array, "..."]) -> Float[Array, "..."]:
        """`y + bias`, in the dtype of `y`."""
        return _biased(y, self.bias)

    def apart(self, x: Float[Array, "*rows inputs"], dtype: DTypeLike) -> list[Float[Array, "..."]]:
        """The answer's parts along its first axis, each a product of its own, so that a GPU copies nothing to part them."""
        split = None if self.split is None else self.split - 1
        parts = (_product(x, self.kernel[:, i], split, dtype) for i in range(self.kernel.shape[1]))
        return [_biased(y, bias) for y, bias in zip(parts, self.bias, strict=True)]


def _biased(y, bias):
    return y + jnp.broadcast_to(bias.astype(y.dtype), y.shape)


def _product(x, kernel, split, dtype):
    inputs, *outputs = kernel.shape
    y = matmul(x.astype(dtype).reshape(-1, inputs), gathered(kernel.astype(dtype), split))
    return y.reshape(*x.shape[:-1], *outputs)


class ScalarEmbedding(eqx.Module):
    """Sinusoids of `scale * value`, then two dense layers with SiLU between.

    As in the reference the second layer computes in float32 whatever the dtype of the network.
    """

    hidden: Dense
    out: Dense
    scale: float = eqx.field(static=True)
    frequencies: int = eqx.field(static=True, default=256)

    def __init__(self, size: int, *, scale: float, key: PRNGKeyArray, frequencies: int = 256):
        k_hidden, k_out = jax.random.split(key)
        self.hidden = Dense(frequencies, size, key=k_hidden, init=normal)
        self.out = Dense(size, size, key=k_out, init=normal)
        self.scale, self.frequencies = scale, frequencies

    def __call__(self, value: Number, dtype: DTypeLike) -> Float[Array, " size"]:
        waves = sinusoids(self.scale * value.astype(jnp.float32), self.frequencies).astype(dtype)
        return self.out(jax.nn.silu(self.hidden(waves, dtype)), jnp.float32)


def sinusoids(value: Number, size: int, period: float = 1e4) -> Float[Array, " size"]:
    """`[cos(w value), sin(w value)]` with `size / 2` rates `w` falling geometrically from 1 to `1 / period`."""
    half = size // 2
    angles = value * jnp.exp(-math.log(period) * jnp.arange(half, dtype=jnp.float32) / half)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])


def position_table(size: int, rows: int, columns: int) -> Float[np.ndarray, "tokens size"]:
    """Fixed 2-D sine-cosine positions, `[sin x, cos x, sin y, cos y]` in quarters of `size`, row by row of patches."""
    parts = [wave(angles) for angles in axis_angles(size // 4, rows, columns) for wave in (np.sin, np.cos)]
    return np.concatenate(parts, axis=1).astype(np.float32)


def axis_angles(count: int, rows: int, columns: int) -> tuple[Float[np.ndarray, "tokens count"], ...]:
    """Column and row of each patch, row by row, times `count` rates that fall geometrically from 1 to 1e-4."""
    rates = 1e4 ** (-np.arange(count) / count)
    y, x = np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij")
    return tuple(np.outer(axis.ravel(), rates) for axis in (x, y))


def layer_norm(x: Float[Array, "tokens size"]) -> Float[Array, "tokens size"]:
    """Zero mean and unit variance of each token, without parameters; statistics in float32, epsilon 1e-6."""
    y = x.astype(jnp.float32)
    mean = jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.maximum(jnp.mean(jnp.square(y), axis=-1, keepdims=True) - jnp.square(mean), 0)
    return ((y - mean) * jax.lax.rsqrt(variance + 1e-6)).astype(x.dtype)


def rms_norm(x: Float[Array, "*rows size"]) -> Float[Array, "*rows size"]:
    """Unit mean square of each row, without parameters; statistics in float32, epsilon 1e-6 (Zhang and Sennrich 2019)."""
    y = x.astype(jnp.float32)
    return (y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


def gated(x: Float[Array, "tokens 2 size"]) -> Float[Array, "tokens size"]:
    """SiLU of one half times the other: the middle of a SwiGLU (Shazeer 2020)."""
    return jax.nn.silu(x[:, 0]) * x[:, 1]


def modulate(
    x: Float[Array, "tokens size"], shift: Float[Array, " size"], scale: Float[Array, " size"]
) -> Float[Array, "tokens size"]:
    """`x * (1 + scale) + shift`, the same for every token."""
    return x * (1 + scale)[None] + shift[None]


def dropout(x: Float[Array, "*shape"], rate: float, key: PRNGKeyArray | None) -> Float[Array, "*shape"]:
    """Zeroes each element with probability `rate` and scales the others by `1 / (1 - rate)`; no key, no dropout."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)
