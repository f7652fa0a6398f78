"""The deep compression autoencoder (DC-AE, Chen et al. 2025), as diffusers' AutoencoderDC defines it.

Modules bear the names of diffusers' tensors, by which `autoencoder_files` finds their tensors.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .autoencoder import Configured, Posterior
from .convolution import BatchNorm, Conv, Depthwise, Linear, RMSNorm, fold, unfold, upsample

EPSILON = 1e-5
"""Epsilon of every norm."""
EXPANSION = 4
"""Width between the products of a gated convolution, in widths of its input."""

Image = Float[Array, "height width channels"]
Inputs = Float[Array, "height width inputs"]
Outputs = Float[Array, "rows columns outputs"]
Heads = Float[Array, "pixels heads size"]


@dataclasses.dataclass(frozen=True)
class Level:
    """The blocks of an encoder or decoder at one size of the image."""

    width: int
    """Channels."""
    blocks: int
    """Number of blocks; 0, of the first level alone, where the image is halved at once and doubled at last."""
    scales: tuple[int, ...] | None = None
    """Sides of the squares over which attention sees queries, keys and values, beside single pixels; None without attention."""
    norm: type[RMSNorm | BatchNorm] = RMSNorm
    """Norm of a convolution block, and of attention."""
    activation: Callable[[Array], Array] = jax.nn.silu
    """Function between the convolutions of a block without attention."""


@dataclasses.dataclass(frozen=True)
class DCAEConfig:
    """Sizes of the autoencoder; raises ValueError where channels do not divide as shortcuts between them need."""

    encoder: tuple[Level, ...]
    """Levels of the encoder, from the image down; each but the last halves the image."""
    decoder: tuple[Level, ...]
    """Levels of the decoder, from the image down."""
    latent_channels: int = 32
    """Channels of the latent."""
    head: int = 32
    """Channels of a head of attention."""
    strided: bool = False
    """Halve by a convolution of stride 2, and not by squares of pixels that become channels."""
    interpolated: bool = False
    """Double by repeating pixels before a convolution, and not by channels that become squares of pixels."""
    encoder_shortcut: bool = True
    """Add means over channels to the encoder's last convolution."""
    decoder_shortcut: bool = True
    """Add repeated channels to the decoder's first convolution."""
    activation: Callable[[Array], Array] = jax.nn.relu
    """Function before the decoder's last convolution."""
    scaling_factor: float = 1.0
    """Factor that brings raw latents about to unit variance."""
    shift_factor: float = 0.0
    """Number that is taken off raw latents first."""

    def __post_init__(self):
        if len(self.encoder) != len(self.decoder) or len(self.encoder) < 2:
            raise ValueError(
                f"the encoder has {len(self.encoder)} levels and the decoder {len(self.decoder)}: give both the same number, "
                "2 or more"
            )
        for levels, shortcut in ((self.encoder, self.encoder_shortcut), (self.decoder, self.decoder_shortcut)):
            blocks, widths = [level.blocks for level in levels], [level.width for level in levels]
            if min(*widths, self.latent_channels, self.head, blocks[0] + 1, *blocks[1:]) < 1:
                raise ValueError(
                    f"levels of {widths} channels have {blocks} blocks, latents {self.latent_channels} channels and heads "
                    f"{self.head}: use 1 or more of each, and 0 blocks in the first level alone"
                )
            pairs = [(4 * fine, coarse) for fine, coarse in itertools.pairwise(widths)]
            pairs += [(widths[-1], self.latent_channels)] * shortcut + [(width, 4) for width in widths[1:]]
            if any(many % few for many, few in pairs):
                raise ValueError(f"widths {widths} and latent_channels={self.latent_channels} do not divide: use powers of 2")
            if narrow := [level.width for level in levels if level.scales is not None and level.width < self.head]:
                raise ValueError(f"attention at {narrow[0]} channels has no head of {self.head}: choose fewer channels a head")

    def build(self, *, key: PRNGKeyArray) -> "DCAE":
        """An untrained autoencoder; `autoencoder_files.load_autoencoder` reads trained ones."""
        return DCAE(self, key=key)


