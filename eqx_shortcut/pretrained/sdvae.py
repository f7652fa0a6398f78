"""The autoencoder of Stable Diffusion (Rombach et al. 2022), as diffusers' AutoencoderKL defines it.

Modules bear the names of diffusers' tensors where they can, by which `autoencoder_files` finds their tensors.
"""

import dataclasses
import itertools

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from .. import ranges
from ..models.layers import Dense
from ..ranges import Count
from .autoencoder import Configured, Posterior
from .convolution import Conv, GroupNorm, upsample

EPSILON = 1e-6
"""Epsilon of every GroupNorm."""


@dataclasses.dataclass(frozen=True)
class SDVAEConfig:
    """Sizes of the autoencoder under diffusers' names; the defaults are those of stabilityai/sd-vae-ft-mse."""

    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    """Width of each level, from the image down; every level but the last halves the image."""
    layers_per_block: Count = 2
    """Residual blocks of a level of the encoder; one of the decoder has one more."""
    latent_channels: Count = 4
    """Channels of the latent."""
    norm_num_groups: Count = 32
    """Groups of channels that are normalised together; must divide every width."""
    scaling_factor: float = 0.18215
    """Factor that brings raw latents about to unit variance."""
    shift_factor: float = 0.0
    """Number that is taken off raw latents first."""
    use_quant_conv: bool = True
    """Mix the moments by a 1 x 1 convolution after the encoder."""
    use_post_quant_conv: bool = True
    """Mix the latent by a 1 x 1 convolution before the decoder."""

    def __post_init__(self):
        ranges.check(self)
        if not self.block_out_channels or any(width % self.norm_num_groups for width in self.block_out_channels):
            raise ValueError(
                f"block_out_channels={self.block_out_channels} are not all multiples of norm_num_groups="
                f"{self.norm_num_groups}: choose at least one width, and groups that divide each"
            )

    def build(self, *, key: PRNGKeyArray) -> "SDVAE":
        """An untrained autoencoder; `autoencoder_files.load_autoencoder` reads trained ones."""
        return SDVAE(self, key=key)


class Residual(eqx.Module):
    """`shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))))))`; the shortcut is x itself where the width stays."""

    norm1: GroupNorm
    conv1: Conv
    norm2: GroupNorm
    conv2: Conv
    conv_shortcut: Conv | None

    def __init__(self, inputs: int, outputs: int, groups: int, *, key: PRNGKeyArray):
        k_first, k_second, k_shortcut = jax.random.split(key, 3)
        self.norm1 = GroupNorm(groups, inputs, epsilon=EPSILON)
        self.conv1 = Conv(inputs, outputs, key=k_first)
        self.norm2 = GroupNorm(groups, outputs, epsilon=EPSILON)
        self.conv2 = Conv(outputs, outputs, key=k_second)
        self.conv_shortcut = None if inputs == outputs else Conv(inputs, outputs, 1, key=k_shortcut)

    def __call__(self, x: Float[Array, "height width inputs"]) -> Float[Array, "height width outputs"]:
        y = self.conv2(jax.nn.silu(self.norm2(self.conv1(jax.nn.silu(self.norm1(x))))))
        return y + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(eqx.Module):
    """`x + to_out(softmax(q k^T / sqrt(channels)) v)` over all pixels, one head, with q, k and v of the normalised x."""

    group_norm: GroupNorm
    to_q: Dense
    to_k: Dense
    to_v: Dense
    to_out: Dense

    def __init__(self, channels: int, groups: int, *, key: PRNGKeyArray):
        self.group_norm = GroupNorm(groups, channels, epsilon=EPSILON)
        self.to_q, self.to_k, self.to_v, self.to_out = (Dense(channels, channels, key=k) for k in jax.random.split(key, 4))

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        pixels = self.group_norm(x).reshape(-1, x.shape[-1])
        q, k, v = (dense(pixels, x.dtype)[:, None] for dense in (self.to_q, self.to_k, self.to_v))
        y = jax.nn.dot_product_attention(q, k, v)[:, 0]
        return x + self.to_out(y, x.dtype).reshape(x.shape)


class Middle(eqx.Module):
    """A residual block, attention, and a residual block, at the smallest size."""

    resnets: tuple[Residual, Residual]
    attention: Attention

    def __init__(self, channels: int, groups: int, *, key: PRNGKeyArray):
        k_before, k_attention, k_after = jax.random.split(key, 3)
        self.resnets = (Residual(channels, channels, groups, key=k_before), Residual(channels, channels, groups, key=k_after))
        self.attention = Attention(channels, groups, key=k_attention)

    def __call__(self, x: Float[Array, "height width channels"]) -> Float[Array, "height width channels"]:
        return self.resnets[1](self.attention(self.resnets[0](x)))