class Residual(eqx.Module):
    """`x + norm(conv2(activation(conv1(x))))`."""

    conv1: Conv
    conv2: Conv
    norm: RMSNorm | BatchNorm
    activation: Callable[[Array], Array] = eqx.field(static=True)

    def __init__(self, level: Level, *, key: PRNGKeyArray):
        k_first, k_second = jax.random.split(key)
        self.conv1 = Conv(level.width, level.width, key=k_first)
        self.conv2 = Conv(level.width, level.width, bias=False, key=k_second)
        self.norm, self.activation = level.norm(level.width, epsilon=EPSILON), level.activation

    def __call__(self, x: Image) -> Image:
        return x + self.norm(self.conv2(self.activation(self.conv1(x))))


class Scale(eqx.Module):
    """Queries, keys and values over squares of `size x size` pixels: a depthwise convolution, then a product by heads."""

    proj_in: Depthwise
    proj_out: Linear

    def __init__(self, channels: int, size: int, head: int, *, key: PRNGKeyArray):
        k_in, k_out = jax.random.split(key)
        self.proj_in = Depthwise(channels, size, stride=1, padding=(size // 2, size // 2), bias=False, key=k_in)
        self.proj_out = Linear(channels, channels, groups=channels // head, key=k_out)

    def __call__(self, x: Image) -> Image:
        return self.proj_out(self.proj_in(x))


class Attention(eqx.Module):
    """`x + norm(to_out(y))` with linear attention `y` (see `attend`), whose heads see single pixels or squares of them.

    A head takes the first of three runs of neighbouring channels for queries, then keys, then values, as published.
    """

    to_q: Linear
    to_k: Linear
    to_v: Linear
    to_qkv_multiscale: tuple[Scale, ...]
    to_out: Linear
    norm_out: RMSNorm | BatchNorm
    head: int = eqx.field(static=True)

    def __init__(self, level: Level, head: int, *, key: PRNGKeyArray):
        scales = level.scales or ()
        k_q, k_k, k_v, k_out, *keys = jax.random.split(key, 4 + len(scales))
        inner = level.width // head * head
        self.to_q, self.to_k, self.to_v = (Linear(level.width, inner, key=k) for k in (k_q, k_k, k_v))
        self.to_qkv_multiscale = tuple(Scale(3 * inner, side, head, key=k) for side, k in zip(scales, keys, strict=True))
        self.to_out = Linear(inner * (1 + len(scales)), level.width, key=k_out)
        self.norm_out, self.head = level.norm(level.width, epsilon=EPSILON), head

    def __call__(self, x: Image) -> Image:
        pixels = jnp.concatenate([self.to_q(x), self.to_k(x), self.to_v(x)], axis=-1)
        seen = jnp.concatenate([pixels, *(scale(pixels) for scale in self.to_qkv_multiscale)], axis=-1)
        q, k, v = jnp.split(seen.reshape(x.shape[0] * x.shape[1], -1, 3 * self.head), 3, axis=-1)
        y = attend(jax.nn.relu(q), jax.nn.relu(k), v)
        return x + self.norm_out(self.to_out(y.reshape(*x.shape[:2], -1)))


def attend(q: Heads, k: Heads, v: Heads) -> Heads:
    """`sum_m (q . k_m) v_m / sum_m (q . k_m)` of each pixel's q over all pixels m, in time linear in their number; 0 for 0 / 0.

    Source: Katharopoulos et al. (2020), equation 5.
    """
    memory, total = jnp.einsum("mhc,mhd->hcd", k, v), jnp.sum(k, axis=0)
    return jnp.einsum("nhc,hcd->nhd", q, memory) / (jnp.einsum("nhc,hc->nh", q, total) + 1e-15)[..., None]


class Gated(eqx.Module):
    """`x + norm(conv_point(y * silu(gate)))` with y and gate from `conv_depth(silu(conv_inverted(x)))`."""

    conv_inverted: Conv
    conv_depth: Depthwise
    conv_point: Conv
    norm: RMSNorm

    def __init__(self, width: int, *, key: PRNGKeyArray):
        k_inverted, k_depth, k_point = jax.random.split(key, 3)
        self.conv_inverted = Conv(width, 2 * EXPANSION * width, 1, key=k_inverted)
        self.conv_depth = Depthwise(2 * EXPANSION * width, 3, stride=1, padding=(1, 1), key=k_depth)
        self.conv_point = Conv(EXPANSION * width, width, 1, bias=False, key=k_point)
        self.norm = RMSNorm(width, epsilon=EPSILON)

    def __call__(self, x: Image) -> Image:
        y, gate = jnp.split(self.conv_depth(jax.nn.silu(self.conv_inverted(x))), 2, axis=-1)
        return x + self.norm(self.conv_point(y * jax.nn.silu(gate)))


class Attentive(eqx.Module):
    """Attention, then a gated convolution."""

    attn: Attention
    conv_out: Gated

    def __init__(self, level: Level, head: int, *, key: PRNGKeyArray):
        k_attention, k_gated = jax.random.split(key)
        self.attn, self.conv_out = Attention(level, head, key=k_attention), Gated(level.width, key=k_gated)

    def __call__(self, x: Image) -> Image:
        return self.conv_out(self.attn(x))


class Down(eqx.Module):
    """From the channels of a fine image to those of one of half its sides; a shortcut adds means over channels of `fold(x)`."""

    conv: Conv
    shortcut: bool = eqx.field(static=True)

    def __init__(self, fine: int, coarse: int, *, strided: bool, shortcut: bool = True, key: PRNGKeyArray):
        self.conv = Conv(fine, coarse, stride=2, key=key) if strided else Conv(fine, coarse // 4, key=key)
        self.shortcut = shortcut

    def __call__(self, x: Inputs) -> Outputs:
        y = self.conv(x) if self.conv.stride == 2 else fold(self.conv(x))
        return y + averaged(fold(x), y.shape[-1]) if self.shortcut else y


class Up(eqx.Module):
    """From the channels of a coarse image to those of one of twice its sides; a shortcut adds `unfold` of repeated channels."""

    conv: Conv
    interpolated: bool = eqx.field(static=True)
    shortcut: bool = eqx.field(static=True)

    def __init__(self, fine: int, coarse: int, *, interpolated: bool, shortcut: bool = True, key: PRNGKeyArray):
        self.conv = Conv(coarse, fine if interpolated else 4 * fine, key=key)
        self.interpolated, self.shortcut = interpolated, shortcut

    def __call__(self, x: Inputs) -> Outputs:
        y = self.conv(upsample(x)) if self.interpolated else unfold(self.conv(x))
        return y + unfold(repeated(x, 4 * y.shape[-1])) if self.shortcut else y


class Encoder(eqx.Module):
    """An image to its latent."""

    conv_in: Conv | Down
    down_blocks: tuple[tuple[Any, ...], ...]
    conv_out: Conv
    shortcut: bool = eqx.field(static=True)

    def __init__(self, config: DCAEConfig, *, key: PRNGKeyArray):
        k_in, k_levels, k_out = jax.random.split(key, 3)
        first, second, *_, last = (*config.encoder, config.encoder[-1])
        halve = functools.partial(Down, strided=config.strided)
        levels = _levels(config.encoder, config.head, halve, k_levels)
        self.conv_in = Conv(3, first.width, key=k_in) if first.blocks else halve(3, second.width, shortcut=False, key=k_in)
        self.down_blocks = tuple((*blocks, *change) for blocks, change in levels)
        self.conv_out = Conv(last.width, config.latent_channels, key=k_out)
        self.shortcut = config.encoder_shortcut

    def __call__(self, image: Float[Array, "height width 3"]) -> Outputs:
        x = self.conv_in(image)
        for block in itertools.chain(*self.down_blocks):
            x = block(x)
        y = self.conv_out(x)
        return y + averaged(x, y.shape[-1]) if self.shortcut else y


class Decoder(eqx.Module):
    """A latent to its image, from the last of `up_blocks` to the first."""

    conv_in: Conv
    up_blocks: tuple[tuple[Any, ...], ...]
    norm_out: RMSNorm
    conv_out: Conv | Up
    activation: Callable[[Array], Array] = eqx.field(static=True)
    shortcut: bool = eqx.field(static=True)

    def __init__(self, config: DCAEConfig, *, key: PRNGKeyArray):
        k_in, k_levels, k_out = jax.random.split(key, 3)
        first, second, *_, last = (*config.decoder, config.decoder[-1])
        double = functools.partial(Up, interpolated=config.interpolated)
        levels = _levels(config.decoder, config.head, double, k_levels)
        self.conv_in = Conv(config.latent_channels, last.width, key=k_in)
        self.up_blocks = tuple((*change, *blocks) for blocks, change in levels)
        self.norm_out = RMSNorm((first if first.blocks else second).width, epsilon=EPSILON)
        self.conv_out = Conv(first.width, 3, key=k_out) if first.blocks else double(3, second.width, shortcut=False, key=k_out)
        self.activation, self.shortcut = config.activation, config.decoder_shortcut

    def __call__(self, latent: Float[Array, "rows columns channels"]) -> Float[Array, "height width 3"]:
        x = self.conv_in(latent)
        x = x + repeated(latent, x.shape[-1]) if self.shortcut else x
        for block in itertools.chain(*reversed(self.up_blocks)):
            x = block(x)
        return self.conv_out(self.activation(self.norm_out(x)))


class DCAE(Configured):
    """A deep compression autoencoder in float32; an `Autoencoder` whose posterior is one latent, without a variance.

    Source: Chen et al. (2025), section 3; diffusers' AutoencoderDC.
    """

    encoder: Encoder
    decoder: Decoder
    config: DCAEConfig = eqx.field(static=True)

    def __init__(self, config: DCAEConfig, *, key: PRNGKeyArray):
        k_encoder, k_decoder = jax.random.split(key)
        self.encoder, self.decoder = Encoder(config, key=k_encoder), Decoder(config, key=k_decoder)
        self.config = config

    @property
    def factor(self) -> int:
        """Pixels of the image per pixel of the latent, along a side."""
        return 2 ** (len(self.config.encoder) - 1)

    def encode(self, image: Float[Array, "height width 3"]) -> Posterior:
        """The raw latent of an image in [-1, 1]; raises ValueError if `factor` does not divide a side."""
        self.latent_shape(image.shape)
        return Posterior(self.encoder(image))

    def decode(self, latent: Float[Array, "rows columns channels"]) -> Float[Array, "height width 3"]:
        """The image of a raw latent, in [-1, 1] up to overshoot."""
        return self.decoder(latent)


def averaged(x: Inputs, channels: int) -> Outputs:
    """Means over runs of neighbouring channels, `channels` in all."""
    return jnp.mean(x.reshape(*x.shape[:2], channels, -1), axis=-1)


def repeated(x: Inputs, channels: int) -> Outputs:
    """Each channel several times in turn, `channels` in all."""
    return jnp.repeat(x, channels // x.shape[-1], axis=-1)


def _levels(
    levels: tuple[Level, ...], head: int, change: Callable[..., Down | Up], key: PRNGKeyArray
) -> list[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Of each level its blocks, and the layer between it and the next: none where it has no blocks, nor below the last."""
    parts = []
    for level, below, k in zip(levels, (*levels[1:], None), jax.random.split(key, len(levels)), strict=True):
        k_change, *keys = jax.random.split(k, 1 + level.blocks)
        blocks = tuple(Residual(level, key=k) if level.scales is None else Attentive(level, head, key=k) for k in keys)
        parts.append((blocks, (change(level.width, below.width, key=k_change),) if level.blocks and below else ()))
    return parts