class Stage(eqx.Module):
    """Residual blocks, then, in all but the last, a convolution that halves the image or, with `up`, doubles it.

    It halves padded on the far sides only, and doubles by repeating pixels before it.
    """

    resnets: tuple[Residual, ...]
    sampler: Conv | None
    up: bool = eqx.field(static=True)

    def __init__(self, inputs: int, outputs: int, blocks: int, groups: int, *, up: bool, last: bool, key: PRNGKeyArray):
        k_sampler, *keys = jax.random.split(key, blocks + 1)
        widths = (inputs, *[outputs] * (blocks - 1))
        self.resnets = tuple(Residual(width, outputs, groups, key=k) for width, k in zip(widths, keys, strict=True))
        stride, padding = (1, None) if up else (2, (0, 1))
        self.sampler = None if last else Conv(outputs, outputs, stride=stride, padding=padding, key=k_sampler)
        self.up = up

    def __call__(self, x: Float[Array, "height width inputs"]) -> Float[Array, "rows columns outputs"]:
        for resnet in self.resnets:
            x = resnet(x)
        if self.sampler is None:
            return x
        return self.sampler(upsample(x) if self.up else x)


class Encoder(eqx.Module):
    """An image to the moments of its latent, mean and log-variance one after the other in the channels."""

    conv_in: Conv
    down_blocks: tuple[Stage, ...]
    mid_block: Middle
    conv_norm_out: GroupNorm
    conv_out: Conv

    def __init__(self, config: SDVAEConfig, *, key: PRNGKeyArray):
        k_in, k_mid, k_out, *keys = jax.random.split(key, len(config.block_out_channels) + 3)
        widths, groups = config.block_out_channels, config.norm_num_groups
        self.conv_in = Conv(3, widths[0], key=k_in)
        self.down_blocks = _stages(widths, config.layers_per_block, groups, keys, up=False)
        self.mid_block = Middle(widths[-1], groups, key=k_mid)
        self.conv_norm_out = GroupNorm(groups, widths[-1], epsilon=EPSILON)
        self.conv_out = Conv(widths[-1], 2 * config.latent_channels, key=k_out)

    def __call__(self, image: Float[Array, "height width 3"]) -> Float[Array, "rows columns moments"]:
        x = self.conv_in(image)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(eqx.Module):
    """A latent to its image."""

    conv_in: Conv
    mid_block: Middle
    up_blocks: tuple[Stage, ...]
    conv_norm_out: GroupNorm
    conv_out: Conv

    def __init__(self, config: SDVAEConfig, *, key: PRNGKeyArray):
        k_in, k_mid, k_out, *keys = jax.random.split(key, len(config.block_out_channels) + 3)
        widths, groups = config.block_out_channels[::-1], config.norm_num_groups
        self.conv_in = Conv(config.latent_channels, widths[0], key=k_in)
        self.mid_block = Middle(widths[0], groups, key=k_mid)
        self.up_blocks = _stages(widths, config.layers_per_block + 1, groups, keys, up=True)
        self.conv_norm_out = GroupNorm(groups, widths[-1], epsilon=EPSILON)
        self.conv_out = Conv(widths[-1], 3, key=k_out)

    def __call__(self, latent: Float[Array, "rows columns channels"]) -> Float[Array, "height width 3"]:
        x = self.mid_block(self.conv_in(latent))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class SDVAE(Configured):
    """The variational autoencoder of Stable Diffusion in float32; an `Autoencoder` whose posterior has a variance.

    On accelerators whose products are of lower precision by default, run it under `jax.default_matmul_precision("highest")`
    for float32 throughout. Source: Rombach et al. (2022), section 3.1; diffusers' AutoencoderKL.
    """

    encoder: Encoder
    decoder: Decoder
    quant_conv: Conv | None
    post_quant_conv: Conv | None
    config: SDVAEConfig = eqx.field(static=True)

    def __init__(self, config: SDVAEConfig, *, key: PRNGKeyArray):
        k_encoder, k_decoder, k_quant, k_post = jax.random.split(key, 4)
        channels = config.latent_channels
        self.encoder, self.decoder = Encoder(config, key=k_encoder), Decoder(config, key=k_decoder)
        self.quant_conv = Conv(2 * channels, 2 * channels, 1, key=k_quant) if config.use_quant_conv else None
        self.post_quant_conv = Conv(channels, channels, 1, key=k_post) if config.use_post_quant_conv else None
        self.config = config

    @property
    def factor(self) -> int:
        """Pixels of the image per pixel of the latent, along a side."""
        return 2 ** (len(self.config.block_out_channels) - 1)

    def encode(self, image: Float[Array, "height width 3"]) -> Posterior:
        """The posterior of the raw latent of an image in [-1, 1]; log-variances are kept in [-30, 20], as in diffusers.

        Raises ValueError if `factor` does not divide a side.
        """
        self.latent_shape(image.shape)
        moments = self.encoder(image)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return Posterior(mean, jnp.clip(log_variance, -30, 20))

    def decode(self, latent: Float[Array, "rows columns channels"]) -> Float[Array, "height width 3"]:
        """The image of a raw latent, in [-1, 1] up to overshoot."""
        return self.decoder(latent if self.post_quant_conv is None else self.post_quant_conv(latent))


def _stages(widths: tuple[int, ...], blocks: int, groups: int, keys: list[PRNGKeyArray], *, up: bool) -> tuple[Stage, ...]:
    last = len(widths) - 1
    return tuple(
        Stage(*pair, blocks, groups, up=up, last=level == last, key=keys[level])
        for level, pair in enumerate(itertools.pairwise((widths[0], *widths)))
    )
